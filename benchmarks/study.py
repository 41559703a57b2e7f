"""Prints where the recipe stands on public routing data, by grouped cross-validation through the serving code.

    python -m benchmarks.study --bench DIR [--bundle DIR] [--only bfcl-a mmlu ...] [--repeats N] [--json OUT]

DIR holds bfcl/, routellm-mmlu/, routellm-gsm8k/ and llmrouter9/, each with queries.jsonl and outcomes*.jsonl in this
project's formats (`python -m training.datasets` makes them). What is absent is skipped and said so. One recipe serves
all of them: nothing here is set per data set. The encoder and the complexity head come from the bundle.

Every row stands beside the target, the static mix of single models and two simple learners judged alike. Intervals:
95 %, bootstrap over groups of queries; for repeated fits, the spread over the repeats.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.bundles.format import load_bundle
from router_ml.bundles.registry import active_bundle
from router_ml.catalogue import Catalogue
from router_ml.decide.features.extractor import Extractor, Features
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.predictors.complexity import LearnedComplexity
from router_ml.decide.predictors.heads import LinearHead
from router_ml.decide.predictors.outcomes import OutcomePredictor
from router_ml.errors import InputError, RouterError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.types import Outcome, Query
from training.evaluate import Judged, report
from training.measuring.metrics import apgr
from training.outcomes.outcome_fit import fit_outcomes
from training.outcomes.table import outcome_table

FOLDS = 5
HELD_TASKS = 3  # of the tasks are kept back whole, in turn
SIZES = (100, 250, 500, 1000, 2000)
NO_CATALOGUE = Catalogue(())  # nothing but the outcomes may speak
RANKING = ("apgr", "cpt_50", "cpt_80")
Index = NDArray[np.intp]


class Target(NamedTuple):
    """A figure of the report and what it should reach."""

    figure: str
    goal: float
    higher: bool = True

    def met(self, value: float) -> bool:
        return value >= self.goal if self.higher else value <= self.goal


@dataclass(frozen=True)
class Data:
    """One data set with its features, computed once."""

    name: str
    queries: list[Query]
    outcomes: list[Outcome]
    features: Features
    complexity: NDArray[np.float32]

    def part(self, rows: Index) -> tuple[list[Query], list[Outcome], Features, NDArray[np.float32]]:
        """Queries, their outcomes, features and probabilities of some rows."""
        queries = [self.queries[i] for i in rows]
        known = {query.id for query in queries}
        outcomes = [outcome for outcome in self.outcomes if outcome.query_id in known]
        return queries, outcomes, self.features.rows(rows), self.complexity[rows]

    @property
    def groups(self) -> Index:
        names = [query.group or query.id for query in self.queries]
        groups: Index = np.unique(names, return_inverse=True)[1].astype(np.intp)
        return groups


SETS: dict[str, tuple[str, str, tuple[Target, ...]]] = {
    "bfcl-a": (
        "bfcl",
        "outcomes-a",
        (Target("aiq_normalised", 0.55), Target("cost_share_within_1_point", 0.75, False)),
    ),
    "bfcl-c": (
        "bfcl",
        "outcomes-c",
        (Target("aiq_normalised", 0.45), Target("cost_share_within_1_point", 0.70, False)),
    ),
    "bfcl-d": ("bfcl", "outcomes-d", (Target("aiq_normalised", 0.30), Target("accuracy_over_best_single", 0.04))),
    "mmlu": ("routellm-mmlu", "outcomes", (Target("apgr", 0.68), Target("cpt_50", 0.28, False))),
    "gsm8k": ("routellm-gsm8k", "outcomes", (Target("apgr", 0.65),)),
    "llmrouter9": ("llmrouter9", "outcomes", (Target("accuracy", 0.685), Target("aiq", 0.665))),
}


class Reader:
    """Reads data sets and computes their features with a bundle's encoder and complexity head."""

    def __init__(self, bench: Path, bundle: Path) -> None:
        loaded = load_bundle(bundle)
        arrays = loaded.section("complexity")
        self._bench = bench
        self._extractor = Extractor(OnnxEmbedder(loaded.encoder, loaded.tokenizer))
        self._complexity = LearnedComplexity(
            LinearHead(arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32))
        )
        self._features: dict[str, tuple[list[Query], Features]] = {}

    def read(self, name: str) -> Data | None:
        """A data set, or None with a word on standard error where its files are absent."""
        folder, outcomes, _ = SETS[name]
        queries_path, outcomes_path = self._bench / folder / "queries.jsonl", self._bench / folder / f"{outcomes}.jsonl"
        if not (queries_path.is_file() and outcomes_path.is_file()):
            print(f"skipped {name}: no {queries_path} or {outcomes_path.name} beside it", file=sys.stderr)
            return None
        if folder not in self._features:
            queries = read_queries(queries_path)
            features = self._extractor.extract([q.text for q in queries], [q.context for q in queries])
            self._features[folder] = queries, features
        queries, features = self._features[folder]
        probabilities = self._complexity(features.embedding, features.table)
        return Data(name, queries, read_outcomes(outcomes_path), features, probabilities)


def fit_and_judge(data: Data, train: Index, test: Index, seed: int, other: Data | None = None) -> tuple[Judged, str]:
    """Fit on some rows and judge on others (of another data set where given), through the serving arrays."""
    queries, outcomes, features, complexity = data.part(train)
    fitted = fit_outcomes(queries, outcomes, features, complexity, NO_CATALOGUE, seed=seed, tune=True)
    predictor = OutcomePredictor.from_arrays(fitted.config, fitted.arrays, NO_CATALOGUE)
    queries, outcomes, features, complexity = (other or data).part(test)
    table = outcome_table(queries, outcomes)
    unknown = np.full(len(test), np.nan, np.float32)
    said = predictor(features.embedding, features.table, complexity, unknown)
    order = [said.models.index(model) for model in table.models]
    judged = Judged(
        table=table,
        p_success=said.p_success[:, order].astype(np.float64),
        latency_s=said.latency_s[:, order].astype(np.float64),
        cost_usd=said.cost_usd[:, order].astype(np.float64),
        novelty=said.novelty.astype(np.float64),
        policy_choices={},
        features=features,
        bundle=f"{data.name} ({fitted.report['learner']})",
    )
    return judged, str(fitted.report["learner"])


def folds(data: Data, seed: int) -> Iterator[tuple[Index, Index]]:
    """Grouped folds."""
    groups = data.groups
    fold = (np.random.default_rng(seed).permutation(int(groups.max()) + 1) % FOLDS)[groups]
    for f in range(FOLDS):
        yield np.flatnonzero(fold != f), np.flatnonzero(fold == f)


def cross_validated(data: Data, seed: int) -> tuple[Judged, list[str]]:
    """Every query judged once, by a fit that did not see its group."""
    parts = [(test, *fit_and_judge(data, train, test, seed)) for train, test in folds(data, seed)]
    order = np.argsort(np.concatenate([test for test, _, _ in parts]))

    def joined(name: str) -> NDArray[np.float64]:
        whole: NDArray[np.float64] = np.concatenate([getattr(judged, name) for _, judged, _ in parts])[order]
        return whole

    judged = Judged(
        table=outcome_table(data.queries, data.outcomes),
        p_success=joined("p_success"),
        latency_s=joined("latency_s"),
        cost_usd=joined("cost_usd"),
        novelty=joined("novelty"),
        policy_choices={},
        features=data.features,
        bundle=data.name,
    )
    return judged, [learner for _, _, learner in parts]


def transfer(data: Data, other: Data) -> float:
    """APGR on one data set of a fit on another."""
    judged, _ = fit_and_judge(data, np.arange(len(data.queries)), np.arange(len(other.queries)), 0, other)
    success = judged.table.success
    strong, weak = int(success.mean(axis=0).argmax()), int(success.mean(axis=0).argmin())
    return apgr(judged.p_success[:, strong] - judged.p_success[:, weak], success[:, strong], success[:, weak])


def unseen_tasks(data: Data, seed: int) -> list[float]:
    """Accuracy over the best single model of the training data, with whole tasks kept back in turn."""
    tasks = np.array([query.slice or "" for query in data.queries])
    names = np.random.default_rng(seed).permutation(sorted(set(tasks.tolist())))
    gains = []
    for i in range(0, len(names), HELD_TASKS):
        held = np.isin(tasks, names[i : i + HELD_TASKS])
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
        if len(train) and len(test):
            gains.append(_over_training_best(data, train, test, seed))
    return gains


def _over_training_best(data: Data, train: Index, test: Index, seed: int) -> float:
    judged, _ = fit_and_judge(data, train, test, seed)
    known = outcome_table(*data.part(train)[:2])
    best = judged.table.models.index(known.models[int(np.nanmean(known.success, axis=0).argmax())])
    success = judged.table.success
    routed = success[np.arange(len(success)), judged.p_success.argmax(axis=1)]
    return float(routed.mean() - success[:, best].mean())


def learning_curve(data: Data, repeats: int) -> dict[int, list[float]]:
    """Accuracy over the best single model of the training rows, by outcome rows seen; judged on half of the queries."""
    groups, n_models = data.groups, len({outcome.model for outcome in data.outcomes})
    curve: dict[int, list[float]] = {}
    for size in SIZES:
        n_queries = size // n_models
        if n_queries > len(data.queries) // 2:
            continue
        for seed in range(repeats):
            order = np.argsort(np.random.default_rng(seed).permutation(int(groups.max()) + 1)[groups], kind="stable")
            half = len(order) // 2
            cut = groups[order[half]]
            test = order[half:][groups[order[half:]] != cut]
            curve.setdefault(size, []).append(_over_training_best(data, order[:n_queries], test, seed))
    return curve


def by_fold(data: Data, judged: Judged, figure: str, seed: int) -> float:
    """A figure of the ranking, as the mean over the folds: scores of different fits stand on different scales."""
    values = []
    for _, test in folds(data, seed):
        part = Judged(
            judged.table.rows(test),
            judged.p_success[test],
            judged.latency_s[test],
            judged.cost_usd[test],
            judged.novelty[test],
            {},
        )
        values.append(report(part, resamples=1)["figures"][figure]["value"])
    return float(np.nanmean(values))


def _line(name: str, value: str, goal: str, met: bool | None, note: str = "") -> str:
    mark = "" if met is None else "met" if met else "not met"
    return f"{name:<44} {value:<30} {goal:<10} {mark:<8} {note}"


def _cross_validated_lines(data: Data, repeats: int, resamples: int) -> tuple[list[str], dict[str, Any]]:
    started = time.monotonic()
    runs = [cross_validated(data, seed) for seed in range(repeats)]
    seconds = (time.monotonic() - started) / (repeats * FOLDS)
    reports = [report(judged, resamples=resamples) for judged, _ in runs]
    first, lines = reports[0], []
    for target in SETS[data.name][2]:
        values = [found["figures"][target.figure]["value"] for found in reports]
        if target.figure in RANKING:
            values = [by_fold(data, judged, target.figure, seed) for seed, (judged, _) in enumerate(runs)]
        figure, mean = first["figures"][target.figure], float(np.nanmean(values))
        text = f"{mean:.4f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        sign = ">=" if target.higher else "<="
        lines.append(_line(f"{data.name} {target.figure}", text, f"{sign} {target.goal}", target.met(mean)))
    if "aiq_normalised" in {target.figure for target in SETS[data.name][2]}:
        others = ", ".join(
            f"{name} {row['aiq_normalised']:.3f}"
            for name, row in first["baselines"].items()
            if name not in ("router", "oracle") and row.get("aiq_normalised") is not None
        )
        static = first["figures"]["aiq_normalised_static_mix"]["value"]
        lines.append(_line("  beside it", f"static mix {static:.3f}, {others}", "", None))
    calibration = float(np.mean([found["calibration"]["ece"] for found in reports]))
    lines.append(_line(f"{data.name} ece of p_success", f"{calibration:.4f}", "<= 0.04", calibration <= 0.04))
    lines += _latency_lines(data.name, reports)
    learners = sorted({learner for _, chosen in runs for learner in chosen})
    lines.append(_line("  chosen", "; ".join(learners), "", None, f"{seconds:.1f} s a fit"))
    return lines, {"figures": [found["figures"] for found in reports], "ece": calibration, "fit_s": seconds}


def _latency_lines(name: str, reports: list[dict[str, Any]]) -> list[str]:
    models = list(reports[0]["latency"])
    if not models:
        return []

    def mean(model: str, key: str) -> float:
        return float(np.mean([found["latency"][model][key] for found in reports]))

    ratio = float(np.mean([mean(model, "mae_ratio") for model in models]))
    coverage = [mean(model, "coverage_p95") for model in models]
    within = all(0.93 <= value <= 0.97 for value in coverage)
    lines = [
        _line(f"{name} latency MAE / MAE of the median", f"{ratio:.3f}", "<= 0.80", ratio <= 0.80),
        _line(f"{name} latency p95 coverage", " ".join(f"{v:.3f}" for v in coverage), ".93 to .97", within),
    ]
    r2 = {model: mean(model, "r2_log") for model in models}
    lines.append(
        _line(f"{name} latency R2 log", " ".join(f"{v:.3f}" for v in r2.values()), "", None, ", ".join(models))
    )
    return lines


def study(
    reader: Reader, only: Sequence[str], repeats: int, resamples: int, emit: Callable[[str], None]
) -> dict[str, Any]:
    """Run everything whose data is there; `emit` gets each line as soon as it is known."""
    found: dict[str, Any] = {}
    loaded = {name: data for name in SETS if name in only if (data := reader.read(name)) is not None}
    emit(_line("what", "value", "target", None))
    for name, data in loaded.items():
        lines, found[name] = _cross_validated_lines(data, repeats, resamples)
        for line in lines:
            emit(line)
    if {"mmlu", "gsm8k"} <= loaded.keys():
        for a, b in (("mmlu", "gsm8k"), ("gsm8k", "mmlu")):
            value = found[f"{a} -> {b}"] = transfer(loaded[a], loaded[b])
            emit(_line(f"{a} -> {b} apgr", f"{value:.4f}", ">= 0.6", value >= 0.60))
    if "llmrouter9" in loaded:
        gains = [gain for seed in range(repeats) for gain in unseen_tasks(loaded["llmrouter9"], seed)]
        found["unseen tasks"] = gains
        text = f"{np.mean(gains):+.4f} (worst {min(gains):+.4f})"
        emit(_line("llmrouter9 unseen tasks, over training best", text, ">= 0.02", float(np.mean(gains)) >= 0.02))
    for name, data in loaded.items():
        for size, values in learning_curve(data, repeats).items():
            found.setdefault("learning curve", {}).setdefault(name, {})[size] = values
            text = f"{np.mean(values):+.4f} (worst {min(values):+.4f})"
            emit(_line(f"{name} {size} rows, over training best", text, ">= -0.005", float(np.mean(values)) >= -0.005))
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.study", description=(__doc__ or "").split("\n", 1)[0])
    cli.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, help="bundle whose encoder is used (the active one)")
    cli.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), help="some of the data sets")
    cli.add_argument("--repeats", type=int, default=3, help="cross-validations and repeats (%(default)s)")
    cli.add_argument("--resamples", type=int, default=200, help="of the bootstrap (%(default)s)")
    cli.add_argument("--json", type=Path, help="write every figure here")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 2 where the folder is absent, 1 where the bundle cannot be used."""
    options = parser().parse_args(argv)
    try:
        if not options.bench.is_dir():
            raise InputError(f"{options.bench} is not a folder; give the one that holds the data sets")
        reader = Reader(options.bench, options.bundle or active_bundle(load_settings()))
        found = study(reader, options.only, options.repeats, options.resamples, lambda line: print(line, flush=True))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RouterError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
