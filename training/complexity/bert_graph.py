"""Write a BERT encoder as an ONNX graph, pooling and normalising included, in float or with int8 weights.

Tracing a PyTorch module leaves shape arithmetic between the operators; written directly, a layer is twelve nodes, each
the fastest that onnxruntime has for it on a processor (`python -m benchmarks.speed --only operators`). All rows of a
batch have the same number of tokens: attention and pooling then need no mask, which is cheaper than padding.
The operators of the domain `com.microsoft` are documented in onnxruntime's ContribOperators.md.
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
LARGEST_WEIGHT = {8: 127, 7: 64}  # by number of bits
SMOOTHQUANT_ALPHA = {"mix": 0.7, "wide": 0.7, "narrow": 0.9}  # share of the range moved from input to weights
_MICROSOFT = "com.microsoft"


def middle_layer(layers: int) -> int:
    """Return after how many layers the middle of an encoder is read; 0 for one too shallow to have a middle.

    Tuning for one task changes the upper layers most; the middle layer still represents the topic of a text."""
    return layers // 2


def quantise(weights: NDArray[np.float32], bits: int, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantise symmetrically to int8: return whole numbers, and scales along `axis`, whose product is the weights."""
    scale = np.abs(weights).max(axis=axis, keepdims=True) / LARGEST_WEIGHT[bits]
    scale = np.where(scale == 0, 1.0, scale).astype(np.float32)
    return np.round(weights / scale).astype(np.int8), scale


def smoothquant_scale(
    activation_range: NDArray[np.float32], kernel: NDArray[np.float32], alpha: float
) -> NDArray[np.float32]:
    """Return factors (n,) to divide a product's input by and to multiply its weights (n, m) with.

    The product stays the same, and no single column of the input takes up the range that all share.
    `activation_range` (n,) is the largest absolute value of each column. Source: SmoothQuant, Xiao et al. 2022, arXiv
    2211.10438, eq. 4."""
    largest = np.maximum(np.abs(kernel).max(axis=1), 1e-5)
    factor = np.maximum(activation_range, 1e-5) ** alpha / largest ** (1 - alpha)
    centred: NDArray[np.float32] = (factor / np.exp(np.log(factor).mean())).astype(np.float32)
    return centred


class BertGraph:
    """The nodes and weights of one encoder.

    `bits` is None for float, 8 or 7 for int8 weights with dynamically quantised activations. `activation_ranges` holds
    the largest absolute value of each input column of the products `l0_mix`, `l0_wide`, `l0_narrow`, and so on."""

    def __init__(
        self,
        weights: Weights,
        *,
        layers: int,
        heads: int,
        epsilon: float,
        pooling: tuple[str, ...],
        bits: int | None = None,
        activation_ranges: Weights | None = None,
    ) -> None:
        self._weights, self._layers, self._heads = weights, layers, heads
        self._epsilon, self._pooling, self._bits = epsilon, pooling, bits
        self._ranges: Weights = activation_ranges if activation_ranges is not None and bits is not None else {}
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def build(self) -> onnx.ModelProto:
        """Return the graph: `input_ids` (batch, tokens), without padding, to `embedding` (batch, dim) of length 1."""
        hidden = self._embed()
        middle = ""
        for index in range(self._layers):
            hidden = self._layer(hidden, f"encoder.layer.{index}.", f"l{index}_")
            middle = hidden if index + 1 == middle_layer(self._layers) else middle
        dim = self._pool(hidden, middle)
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

    def _embed(self) -> str:
        weights = self._weights
        types = weights["embeddings.token_type_embeddings.weight"][0]
        positions = self._tensor("positions", weights["embeddings.position_embeddings.weight"] + types)
        self._node("Shape", ["input_ids"], "n_tokens", start=1, end=2)
        self._node("Slice", [positions, self._tensor("first", np.array([0], np.int64)), "n_tokens"], "places")
        self._node("Sum", [self._words(weights["embeddings.word_embeddings.weight"]), "places"], "embedded")
        return self._norm("embedded", "embeddings", "hidden")

    def _words(self, table: NDArray[np.float32]) -> str:
        """Add the rows of the word table; in int8 each word has a scale of its own."""
        if self._bits is None:
            return self._node("Gather", [self._tensor("words", table), "input_ids"], "word")
        values, scale = quantise(table, 8, axis=1)  # nothing is summed up here, so all bits are safe
        self._node("Gather", [self._tensor("words", values), "input_ids"], "word_int8")
        self._node("Gather", [self._tensor("word_scales", scale), "input_ids"], "word_scale")
        self._node("Cast", ["word_int8"], "word_float", to=TensorProto.FLOAT)
        return self._node("Mul", ["word_float", "word_scale"], "word")

    def _layer(self, hidden: str, source: str, name: str) -> str:
        parts = ("query", "key", "value")
        kernels = [self._weights[f"{source}attention.self.{part}.weight"].T for part in parts]
        biases = [self._weights[f"{source}attention.self.{part}.bias"] for part in parts]
        mix = self._weights[f"{source}attention.output.dense.weight"].T
        factor = self._factor(mix, name + "mix")
        if factor is not None:  # attention mixes the values column by column, so they can be scaled
            kernels[2], biases[2], mix = kernels[2] / factor, biases[2] / factor, mix * factor[:, None]
        qkv = self._product(hidden, np.concatenate(kernels, axis=1), np.concatenate(biases), name + "qkv")
        split = [name + part for part in parts]
        self._nodes.append(helper.make_node("Split", [qkv], split, name=name + "split", axis=2))
        attended = self._node("MultiHeadAttention", split, name + "attention", _MICROSOFT, num_heads=self._heads)
        mixed = self._product(attended, mix, self._weights[f"{source}attention.output.dense.bias"], name + "mix")
        normal = self._add_norm(mixed, hidden, f"{source}attention.output", name + "normal")
        wide = self._dense(normal, f"{source}intermediate.dense", name + "wide")
        active = self._node("Gelu", [wide], name + "active", _MICROSOFT)
        narrow = self._dense(active, f"{source}output.dense", name + "narrow")
        return self._add_norm(narrow, normal, f"{source}output", name + "out")

    def _dense(self, value: str, source: str, name: str) -> str:
        kernel = self._weights[f"{source}.weight"].T
        factor = self._factor(kernel, name)
        if factor is not None:
            value = self._node("Mul", [value, self._tensor(name + "_ease", 1 / factor)], name + "_eased")
            kernel = kernel * factor[:, None]
        return self._product(value, kernel, self._weights[f"{source}.bias"], name)

    def _factor(self, kernel: NDArray[np.float32], name: str) -> NDArray[np.float32] | None:
        columns = self._ranges.get(name)
        alpha = SMOOTHQUANT_ALPHA[name.split("_")[1]]
        return None if columns is None else smoothquant_scale(columns, kernel, alpha)

    def _product(self, value: str, kernel: NDArray[np.float32], bias: NDArray[np.float32], name: str) -> str:
        bias_name = self._tensor(name + "_bias", bias)
        if self._bits is None:
            self._node("MatMul", [value, self._tensor(name + "_weight", kernel)], name + "_product")
            return self._node("Add", [name + "_product", bias_name], name)
        values, scale = quantise(kernel, self._bits, axis=0)
        weight = [self._tensor(name + "_weight", values), self._tensor(name + "_scale", scale.ravel())]
        return self._node("DynamicQuantizeMatMul", [value, *weight, "", bias_name], name, _MICROSOFT)

    def _add_norm(self, value: str, skip: str, source: str, name: str) -> str:
        """Add by `Sum`, since `Add` would be fused into SkipLayerNormalization, which takes eight times as long."""
        return self._norm(self._node("Sum", [value, skip], name + "_sum"), source, name)

    def _norm(self, value: str, source: str, name: str) -> str:
        gamma = self._tensor(name + "_gamma", self._weights[f"{source}.LayerNorm.weight"])
        beta = self._tensor(name + "_beta", self._weights[f"{source}.LayerNorm.bias"])
        return self._node("LayerNormalization", [value, gamma, beta], name, axis=-1, epsilon=self._epsilon)

    def _pool(self, hidden: str, middle: str) -> int:
        """Add the chosen poolings and, with equal weight, the mean of the middle layer; return the width."""
        pooled = [self._cls(hidden) if kind == "cls" else self._mean(hidden, "mean") for kind in self._pooling]
        joined = self._node("Concat", pooled, "pooled", axis=1) if len(pooled) > 1 else pooled[0]
        width = len(self._weights["embeddings.LayerNorm.weight"])
        if not middle:
            self._node("LpNormalization", [joined], "embedding", axis=1, p=2)
            return len(pooled) * width
        top = self._node("LpNormalization", [joined], "top", axis=1, p=2)
        subject = self._node("LpNormalization", [self._mean(middle, "middle_mean")], "subject", axis=1, p=2)
        both = self._node("Concat", [top, subject], "both", axis=1)
        self._node("LpNormalization", [both], "embedding", axis=1, p=2)
        return (len(pooled) + 1) * width

    def _cls(self, hidden: str) -> str:
        return self._node("Gather", [hidden, self._tensor("zero", np.array(0, dtype=np.int64))], "cls", axis=1)

    def _mean(self, hidden: str, name: str) -> str:
        return self._node("ReduceMean", [hidden], name, axes=[1], keepdims=0)
