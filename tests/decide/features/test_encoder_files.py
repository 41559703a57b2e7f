"""An encoder's files that need never end are refused before native code reads them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from router_ml.bundles.format import write_manifest
from router_ml.bundles.native import check_graph, check_tokenizer
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.router import Router
from router_ml.errors import BundleCorrupt, EncoderError
from router_ml.settings import CHECKOUT

SHIPPED = CHECKOUT / "models" / "default"


def _endless(path: Path) -> None:
    flag, number = TensorProto.BOOL, TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Identity", ["ci"], ["co"]), helper.make_node("Mul", ["vi", "vi"], ["vo"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("ci", flag, []),
         helper.make_tensor_value_info("vi", number, [1, 4])],
        [helper.make_tensor_value_info("co", flag, []), helper.make_tensor_value_info("vo", number, [1, 4])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["m", "c", "v"], ["out"], body=body)],
        "graph",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])],
        [helper.make_tensor_value_info("out", number, ["b", 4])],
        [onnx.numpy_helper.from_array(np.array(2**62), "m"), onnx.numpy_helper.from_array(np.array(True), "c"),
         onnx.numpy_helper.from_array(np.ones((1, 4), np.float32), "v")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), path)


def test_a_graph_with_a_loop_is_refused(tmp_path: Path) -> None:
    _endless(tmp_path / "encoder.onnx")
    with pytest.raises(EncoderError, match=r"unbounded \(operator 'Loop'"):
        OnnxEmbedder(tmp_path / "encoder.onnx", SHIPPED / "tokenizer.json")
    check_graph(SHIPPED / "encoder.onnx")


_DOUBLE = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [_DOUBLE] * 24}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [_DOUBLE] * 7}] * 7}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 24}},
    ],
)
def test_a_tokenizer_that_blows_a_text_up_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads((SHIPPED / "tokenizer.json").read_text()) | change))
    with pytest.raises(EncoderError, match="times longer"):
        check_tokenizer(path)


@pytest.mark.parametrize(
    "change",
    [
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    ],
)  # fmt: skip
def test_a_panic_of_the_tokenizer_is_no_end_of_the_process(change: dict[str, Any], tmp_path: Path) -> None:
    bundle = tmp_path / "panics"
    shutil.copytree(SHIPPED, bundle)
    path = bundle / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_manifest(bundle, {"name": "forged", "metrics": {}})
    with pytest.raises((BundleCorrupt, EncoderError)):
        Router.load(bundle)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_an_encoder_runs_in_a_forked_process(threads: int) -> None:
    encoder = OnnxEmbedder(SHIPPED / "encoder.onnx", SHIPPED / "tokenizer.json", threads=threads, workers=2)
    texts = ["check email", "book a flight to Rome", "what time is it"]
    before = encoder.embed(texts)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.allclose(encoder.embed(texts), before) else 1)
    assert os.waitpid(child, 0)[1] == 0
