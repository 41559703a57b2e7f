"""Compare decisions with the least time this machine could take, and show where the rest of the time goes."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.stopwatch import Call, Row, Samples, alone, interleaved
from router_ml.decide.features.onnx import OnnxEmbedder

PASSAGE = (
    "please find a free hour with the whole design team next week and book the small meeting room for it then mail "
    "everyone the agenda with the open points from the last review and remind me the day before to print the plans "
    "and to call the supplier about the missing parts so that we can decide on the order before the end of the month"
)
LENGTHS = (8, 16, 32, 64)  # tokens, with the marks at both ends
SHOWN = 3  # operators beside the products


def text_of(n_tokens: int, embedder: OnnxEmbedder) -> str:
    """Return words of the passage that make so many tokens."""
    words = PASSAGE.split() * 2
    sizes = [embedder.count_tokens(" ".join(words[:n])) for n in range(1, len(words))]
    return " ".join(words[: 1 + next(i for i, size in enumerate(sizes) if size >= n_tokens)])


class Floor(NamedTuple):
    """The least time of an encoder pass's products on this machine (the roofline: Williams et al., CACM 2009).

    Their operations at the highest measured rate, or reading their weights once, whichever is longer."""

    operations_per_token: int
    weight_bytes: int
    operations_per_s: float
    bytes_per_s: float

    def seconds(self, n_tokens: int) -> float:
        """Return the least time of a pass over so many tokens."""
        return max(self.arithmetic_s(n_tokens), self.reading_s)

    def arithmetic_s(self, n_tokens: int) -> float:
        """Return the time of the operations alone."""
        return self.operations_per_token * n_tokens / self.operations_per_s

    @property
    def reading_s(self) -> float:
        """Time of reading the weights once."""
        return self.weight_bytes / self.bytes_per_s


def limit(bundle: Path, rounds: int) -> Iterator[Row]:
    """Compare each step of an encoder pass with the least it could take on this machine."""
    floor = _floor(bundle, rounds)
    yield {"what": "int8 product, all in the cache", "gops": floor.operations_per_s / 1e9}
    weights = f"{floor.weight_bytes / 1e6:.1f} MB of weights"
    yield {"what": f"reading {weights}", "gb_per_s": floor.bytes_per_s / 1e9, "floor_us": floor.reading_s * 1e6}
    embedder = OnnxEmbedder(bundle / "encoder.onnx", bundle / "tokenizer.json")
    for length in LENGTHS:
        text = text_of(length, embedder)
        row = alone(partial(embedder.embed, [text]), rounds)
        floor_us = floor.seconds(length) * 1e6
        yield {
            "what": f"{length} tokens, {floor.operations_per_token * length / 1e6:.0f} Mop, whole pass",
            "arithmetic_us": floor.arithmetic_s(length) * 1e6,
            "floor_us": floor_us,
            "cpu_p50_us": row["cpu_p50_us"],
            "ratio": row["cpu_p50_us"] / floor_us,
        }
        yield from _steps(bundle / "encoder.onnx", embedder._tokens(text), length, floor_us, rounds)


def _floor(bundle: Path, rounds: int) -> Floor:
    import onnx

    graph = onnx.load(bundle / "encoder.onnx").graph
    shapes = [i.dims for i in graph.initializer if i.name.endswith("_weight") and len(i.dims) == 2]
    size = sum(rows * columns for rows, columns in shapes)  # int8: a byte each
    return Floor(2 * size, size, _int8_peak(rounds), _reading_peak(size, rounds))


def _reading_peak(n_bytes: int, rounds: int) -> float:
    """Return the bytes per second at which one thread reads so many repeatedly, wherever they are cached."""
    values = np.ones(n_bytes // 4, np.float32)
    sample = Samples()
    for _ in range(max(rounds, 50)):
        sample.add(partial(values.dot, values))
    return n_bytes / float(np.quantile(sample.cpu_s, 0.1))  # the peak, not the median


def _steps(model: Path, tokens: list[int], length: int, floor_us: float, rounds: int) -> Iterator[Row]:
    """Yield microseconds of one pass by kind of operator, from onnxruntime's own profile."""
    spent = _profile(model, np.array([tokens], np.int64), max(rounds, 20))
    total, products = sum(spent.values()), spent.pop("DynamicQuantizeMatMul", 0.0)
    if products:
        share = products / total
        yield {"what": f"{length} tokens, int8 products", "us": products, "share": share, "ratio": products / floor_us}
    for operator, us in sorted(spent.items(), key=lambda item: -item[1])[:SHOWN]:
        yield {"what": f"{length} tokens, {operator}", "us": us, "share": us / total}


def _profile(model: Path, ids: NDArray[np.int64], rounds: int) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as scratch:
        options.profile_file_prefix = str(Path(scratch) / "pass")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for _ in range(rounds):
            session.run(None, {"input_ids": ids})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    passes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            passes[event["args"]["op_name"], event["name"]].append(event["dur"])
    spent: dict[str, float] = defaultdict(float)
    for (operator, _), us in passes.items():
        spent[operator] += float(np.median(us))
    return spent


def operators(bundle: Path, rounds: int) -> Iterator[Row]:
    """Time the operators that could do each step of a layer: why the encoder's graph is written as it is."""
    rng = np.random.default_rng(0)
    fixed = {name: rng.normal(size=384).astype(np.float32) for name in ("gamma", "beta")}
    split = ("Split", ["qkv"], "q k v", {"axis": 2})
    for length in (16, 64):
        x = rng.normal(size=(1, length, 384)).astype(np.float32)
        two, qkv = {"x": x, "s": x}, {"qkv": np.concatenate((x, x, x), axis=2)}
        mask = {"mask": np.ones((1, length), np.int32)}
        heads = {"num_heads": 12}
        calls: dict[str, Call] = {
            "SkipLayerNormalization": _graph(
                [("SkipLayerNormalization", [*two, "gamma", "beta"], "y", {})], fixed, two
            ),
            "Sum + LayerNormalization": _graph(
                [("Sum", [*two], "z", {}), ("LayerNormalization", ["z", "gamma", "beta"], "y", {})], fixed, two
            ),
            "attention with a mask": _graph(
                [split, ("MultiHeadAttention", ["q", "k", "v", "", "mask"], "y", heads)], {}, qkv | mask
            ),
            "attention without": _graph([split, ("MultiHeadAttention", ["q", "k", "v"], "y", heads)], {}, qkv),
        }
        for name, row in interleaved(calls, rounds * 5).items():
            yield {"what": f"{length} tokens, {name}", "p50_us": row["p50_us"], "cpu_p50_us": row["cpu_p50_us"]}


def _int8_peak(rounds: int) -> float:
    """Return operations per second of onnxruntime's int8 product on one thread, its operands in the cache."""
    rows, inner, columns = 64, 768, 768
    rng = np.random.default_rng(0)
    fixed = {
        "w": rng.integers(-64, 64, (inner, columns)).astype(np.int8),
        "s": np.array(0.01, np.float32),
        "t": np.full(columns, 0.01, np.float32),
        "z": np.array(128, np.uint8),
    }
    feed = {"x": rng.integers(0, 255, (rows, inner)).astype(np.uint8)}
    product = _graph([("MatMulIntegerToFloat", ["x", "w", "s", "t", "z"], "y", {})], fixed, feed)
    sample = Samples()
    for _ in range(max(rounds, 50)):
        sample.add(product)
    return 2 * rows * inner * columns / float(np.quantile(sample.cpu_s, 0.1))  # the peak, not the median


def _graph(nodes: Sequence[tuple[str, list[str], str, dict[str, Any]]], fixed: Row, feed: Row) -> Call:
    """Return a call of a small graph without optimisation; operators unknown to ONNX are onnxruntime's."""
    import onnxruntime
    from onnx import TensorProto, defs, helper, numpy_helper

    built = []
    for op, inputs, output, attributes in nodes:
        domain = "" if defs.has(op, 17) else "com.microsoft"
        built.append(helper.make_node(op, inputs, output.split(), domain=domain, **attributes))
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    graph = helper.make_graph(
        built,
        "small",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in fixed.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, feed)
