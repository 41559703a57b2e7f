"""Writes a BERT encoder as an ONNX graph of fused operators, pooling and normalising included.

Tracing a PyTorch module leaves shape arithmetic between the operators that keeps onnxruntime from fusing attention;
written directly, one layer is six nodes. The operators of the domain `com.microsoft` are documented in onnxruntime's
ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, NDArray[np.float32]]
OPSET, IR_VERSION = 17, 10
_MICROSOFT = "com.microsoft"


class BertGraph:
    """Collects the nodes and weights of one encoder."""

    def __init__(self, weights: Weights, *, layers: int, heads: int, epsilon: float, pooling: tuple[str, ...]) -> None:
        self._weights, self._layers, self._heads = weights, layers, heads
        self._epsilon, self._pooling = epsilon, pooling
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def build(self) -> onnx.ModelProto:
        """The graph: `input_ids` (batch, tokens), padded with 0, to `embedding` (batch, dim) of length 1."""
        mask = self._mask()
        hidden = self._embed()
        for index in range(self._layers):
            hidden = self._layer(hidden, mask, f"encoder.layer.{index}.", f"l{index}_")
        dim = self._pool(hidden, mask)
        graph = helper.make_graph(
            self._nodes,
            "sentence_encoder",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", dim])],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="router_ml")
        model.ir_version = IR_VERSION
        return model

    def _node(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def _tensor(self, name: str, value: NDArray[Any]) -> str:
        self._initializers.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def _mask(self) -> str:
        """1 for a real token, 0 for padding: token 0 is the padding of every BERT vocabulary."""
        zero = self._tensor("zero", np.array(0, dtype=np.int64))
        self._node("Equal", ["input_ids", zero], "is_padding")
        self._node("Not", ["is_padding"], "is_token")
        return self._node("Cast", ["is_token"], "mask", to=TensorProto.INT32)

    def _embed(self) -> str:
        weights = self._weights
        self._node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
        types = weights["embeddings.token_type_embeddings.weight"][0]
        positions = weights["embeddings.position_embeddings.weight"] + types
        names = [
            self._tensor("words", weights["embeddings.word_embeddings.weight"]),
            self._tensor("positions", positions),
            "",
            self._tensor("embed_gamma", weights["embeddings.LayerNorm.weight"]),
            self._tensor("embed_beta", weights["embeddings.LayerNorm.bias"]),
        ]
        node = helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "", *names],
            ["hidden", "embed_mask_index"],
            name="embed",
            domain=_MICROSOFT,
            epsilon=self._epsilon,
        )
        self._nodes.append(node)
        return "hidden"

    def _layer(self, hidden: str, mask: str, source: str, name: str) -> str:
        weights = self._weights

        def projection(part: str) -> NDArray[np.float32]:
            return weights[f"{source}attention.self.{part}.weight"].T

        qkv = np.concatenate([projection(part) for part in ("query", "key", "value")], axis=1)
        bias = np.concatenate([weights[f"{source}attention.self.{part}.bias"] for part in ("query", "key", "value")])
        attended = self._node(
            "Attention",
            [hidden, self._tensor(name + "qkv", qkv), self._tensor(name + "qkv_bias", bias), mask],
            name + "attention",
            _MICROSOFT,
            num_heads=self._heads,
        )
        mixed = self._dense(attended, f"{source}attention.output.dense", name + "mix")
        normal = self._skip_norm(mixed, hidden, f"{source}attention.output", name + "normal")
        wide = self._dense(normal, f"{source}intermediate.dense", name + "wide")
        bias_name = self._tensor(name + "wide_bias", weights[f"{source}intermediate.dense.bias"])
        active = self._node("BiasGelu", [wide, bias_name], name + "active", _MICROSOFT)
        narrow = self._dense(active, f"{source}output.dense", name + "narrow")
        return self._skip_norm(narrow, normal, f"{source}output", name + "out")

    def _dense(self, value: str, source: str, name: str) -> str:
        """The product alone; the bias is folded into the node that follows."""
        weight = self._tensor(name + "_weight", self._weights[f"{source}.weight"].T)
        return self._node("MatMul", [value, weight], name)

    def _skip_norm(self, value: str, skip: str, source: str, name: str) -> str:
        parts = {"gamma": "LayerNorm.weight", "beta": "LayerNorm.bias", "bias": "dense.bias"}
        tensors = [self._tensor(f"{name}_{part}", self._weights[f"{source}.{key}"]) for part, key in parts.items()]
        inputs = [value, skip, *tensors]
        return self._node("SkipLayerNormalization", inputs, name, _MICROSOFT, epsilon=self._epsilon)

    def _pool(self, hidden: str, mask: str) -> int:
        """The chosen poolings side by side, normalised as a whole; returns their width."""
        pooled = [self._cls(hidden) if kind == "cls" else self._mean(hidden, mask) for kind in self._pooling]
        joined = self._node("Concat", pooled, "pooled", axis=1) if len(pooled) > 1 else pooled[0]
        self._node("LpNormalization", [joined], "embedding", axis=1, p=2)
        return len(pooled) * len(self._weights["embeddings.LayerNorm.weight"])

    def _cls(self, hidden: str) -> str:
        return self._node("Gather", [hidden, "zero"], "cls", axis=1)

    def _mean(self, hidden: str, mask: str) -> str:
        """The mean over real tokens, up to a factor where it is the only pooling: normalising removes it."""
        last, middle = self._tensor("last", np.array([2], np.int64)), self._tensor("middle", np.array([1], np.int64))
        self._node("Cast", [mask], "mask_float", to=TensorProto.FLOAT)
        self._node("Unsqueeze", ["mask_float", last], "mask_column")
        self._node("Mul", [hidden, "mask_column"], "kept")
        self._node("ReduceSum", ["kept", middle], "sum", keepdims=0)
        self._node("ReduceSum", ["mask_float", middle], "count", keepdims=1)
        return self._node("Div", ["sum", "count"], "mean")
