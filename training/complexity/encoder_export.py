"""Export a sentence encoder for serving: an ONNX graph, quantised to int8, compared with its reference by cosine."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from router_ml.bundles.format import ENCODER, TOKENIZER
from router_ml.decide.features.onnx import MAX_TOKENS, OnnxEmbedder
from router_ml.decide.features.sentence_transformer import SentenceTransformerEmbedder
from router_ml.errors import EncoderError
from training.complexity.bert_graph import BertGraph, middle_layer

log = logging.getLogger(__name__)

MIN_FLOAT_COSINE = 0.999  # of the exported float graph, on every text
MIN_QUANTISED_MEAN_COSINE = 0.99
RANGE_TEXTS = 160  # on which activation ranges are measured


@dataclass(frozen=True, slots=True)
class Exported:
    """Agreement of the exported files with the reference encoder."""

    float_cosine_min: float
    quantised_cosine_mean: float
    quantised_cosine_min: float
    quantised: bool
    bytes: int


def export_encoder(encoder: Any, folder: Path, texts: Sequence[str]) -> Exported:
    """Write `encoder.onnx` (int8) and `tokenizer.json` of a sentence-transformers model into a folder.

    The float graph must agree with the model's own `encode` on `texts`; where the int8 graph does not, the float graph
    is kept. Raises `EncoderError` if even that disagrees."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(encoder, folder / TOKENIZER)
    reference = reference_vectors(encoder, texts)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        float_path, int8_path = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
        onnx.save(_graph(encoder), float_path)
        exact = _cosines(float_path, folder / TOKENIZER, texts, reference)
        if exact.min() < MIN_FLOAT_COSINE:
            raise EncoderError(
                f"the exported encoder disagrees with its model: cosine {exact.min():.4f} on one text, "
                f"{MIN_FLOAT_COSINE} needed; choose another --encoder"
            )
        for bits in (7, 8):
            _quantise(encoder, float_path, int8_path, bits, texts)
            rough = _cosines(int8_path, folder / TOKENIZER, texts, reference)
            quantised = bool(rough.mean() >= MIN_QUANTISED_MEAN_COSINE)
            if quantised:
                break
        else:
            log.warning(
                "int8 is not exact enough for this encoder (mean cosine %.4f); it is exported in float", rough.mean()
            )
        shutil.move(int8_path if quantised else float_path, folder / ENCODER)
    size = (folder / ENCODER).stat().st_size
    return Exported(float(exact.min()), float(rough.mean()), float(rough.min()), quantised, size)


def reference_vectors(encoder: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors (n, dim) of length 1 that the exported encoder should give, computed by the model itself.

    The sentence vector and, for a plain BERT, the mean of its middle layer beside it."""
    top = SentenceTransformerEmbedder("reference", model=encoder, max_tokens=MAX_TOKENS).embed(texts)
    if not (_is_plain_bert(encoder) and middle_layer(encoder[0].auto_model.config.num_hidden_layers)):
        return top
    middle = np.array([_middle_mean(encoder, text) for text in texts], np.float32).reshape(len(texts), -1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    return np.hstack((top, middle)) * np.float32(0.5**0.5)


def _middle_mean(encoder: Any, text: str) -> NDArray[np.float32]:
    import torch

    body = encoder[0].auto_model
    ids = encoder.tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = body(input_ids=ids.to(encoder.device), output_hidden_states=True).hidden_states
    mean: NDArray[np.float32] = states[middle_layer(body.config.num_hidden_layers)][0].float().mean(0).cpu().numpy()
    return mean


def widened(weights: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return weights (k, d) on a model's sentence vector as weights (k, dim) on its exported vector.

    The middle layer's part gets none, and the rest is shorter there by a factor of the square root of 2."""
    beside = dim - weights.shape[1]
    if not beside:
        return weights
    return np.hstack((weights * np.float32(2**0.5), np.zeros((len(weights), beside), np.float32)))


def _cosines(model: Path, tokenizer: Path, texts: Sequence[str], reference: Any) -> Any:
    return (OnnxEmbedder(model, tokenizer).embed(texts) * reference).sum(axis=1)


def _write_tokenizer(encoder: Any, path: Path) -> None:
    """Write the tokenizer without the padding and truncation it was published with; serving sets its own."""
    backend = encoder.tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.save(str(path), pretty=False)


def _graph(encoder: Any, bits: int | None = None, texts: Sequence[str] = ()) -> onnx.ModelProto:
    """Return the direct graph of a BERT encoder, else the traced modules (in float alone).

    Activation ranges of an int8 graph are measured on `texts`."""
    if not _is_plain_bert(encoder):
        return _traced(encoder)
    body = encoder[0].auto_model
    return BertGraph(
        {name: value.detach().float().cpu().numpy() for name, value in body.state_dict().items()},
        layers=body.config.num_hidden_layers,
        heads=body.config.num_attention_heads,
        epsilon=body.config.layer_norm_eps,
        pooling=_pooling_modes(encoder) or (),
        bits=bits,
        activation_ranges=_activation_ranges(encoder, texts) if texts else None,
    ).build()


def _activation_ranges(encoder: Any, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value of each input column of the products that SmoothQuant can scale."""
    import torch

    largest: dict[str, Any] = {}
    hooks = []
    for index, layer in enumerate(encoder[0].auto_model.encoder.layer):
        for name, product in (
            ("mix", layer.attention.output.dense),
            ("wide", layer.intermediate.dense),
            ("narrow", layer.output.dense),
        ):

            def measure(_: Any, inputs: Any, name: str = f"l{index}_{name}") -> None:
                now = inputs[0].detach().float().abs().amax((0, 1))
                largest[name] = torch.maximum(largest[name], now) if name in largest else now

            hooks.append(product.register_forward_pre_hook(measure))
    with torch.inference_mode():
        for text in texts[:RANGE_TEXTS]:  # one by one: padding would be measured, too
            ids = encoder.tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
            encoder[0].auto_model(input_ids=ids.to(encoder.device))
    for hook in hooks:
        hook.remove()
    return {name: value.cpu().numpy() for name, value in largest.items()}


def _is_plain_bert(encoder: Any) -> bool:
    config = encoder[0].auto_model.config
    return config.model_type == "bert" and config.hidden_act == "gelu" and _pooling_modes(encoder) is not None


def _pooling_modes(encoder: Any) -> tuple[str, ...] | None:
    """Return the poolings of a plain transformer + pooling (+ normalise) model; None if it has further parts."""
    kinds = [type(module).__name__ for module in encoder]
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        return None
    mode = encoder[1].pooling_mode
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    return modes if set(modes) <= {"cls", "mean"} else None


def _traced(encoder: Any) -> onnx.ModelProto:
    """Return the graph of any other architecture, by tracing the model's own modules."""
    import torch

    names = [n for n in ("input_ids", "attention_mask", "token_type_ids") if n in encoder.tokenizer.model_input_names]

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modules_in_order = torch.nn.ModuleList(list(encoder))

        def forward(self, *inputs: Any) -> Any:
            features: dict[str, Any] = dict(zip(names, inputs, strict=True))
            for module in self.modules_in_order:
                features = module(features)
            return torch.nn.functional.normalize(features["sentence_embedding"], dim=1)

    sample = encoder.tokenizer(["export", "an encoder of another kind"], padding=True, return_tensors="pt")
    axes: dict[str, dict[int, str]] = {name: {0: "batch", 1: "tokens"} for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        path = str(Path(scratch) / "traced.onnx")
        torch.onnx.export(
            Traced().eval(),
            tuple(sample[name] for name in names),
            path,
            input_names=names,
            output_names=["embedding"],
            dynamic_axes={**axes, "embedding": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
        return onnx.load(path)


def _quantise(encoder: Any, float_graph: Path, target: Path, bits: int, texts: Sequence[str] = ()) -> None:
    """Write int8 weights, signed, per channel; activations are quantised dynamically.

    With weights of 7 bits, processors whose int8 products saturate (AVX2 and AVX-512 without VNNI) give the same
    results."""
    if _is_plain_bert(encoder):
        onnx.save(_graph(encoder, bits, texts), target)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(_is_useful)
    quantize_dynamic(
        str(float_graph),
        str(target),
        per_channel=True,
        reduce_range=bits < 8,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _is_useful(record: logging.LogRecord) -> bool:
    """Drop the quantiser's advice on a pre-processing that fused operators do not need."""
    return "pre-processing before quantization" not in record.getMessage()


def self_check_vectors(embedder: OnnxEmbedder, texts: Sequence[str]) -> Any:
    """Return the vectors that a serving machine compares its own with."""
    return np.asarray(embedder.embed(texts), dtype=np.float16)
