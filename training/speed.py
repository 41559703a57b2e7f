"""Measures how fast decisions are, beside what they are usually made with. Ratios, because machines differ.

    python -m training.speed [--bundle D] [--only cold latency ...] [--rounds N] [--json]

Contenders take turns in one process, so that a busy neighbour slows them alike; figures are medians. Each is also
measured in processor time (`cpu`), which waiting for a neighbour does not touch. One thread unless said otherwise.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch and numpy when they are imported

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np

from router_ml import default
from router_ml.catalogue import Catalogue, Model, load_catalogue
from router_ml.config import load_settings
from router_ml.features.extractor import TABLE_NAMES
from router_ml.features.onnx import OnnxEmbedder
from router_ml.features.sentence_transformer import encoder_source, load_sentence_transformer
from router_ml.predictors.forest import MAX_LEAVES
from router_ml.predictors.neighbours import Neighbours
from router_ml.predictors.outcomes import OutcomePredictor
from router_ml.router import Router
from router_ml.schema import EMPTY_CONTEXT, LABELS
from router_ml.shelf import active_bundle

Row: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[[], Any]
PASSAGE = (
    "please find a free hour with the whole design team next week and book the small meeting room for it then mail "
    "everyone the agenda with the open points from the last review and remind me the day before to print the plans "
    "and to call the supplier about the missing parts so that we can decide on the order before the end of the month"
)
LENGTHS = (8, 16, 32, 64)  # tokens, the marks at both ends included
N_BATCH = 256
CALLERS = (1, 2, 8, 32)
MODELS = (3, 10, 100)
STORED = (1_000, 10_000, 100_000)
TREES = 128  # a fit makes 64 for success and 64 for latency, tokens and cost
IN_A_ROW = 5  # calls of one contender before the next has its turn
BASIS, CENTROIDS = 32, 48


class Samples:
    """Wall and processor times of one contender, in seconds."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def add(self, call: Call) -> None:
        """Run once, on the clock."""
        cpu = time.process_time()
        wall = time.perf_counter()  # innermost: the other clock takes most of a microsecond to read
        call()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def row(self) -> Row:
        """Quantiles in microseconds."""
        p50, p95, p99 = (float(x) * 1e6 for x in np.quantile(self.wall_s, (0.5, 0.95, 0.99)))
        cpu50, cpu99 = (float(x) * 1e6 for x in np.quantile(self.cpu_s, (0.5, 0.99)))
        return {"p50_us": p50, "p95_us": p95, "p99_us": p99, "cpu_p50_us": cpu50, "cpu_p99_us": cpu99}


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, Row]:
    """Every contender in turn, a few calls in a row; the first, its caches full of its rivals, does not count."""
    samples = {name: Samples() for name in calls}
    for _ in range(max(1, rounds // IN_A_ROW)):
        for name, call in calls.items():
            call()
            for _ in range(IN_A_ROW):
                samples[name].add(call)
    return {name: sample.row() for name, sample in samples.items()}


# what is measured ---------------------------------------------------------------------------------------------------


def cold(bundle: Path, rounds: int) -> Iterator[Row]:
    """A fresh process up to its first answer: seconds and peak memory."""
    ours = "from router_ml import select_model; select_model('check email')"
    theirs = (
        f"from sentence_transformers import SentenceTransformer as S; S({encoder_source()!r}).encode(['check email'])"
    )
    memory = "; import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    environment = {**os.environ, "ROUTER_ML_BUNDLE": str(bundle), "HF_HUB_OFFLINE": "1"}
    programs = {"router_ml": ours, "sentence-transformers": theirs, "bare interpreter": "pass"}
    wall: dict[str, list[float]] = {name: [] for name in programs}
    peak: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(max(3, rounds // 20)):
        for name, program in programs.items():
            start = time.perf_counter()
            command = [sys.executable, "-c", program + memory]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            wall[name].append(time.perf_counter() - start)
            peak[name].append(int(done.stdout.split()[-1]) / 1024)
    for name in programs:
        yield {
            "what": f"first decision, {name}",
            "seconds": median(wall[name]),
            "peak_mb": median(peak[name]),
            "ratio": median(wall[name]) / median(wall["router_ml"]),
            "memory_ratio": median(peak[name]) / median(peak["router_ml"]),
        }


def latency(bundle: Path, rounds: int) -> Iterator[Row]:
    """One warm decision at several lengths, each contender doing the whole of its work."""
    router = Router.load(bundle)
    embedder = OnnxEmbedder(bundle / "encoder.onnx", bundle / "tokenizer.json")
    contenders = {"router_ml": router.decide, **_baselines()}
    for length in LENGTHS:
        text = _text_of(length, embedder)
        calls: dict[str, Call] = {name: partial(decide, text) for name, decide in contenders.items()}
        rows = interleaved(calls, rounds)
        for name, row in rows.items():
            yield {
                "what": f"{length} tokens, {name}",
                **row,
                "ratio": row["p50_us"] / rows["router_ml"]["p50_us"],
                "cpu_ratio": row["cpu_p50_us"] / rows["router_ml"]["cpu_p50_us"],
            }
        yield {"what": f"{length} tokens, outside the session", "cpu_p50_us": _outside(router, text, rounds)}


def overhead(bundle: Path, rounds: int) -> Iterator[Row]:
    """Everything but the encoder, by the number of models; what is kept; neighbours by the number of stored rows."""
    for n_models, novel in (*((n, False) for n in MODELS), (MODELS[0], True)):
        predictor = OutcomePredictor.from_arrays(*_heads(n_models, novel=novel), Catalogue(tuple(_models(n_models))))
        router = _without_encoder(bundle, predictor)
        what = f"heads and selection, {n_models} models{', a query unlike any' if novel else ''}"
        yield {"what": what, **_alone(partial(router.decide, "x"), rounds * 20)}
    os.environ["ROUTER_ML_BUNDLE"] = str(bundle)
    default.DEFAULT.reset()
    default.select_model("check email")
    yield {"what": "kept decision", **_alone(lambda: default.select_model("check email"), rounds * 20)}
    rng = np.random.default_rng(0)
    for n_rows in STORED:
        keys = _clustered(rng, n_rows)
        stored = Neighbours(keys, rng.random((n_rows, 3), np.float32), 100)
        query = keys[:1] + np.float32(0.01)
        yield {"what": f"kNN head, {n_rows} rows", **_alone(partial(stored, query), rounds * 2)}


def throughput(bundle: Path, rounds: int) -> Iterator[Row]:
    """Many queries of mixed length on all cores, and concurrent callers that each wait for their answer."""
    router = Router.load(bundle)
    texts = _mixed(N_BATCH)
    many = partial(default.select_models, texts, router=router)
    encoder, head = _sentence_encoder(), _sklearn_head()
    walls = {
        name: Samples() for name in ("router_ml", *(f"sentence-transformers, {n} threads" for n in _thread_counts()))
    }
    callers = {n: Samples() for n in CALLERS}
    slowest: dict[int, list[float]] = {n: [] for n in CALLERS}
    for _ in range(max(3, rounds // 10)):
        walls["router_ml"].add(many)
        for n in _thread_counts():
            walls[f"sentence-transformers, {n} threads"].add(partial(_encode_and_judge, encoder, head, texts, n))
        for n in CALLERS:
            waits: list[float] = []
            callers[n].add(partial(_run_crowd, router, texts, n, waits))
            slowest[n].append(max(waits) / median(waits))
    ours = walls["router_ml"].row()
    for name, sample in walls.items():
        row = sample.row()
        yield {"what": f"{N_BATCH} mixed queries, {_cores()} cores, {name}", **_rate(row, ours)}
    for n, sample in callers.items():
        row = sample.row()
        rate = {"per_s": N_BATCH / row["p50_us"] * 1e6, "of_batch": ours["p50_us"] / row["p50_us"]}
        cpu = {"cpu_of_batch": ours["cpu_p50_us"] / row["cpu_p50_us"], "slowest_to_median": median(slowest[n])}
        yield {"what": f"{n} concurrent async callers", **rate, **cpu}


def limit(bundle: Path, rounds: int) -> Iterator[Row]:
    """The encoder's operations over the fastest int8 product of this machine, against what a pass takes."""
    import onnx

    graph = onnx.load(bundle / "encoder.onnx").graph
    matrices = {i.name: list(i.dims) for i in graph.initializer if i.name.endswith("_weight") and len(i.dims) == 2}
    per_token = 2 * sum(rows * columns for rows, columns in matrices.values())
    peak, stored_bytes = _int8_peak(rounds), sum(rows * columns for rows, columns in matrices.values())
    yield {"what": "int8 product in the cache", "gops": peak / 1e9}
    embedder = OnnxEmbedder(bundle / "encoder.onnx", bundle / "tokenizer.json")
    for length in LENGTHS:
        text = _text_of(length, embedder)
        row = _alone(partial(embedder.embed, [text]), rounds)
        floor_us = per_token * length / peak * 1e6
        yield {
            "what": f"{length} tokens, {per_token * length / 1e6:.0f} Mop, {stored_bytes / 1e6:.1f} MB of weights",
            "floor_us": floor_us,
            "cpu_p50_us": row["cpu_p50_us"],
            "ratio": row["cpu_p50_us"] / floor_us,
        }


def operators(bundle: Path, rounds: int) -> Iterator[Row]:
    """Why the encoder's graph is written as it is: each step of a layer by the operators that could do it."""
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


SECTIONS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "cold": cold,
    "latency": latency,
    "overhead": overhead,
    "throughput": throughput,
    "limit": limit,
    "operators": operators,
}

# contenders ---------------------------------------------------------------------------------------------------------


def _baselines() -> dict[str, Callable[[str], Any]]:
    import torch

    torch.set_num_threads(1)
    encoder, head = _sentence_encoder(), _sklearn_head()
    found: dict[str, Callable[[str], Any]] = {
        "sentence-transformers + scikit-learn": lambda text: head.predict_proba(encoder.encode([text]))
    }
    if (semantic := _semantic_router(encoder)) is not None:
        found["semantic-router"] = semantic
    found["XLM-RoBERTa-base classifier"] = _xlm_roberta()
    return found


def _sentence_encoder() -> Any:
    return load_sentence_transformer(device="cpu")


def _sklearn_head() -> Any:
    """A head as large as a real one; what it says does not matter."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    return LogisticRegression().fit(rng.normal(size=(400, 384)), np.arange(400) % len(LABELS))


def _semantic_router(encoder: Any) -> Callable[[str], Any] | None:
    """semantic-router over the same encoder, four routes of twenty utterances; None where it is not installed."""
    if find_spec("semantic_router") is None:
        print("semantic-router is not installed and is left out: pip install semantic-router", file=sys.stderr)
        return None
    semantic_router: Any = import_module("semantic_router")
    encoders: Any = import_module("semantic_router.encoders.base")

    class Encoder(encoders.DenseEncoder):  # type: ignore[misc]
        def __call__(self, docs: list[Any]) -> list[list[float]]:
            vectors: list[list[float]] = encoder.encode(docs).tolist()
            return vectors

        async def acall(self, docs: list[Any]) -> list[list[float]]:
            return self(docs)

    words = PASSAGE.split()
    routes = [
        semantic_router.Route(name=label, utterances=[" ".join(words[i + 20 * n : i + 20 * n + 4]) for i in range(20)])
        for n, label in enumerate(("one", "two"))
    ]
    kind = getattr(semantic_router, "IndexedRouter", None)
    if kind is not None:
        return kind(encoder=Encoder(name="same"), routes=routes)  # type: ignore[no-any-return]
    kind = import_module("semantic_router.routers").SemanticRouter  # before version 1.0
    return kind(encoder=Encoder(name="same"), routes=routes, auto_sync="local")  # type: ignore[no-any-return]


def _xlm_roberta() -> Callable[[str], Any]:
    """A classifier of the size of the published BERT routers, with random weights: only its work counts."""
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

    config = XLMRobertaConfig(
        vocab_size=250_002, num_labels=2, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
    )
    model = XLMRobertaForSequenceClassification(config).eval()
    tokenizer = load_sentence_transformer(device="cpu").tokenizer

    def classify(text: str) -> Any:
        with torch.inference_mode():
            return model(torch.tensor([tokenizer(text)["input_ids"]])).logits

    return classify


# helpers of the sections --------------------------------------------------------------------------------------------


def _alone(call: Call, rounds: int) -> Row:
    return interleaved({"": call}, rounds)[""]


def _text_of(n_tokens: int, embedder: OnnxEmbedder) -> str:
    """Words of the passage that make so many tokens."""
    words = PASSAGE.split() * 2
    sizes = [embedder.count_tokens(" ".join(words[:n])) for n in range(1, len(words))]
    return " ".join(words[: 1 + next(i for i, size in enumerate(sizes) if size >= n_tokens)])


def _mixed(n: int) -> list[str]:
    """Texts as long as real queries are: two to sixty words, most of them short."""
    rng = np.random.default_rng(0)
    words = PASSAGE.split()
    lengths = np.clip(np.exp(rng.normal(2.3, 0.7, n)), 2, 60).astype(int)
    return [" ".join(rng.choice(words, size)) for size in lengths]


def _outside(router: Router, text: str, rounds: int) -> float:
    """Microseconds of a decision that are not spent in the encoder's session."""
    embedder: Any = router._features.embedder  # type: ignore[union-attr]
    session, inside = embedder._session, [0.0]

    class Timed:
        def run(self, *args: Any) -> Any:
            start = time.process_time()
            result = session.run(*args)
            inside[0] = time.process_time() - start
            return result

    embedder._session = Timed()
    outside = []
    for _ in range(rounds):
        start = time.process_time()
        router.decide(text)
        outside.append(time.process_time() - start - inside[0])
    embedder._session = session
    return median(outside) * 1e6


def _thread_counts() -> list[int]:
    return sorted({1, _cores()})


def _encode_and_judge(encoder: Any, head: Any, texts: Sequence[str], n_threads: int) -> None:
    import torch

    torch.set_num_threads(n_threads)
    head.predict_proba(encoder.encode(texts))
    torch.set_num_threads(1)


def _rate(row: Row, ours: Row) -> Row:
    return {
        "per_s": N_BATCH / row["p50_us"] * 1e6,
        "ratio": row["p50_us"] / ours["p50_us"],
        "cpu_ratio": row["cpu_p50_us"] / ours["cpu_p50_us"],
    }


def _run_crowd(router: Router, texts: Sequence[str], n_callers: int, waits: list[float]) -> None:
    asyncio.run(_crowd(router, texts, n_callers, waits))


async def _crowd(router: Router, texts: Sequence[str], n_callers: int, waits: list[float]) -> None:
    """So many callers work through the texts, each asking again as soon as it is answered."""
    todo = iter(texts)

    async def caller() -> None:
        for text in todo:
            start = time.perf_counter()
            await default.aselect_model(text, router=router)
            waits.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(n_callers)))


class _Vectors:
    """An encoder that knows the answer beforehand."""

    name = "none"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._row = np.full((1, dim), dim**-0.5, np.float32)

    def embed(self, texts: Sequence[str]) -> Any:
        return self._row.repeat(len(texts), axis=0)


def _without_encoder(bundle: Path, predictor: OutcomePredictor) -> Router:
    router = Router.load(bundle)
    embedder: Any = router._features.embedder  # type: ignore[union-attr]
    complexity, vectors = router._complexity, _Vectors(embedder.dim)
    features = type(router._features)(vectors)  # type: ignore[call-arg, misc]
    fixed = features.extract(["x"], [EMPTY_CONTEXT])

    class Fixed:
        def extract(self, texts: Sequence[str], contexts: Sequence[Any]) -> Any:
            return fixed

    return Router(
        features=Fixed(), complexity=complexity, outcomes=predictor, catalogue=predictor.catalogue, name="speed"
    )


def _models(n: int) -> list[Model]:
    from dataclasses import replace

    base = list(load_catalogue())
    return [replace(base[i % len(base)], name=f"model-{i}", aliases=()) for i in range(n)]


def _heads(n_models: int, dim: int = 768, *, novel: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outcome heads of the shape a fit exports, with random numbers: success, latency and tokens of each model.

    `novel` makes every query unlike the training queries, which calls for the transfer head."""
    rng = np.random.default_rng(0)
    width, outputs = len(TABLE_NAMES), 3 * n_models
    inputs = dim + width + len(LABELS)
    shape = (MAX_LEAVES - 1, TREES)
    bits = np.uint32 if MAX_LEAVES == 32 else np.uint64
    arrays = {
        "table_centre": np.zeros(width),
        "table_scale": np.ones(width),
        "weights": rng.normal(0, 0.01, (inputs, outputs + BASIS + CENTROIDS)),
        "bias": rng.normal(0, 0.1, outputs + BASIS + CENTROIDS),
        "transfer_weights": rng.normal(0, 0.01, (width, outputs)),
        "transfer_bias": rng.normal(0, 0.1, outputs),
        "forest_feature": rng.integers(0, BASIS + width, shape),
        "forest_threshold": rng.normal(size=shape),
        "forest_keeps": np.full(shape, np.iinfo(bits).max - 1, bits),
        "forest_values": rng.normal(0, 0.01, (TREES, MAX_LEAVES, outputs)),
    }
    config = {
        "format": 1,
        "models": [f"model-{i}" for i in range(n_models)],
        "default_model": "model-0",
        "basis": BASIS,
        "novelty": {"embedding_unit": 1.0, "table_unit": 1 / width, "near": -9.0 if novel else 1e6, "far": 1e7},
        "doubt": {"near": -9.0, "far": 99.0},
        "margin": {"near": 0.02, "far": 0.1},
        "columns": {
            "latency_s": list(range(n_models)),
            "output_tokens": list(range(n_models)),
            "cost_usd": [-1] * n_models,
        },
        "latency_residuals": [[0.0, 0.5, 0.8]] * n_models,
        "prior_weight": [0.05] * n_models,
    }
    return config, arrays


def _clustered(rng: np.random.Generator, n: int) -> Any:
    """Keys that lie in groups, as queries do."""
    centres = rng.normal(size=(64, BASIS))
    return (centres[rng.integers(0, 64, n)] + rng.normal(0, 0.3, (n, BASIS))).astype(np.float32)


def _int8_peak(rounds: int) -> float:
    """Operations per second of onnxruntime's int8 product on one thread, its operands in the cache."""
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
    return 2 * rows * inner * columns / float(np.quantile(sample.cpu_s, 0.1))  # the peak, not the usual


def _graph(nodes: Sequence[tuple[str, list[str], str, dict[str, Any]]], fixed: Row, feed: Row) -> Call:
    """A call of a small graph, as it is written; operators unknown to ONNX itself are onnxruntime's."""
    import onnxruntime
    from onnx import TensorProto, defs, helper, numpy_helper

    made = []
    for op, inputs, output, attributes in nodes:
        domain = "" if defs.has(op, 17) else "com.microsoft"
        made.append(helper.make_node(op, inputs, output.split(), domain=domain, **attributes))
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    graph = helper.make_graph(
        made,
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# the table ----------------------------------------------------------------------------------------------------------


def _line(row: Row) -> str:
    figures = [f"{name.removesuffix('_us')} {value:,.2f}" if abs(value) < 10 else
               f"{name.removesuffix('_us')} {value:,.0f}" for name, value in row.items() if name != "what"]  # fmt: skip
    return f"  {row['what']:<52} " + "  ".join(figures)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m training.speed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, help="the bundle to measure (the active one)")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="one object on the last line of standard output")
    given = parser.parse_args(arguments)
    bundle = given.bundle or active_bundle(load_settings())
    results: dict[str, list[Row]] = {}
    for section in given.only:
        title = (SECTIONS[section].__doc__ or "").strip()
        print(f"{section}{': ' + title if title else ''} (times in microseconds)", flush=True)
        results[section] = []
        for row in SECTIONS[section](bundle, given.rounds):
            results[section].append(row)
            print(_line(row), flush=True)
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
