"""Bundles with right hashes and wrong contents are typed errors in bounded time; rules serve instead."""

from __future__ import annotations

import contextlib
import io
import json
import math
import random
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from router_ml.bundles import arrays as bounded_arrays
from router_ml.bundles.format import ARRAYS, CATALOGUE, ENCODER, HEADS, MANIFEST, TOKENIZER, load_bundle, write_manifest
from router_ml.bundles.native import within_cpu_time
from router_ml.decide.router import Router
from router_ml.errors import BundleCorrupt, BundleError, EncoderError, RouterError
from router_ml.serve.build import bundle_routers
from router_ml.settings import Settings
from tests.timing import PATIENCE_S

Json = Any


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def sign(bundle: Path) -> None:
    write_manifest(bundle, {"name": "forged", "metrics": {}})


def change(bundle: Path, file: str, edit: Callable[[Json], object]) -> None:
    data = json.loads((bundle / file).read_text())
    edit(data)
    (bundle / file).write_text(json.dumps(data))
    sign(bundle)


def refused_and_ruled(bundle: Path, match: str | None = None) -> None:
    """Check that the bundle is a typed error, and that the rules serve and say why."""
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    with pytest.raises((BundleError, EncoderError), match=match):
        Router.load(bundle)
    decision = Router.load_or_heuristic(settings=Settings(bundle=bundle)).decide("check email")
    assert time.process_time() - started_cpu_s < 4.0
    assert time.monotonic() - started_s < PATIENCE_S
    assert decision.bundle == "heuristic"
    assert "heuristic: " in decision.reason


def graph_of(*nodes: Any, weights: Any = (), width: int = 32) -> bytes:
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "t"])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["b", width])]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", inputs, outputs, list(weights)),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 9
    return bytes(model.SerializeToString())


def constant(value: float) -> bytes:
    weights = [numpy_helper.from_array(np.full((1, 32), value, np.float32), "w")]
    return graph_of(helper.make_node("Identity", ["w"], ["embedding"]), weights=weights)


def endless() -> bytes:
    one = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("v", 1, [1, 32])]
    out = [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("w", 1, [1, 32])]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Mul", ["v", "v"], ["w"])],
        "b",
        [count, *one],
        out,
    )
    weights = [
        numpy_helper.from_array(np.array(2**62, np.int64), "m"),
        numpy_helper.from_array(np.array(True), "go"),
        numpy_helper.from_array(np.ones((1, 32), np.float32), "start"),
    ]
    return graph_of(helper.make_node("Loop", ["m", "go", "start"], ["embedding"], body=body), weights=weights)


def enormous() -> bytes:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    return graph_of(helper.make_node("ConstantOfShape", ["shape"], ["embedding"]), weights=[shape])


def outside() -> bytes:
    weight = numpy_helper.from_array(np.ones((1, 32), np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "../../secret")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    return graph_of(helper.make_node("Identity", ["w"], ["embedding"]), weights=[weight])


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (constant(math.nan), "cosine nan"),
        (constant(0.1), "cosine"),
        (endless(), "unbounded"),
        (enormous(), "too large"),
        (outside(), "outside the bundle"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "not an ONNX model"),
    ],
)
def test_an_encoder_that_cannot_serve(bundle: Path, model: bytes, problem: str) -> None:
    (bundle / ENCODER).write_bytes(model)
    sign(bundle)
    refused_and_ruled(bundle, problem)


_DOUBLE = {"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}
_TRAP = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
_NO_TOKEN = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [],
             "special_tokens": {}}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        {"normalizer": {"type": "Sequence", "normalizers": [_DOUBLE] * 24}},
        {"normalizer": _TRAP},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////f39/f39/f39/f38="}},
        {"post_processor": _NO_TOKEN},
        {"model": 5},
        {"added_tokens": [{}] * 100_001},
    ],
)
def test_a_tokenizer_that_cannot_serve(bundle: Path, changed: dict[str, Any]) -> None:
    change(bundle, TOKENIZER, lambda data: data.update(changed))
    refused_and_ruled(bundle)


@pytest.mark.parametrize("name", ["complexity/weights", "complexity/bias", "self_check/vectors"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_heads_that_are_no_numbers(bundle: Path, name: str, value: float) -> None:
    with np.load(bundle / ARRAYS) as archive:
        stored = dict(archive)
    stored[name] = np.full_like(stored[name], value)
    np.savez(bundle / ARRAYS, **stored)
    sign(bundle)
    refused_and_ruled(bundle, "NaN or infinity")


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(outcomes=5),
        lambda d: d.update(outcomes=[1]),
        lambda d: d.update(outcomes={"models": [None]}),
        lambda d: d.update(outcomes={"models": ["qwen3:8b"], "basis": 1e999}),
        lambda d: d.update(outcomes={"profiles": [{"name": 5}]}),
        lambda d: d.update(self_check=["x" * 10**6]),
        lambda d: d.update(self_check=["x"] * 1000),
        lambda d: d.update(self_check=5),
    ],
)
def test_heads_of_the_wrong_kind(bundle: Path, edit: Callable[[Json], object]) -> None:
    change(bundle, HEADS, edit)
    refused_and_ruled(bundle)


def _npz(name: str, header: str, data: bytes = b"") -> bytes:
    raw = header.encode().ljust(118) + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data)
    return out.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "{'descr': '<U9', 'fortran_order': False, 'shape': (1,)}",
        "__import__('os').abort()",
    ],
)
def test_an_array_that_is_not_what_its_header_says(bundle: Path, header: str) -> None:
    (bundle / ARRAYS).write_bytes(_npz("complexity/weights", header))
    sign(bundle)
    refused_and_ruled(bundle, ARRAYS)


def test_an_archive_that_unpacks_without_end(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_arrays, "MAX_ARRAY_BYTES", 1_000_000)
    (bundle / ARRAYS).write_bytes(
        _npz("x", "{'descr': '|u1', 'fortran_order': False, 'shape': (2000000,)}", bytes(2_000_000))
    )
    assert (bundle / ARRAYS).stat().st_size < 10_000
    sign(bundle)
    refused_and_ruled(bundle, "unpacks to more")


def test_hosts_in_a_bundle_are_ignored(bundle: Path) -> None:
    entry = {"name": "better:1b", "hosts": ["http://evil.example"], "prior": {"latency_s": 0.1, "success": 1.0}}
    change(bundle, CATALOGUE, lambda d: d["models"][0].update(hosts=["http://evil.example"]))
    change(bundle, HEADS, lambda d: d.update(outcomes={"profiles": [entry]}))
    router = Router.load(bundle)
    assert "better:1b" in router.catalogue
    assert [model.hosts for model in router.models] == [()] * 4


def test_a_bundle_that_cannot_be_read_is_a_typed_error(bundle: Path) -> None:
    for name in (MANIFEST, ENCODER):
        (bundle / name).unlink()
        (bundle / name).mkdir()
        refused_and_ruled(bundle)


def test_a_variant_whose_bundle_cannot_be_loaded_costs_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = (bundle / HEADS).read_bytes()
    change(bundle, HEADS, lambda d: d.update(outcomes=5))
    loads: list[object] = []
    load = Router.load
    monkeypatch.setattr(Router, "load", lambda path, **options: loads.append(path) or load(path, **options))
    router_of = bundle_routers(Settings())
    for _ in range(3):
        with pytest.raises(BundleCorrupt):
            router_of(str(bundle))
    assert len(loads) == 1
    time.sleep(0.02)  # the clock of the file system ticks in hundredths of a second
    (bundle / HEADS).write_bytes(sound)
    sign(bundle)
    assert router_of(str(bundle)) is router_of(str(bundle))
    assert len(loads) == 2


def test_work_without_end_is_given_up() -> None:
    ended = threading.Event()

    def spin() -> None:
        while not ended.is_set():
            pass

    try:
        with pytest.raises(EncoderError, match="processor time"):
            within_cpu_time(spin, 0.2)
    finally:
        ended.set()
    with pytest.raises(BaseException, match="panic"):
        within_cpu_time(_panic, 1.0)


class PanicException(BaseException):
    """What a Rust library raises is no `Exception`."""


def _panic() -> None:
    raise PanicException("panic")


def test_an_encoder_that_panics_while_serving_leaves_the_decision_to_the_rules(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = Router.load(bundle)
    monkeypatch.setattr(router._features, "extract", lambda *_: _panic())
    assert "heuristic: the encoder failed (panic)" in router.decide("check email").reason


def _corrupt(bundle: Path, rng: random.Random) -> None:
    """Change some bytes, or one value, of one file."""
    name = rng.choice([ENCODER, TOKENIZER, HEADS, ARRAYS, CATALOGUE, MANIFEST])
    path = bundle / name
    data = bytearray(path.read_bytes())
    if name.endswith(".json") and rng.random() < 0.5:
        tree = json.loads(data)
        _replace_one(tree, rng)
        data = bytearray(json.dumps(tree).encode())
    elif rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(bytes(data))
    if name != MANIFEST:
        sign(bundle)


def _replace_one(tree: Json, rng: random.Random) -> None:
    inner = [tree]
    for node in inner:
        inner += [
            child for child in (node.values() if isinstance(node, dict) else node) if isinstance(child, dict | list)
        ]
    node = rng.choice([node for node in inner if node])
    key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
    node[key] = rng.choice([None, True, -1, 0, 10**400, 1e999, "", "\ud800", [], {}, [[[]]], "x" * 10_000])


def test_random_corruptions_end_in_a_sound_bundle_or_a_typed_error(tiny_bundle: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    for trial in range(200):
        bundle = Path(shutil.copytree(tiny_bundle, tmp_path / str(trial)))
        _corrupt(bundle, rng)
        started_s = time.process_time()
        with contextlib.suppress(RouterError):
            json.dumps(Router.load(bundle).decide("check email").as_dict(), allow_nan=False)
        assert time.process_time() - started_s < 2.0
        shutil.rmtree(bundle)


def test_a_sound_bundle_still_loads(bundle: Path) -> None:
    assert not Router.load(bundle).degraded
    assert load_bundle(bundle).config["self_check"]
