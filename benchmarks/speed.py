"""Measure how fast decisions are, next to the usual alternatives. Compare ratios, since machines differ.

    python -m benchmarks.speed [--bundle D] [--only cold latency ...] [--rounds N] [--bench DIR] [--json]

Contenders take turns in one process, so that other load slows them alike; figures are medians. Each is also measured
in processor time (`cpu`), which does not include waiting. One thread unless stated otherwise.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch and numpy when they are imported

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
from typing import Any

import numpy as np

from benchmarks.limits import LENGTHS, PASSAGE, limit, operators, text_of
from benchmarks.stopwatch import Call, Row, Samples, alone, interleaved
from router_ml.bundles.format import load_bundle
from router_ml.bundles.registry import active_bundle
from router_ml.catalogue import Catalogue, Model, load_catalogue
from router_ml.decide import api
from router_ml.decide.features.extractor import TABLE_NAMES
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.features.sentence_transformer import encoder_source, load_sentence_transformer
from router_ml.decide.predictors.forest import MAX_LEAVES
from router_ml.decide.predictors.neighbours import Neighbours
from router_ml.decide.predictors.outcomes import OutcomePredictor
from router_ml.decide.router import Router
from router_ml.settings import load_settings
from router_ml.types import EMPTY_CONTEXT, LABELS
from training.command import command_parser

N_BATCH = 256
CALLERS = (1, 2, 8, 32)
MODELS = (3, 10, 100)
STORED = (1_000, 10_000, 100_000)
TREES = 200  # a fit makes 128 for success and 72 for latency, tokens and cost
BASIS, CENTROIDS, NEIGHBOUR_DIMENSIONS = 32, 64, 48


# what is measured ---------------------------------------------------------------------------------------------------


def cold(bundle: Path, rounds: int) -> Iterator[Row]:
    """Start a process up to its first answer: seconds and peak memory."""
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
    """Decide once, warm, at several lengths, each contender doing all of its work."""
    router = Router.load(bundle)
    embedder = OnnxEmbedder(bundle / "encoder.onnx", bundle / "tokenizer.json")
    contenders = {"router_ml": router.decide, **_baselines()}
    for length in LENGTHS:
        text = text_of(length, embedder)
        calls: dict[str, Call] = {name: partial(decide, text) for name, decide in contenders.items()}
        rows = interleaved(calls, rounds)
        for name, row in rows.items():
            yield {
                "what": f"{length} tokens, {name}",
                **row,
                "ratio": row["p50_us"] / rows["router_ml"]["p50_us"],
                "cpu_ratio": row["cpu_p50_us"] / rows["router_ml"]["cpu_p50_us"],
            }
        for what, cached in (("outside the encoder", False), ("the same, processor caches warm", True)):
            yield {"what": f"{length} tokens, {what}", "cpu_p50_us": _outside(router, text, rounds, cached)}


def overhead(bundle: Path, rounds: int) -> Iterator[Row]:
    """Time all but the encoder: by the number of models; a cached decision; neighbours by the number of stored rows."""
    for n_models, novel in (*((n, False) for n in MODELS), (MODELS[0], True)):
        predictor = OutcomePredictor.from_arrays(*_heads(n_models, novel=novel), Catalogue(tuple(_models(n_models))))
        router = _without_encoder(bundle, predictor)
        what = f"heads and selection, {n_models} models{', a novel query' if novel else ''}"
        yield {"what": what, **alone(partial(router.decide, "x"), rounds * 20)}
        if n_models == MODELS[0] and not novel:
            yield {
                "what": "of which products and forest tests",
                **alone(partial(_bare, predictor._heads), rounds * 20),
            }
    head, vector = _sklearn_head(), np.ones((1, 384), np.float32)
    yield {"what": "one head of scikit-learn (predict_proba)", **alone(partial(head.predict_proba, vector), rounds * 5)}
    os.environ["ROUTER_ML_BUNDLE"] = str(bundle)
    api.DEFAULT.reset()
    api.select_model("check email")
    yield {"what": "cached decision", **alone(lambda: api.select_model("check email"), rounds * 20)}
    rng = np.random.default_rng(0)
    for n_rows in STORED:
        keys = _clustered(rng, n_rows)
        stored = Neighbours(keys, rng.random((n_rows, 3), np.float32), 100)
        query = keys[:1] + np.float32(0.01)
        yield {"what": f"kNN head, {n_rows} rows", **alone(partial(stored, query), rounds * 2)}


def throughput(bundle: Path, rounds: int) -> Iterator[Row]:
    """Decide many queries of mixed length on all cores, and for concurrent callers that each wait for their answer."""
    router = Router.load(bundle)
    texts = mixed_texts(N_BATCH)
    many = partial(api.select_models, texts, router=router)
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


def quality(bundle: Path, rounds: int, bench: Path | None = None) -> Iterator[Row]:
    """Compare int8 with fp32: the bundle's own encoder on labels, an untuned one on outcomes."""
    lost = load_bundle(bundle).manifest.get("metrics", {}).get("encoder/accuracy_lost_to_int8")
    if lost is not None:
        yield {"what": "label accuracy, when this bundle was fitted", "given_up": lost}
    if bench is None or not bench.is_dir():
        print("routing on outcomes is left out: give --bench a folder as benchmarks.study reads it", file=sys.stderr)
        return
    from benchmarks.fidelity import fidelity  # deferred: it loads everything that learns

    for row in fidelity(bench):
        yield {**row, "what": f"{row['what']}, untuned encoder"}


SECTIONS: dict[str, Callable[[Path, int], Iterator[Row]]] = {
    "cold": cold,
    "latency": latency,
    "overhead": overhead,
    "throughput": throughput,
    "limit": limit,
    "operators": operators,
    "quality": quality,
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
    """Return a head of the usual size, fitted on noise."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    return LogisticRegression().fit(rng.normal(size=(400, 384)), np.arange(400) % len(LABELS))


def _semantic_router(encoder: Any) -> Callable[[str], Any] | None:
    """Return semantic-router over the same encoder, four routes of twenty utterances; None if not installed."""
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
    """Return a classifier of the size of the published BERT routers, with random weights: only its time counts."""
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


# parts of the sections --------------------------------------------------------------------------------------------


def mixed_texts(n: int) -> list[str]:
    """Return texts of the usual lengths of queries: two to sixty words, most of them short."""
    rng = np.random.default_rng(0)
    words = PASSAGE.split()
    lengths = np.clip(np.exp(rng.normal(2.3, 0.7, n)), 2, 60).astype(int)
    return [" ".join(rng.choice(words, size)) for size in lengths]


def _outside(router: Router, text: str, rounds: int, caches_kept: bool) -> float:
    """Return the microseconds of a decision outside the encoder's session.

    A pass evicts everything else from the processor's caches; with `caches_kept` its answer is there at once."""
    embedder: Any = router._features.embedder  # type: ignore[union-attr]
    session, inside = embedder._session, [0.0]
    answer = [embedder.embed([text])]

    class Timed:
        def run(self, *args: Any) -> Any:
            start = time.process_time()
            result = answer if caches_kept else session.run(*args)
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
    """Let so many callers work through the texts, each asking again as soon as it is answered."""
    todo = iter(texts)

    async def caller() -> None:
        for text in todo:
            start = time.perf_counter()
            await api.aselect_model(text, router=router)
            waits.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(n_callers)))


class _Vectors:
    """An encoder that returns a fixed vector."""

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


def _bare(heads: Any) -> None:
    """Do the least work of the outcome heads: their matrix product and the forest's tests."""
    forest: Any = heads._forest
    n_outputs, n_inputs = heads._matrix.shape
    both = np.ones(n_inputs + n_outputs, np.float32)
    heads._matrix.dot(both[:n_inputs])
    both.take(forest._feature, mode="wrap") > forest._threshold  # noqa: B015


def _models(n: int) -> list[Model]:
    from dataclasses import replace

    base = list(load_catalogue())
    return [replace(base[i % len(base)], name=f"model-{i}", aliases=(), arms=()) for i in range(n)]


def _heads(n_models: int, dim: int = 1152, *, novel: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return outcome heads of the shape a fit exports, with random numbers: success, latency and tokens of each model.

    `novel` makes every query unlike the training queries, so that the transfer head is used."""
    rng = np.random.default_rng(0)
    width, outputs = len(TABLE_NAMES), 3 * n_models
    inputs = dim + width + len(LABELS)
    shape = (MAX_LEAVES - 1, TREES)
    bits = np.uint32 if MAX_LEAVES == 32 else np.uint64
    arrays = {
        "table_centre": np.zeros(width),
        "table_scale": np.ones(width),
        "weights": rng.normal(0, 0.01, (inputs, outputs + BASIS)),
        "bias": rng.normal(0, 0.1, outputs + BASIS),
        "joint_scale": np.ones(width + BASIS),
        "centroids": rng.normal(size=(CENTROIDS, width + BASIS)),
        "transfer_weights": rng.normal(0, 0.01, (width, outputs)),
        "transfer_bias": rng.normal(0, 0.1, outputs),
        "forest_feature": rng.integers(0, BASIS + width, shape),
        "forest_threshold": rng.normal(size=shape),
        "forest_keeps": np.full(shape, np.iinfo(bits).max - 1, bits),
        "forest_values": rng.normal(0, 0.01, (TREES, MAX_LEAVES, outputs)),
    }
    config = {
        "format": 2,
        "models": [f"model-{i}" for i in range(n_models)],
        "default_model": "model-0",
        "basis": BASIS,
        "novelty": {"near": -9.0 if novel else 1e6, "far": 1e7},
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
    """Return keys in clusters, as those of queries are."""
    centres = rng.normal(size=(64, NEIGHBOUR_DIMENSIONS))
    return (centres[rng.integers(0, 64, n)] + rng.normal(0, 0.3, (n, NEIGHBOUR_DIMENSIONS))).astype(np.float32)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# the table ----------------------------------------------------------------------------------------------------------


def _line(row: Row) -> str:
    figures = [f"{name.removesuffix('_us')} {_short(value)}" for name, value in row.items() if name != "what"]
    return f"  {row['what']:<52} " + "  ".join(figures)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = command_parser("benchmarks.speed", __doc__)
    parser.add_argument("--bundle", type=Path, help="the bundle to measure (default: the active one)")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="some sections")
    parser.add_argument("--rounds", type=int, default=100, help="repetitions (%(default)s)")
    parser.add_argument("--bench", type=Path, help="folder of queries and outcomes, for the section `quality`")
    parser.add_argument("--json", action="store_true", help="one object on the last line of standard output")
    given = parser.parse_args(arguments)
    bundle = given.bundle or active_bundle(load_settings())
    results: dict[str, list[Row]] = {}
    for section in given.only:
        title = (SECTIONS[section].__doc__ or "").strip()
        print(f"{section}{': ' + title if title else ''} (times in microseconds)", flush=True)
        results[section] = []
        measure = partial(quality, bench=given.bench) if section == "quality" else SECTIONS[section]
        for row in measure(bundle, given.rounds):
            results[section].append(row)
            print(_line(row), flush=True)
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
