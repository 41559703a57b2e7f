"""Measure the recipe on public routing data, by grouped cross-validation through the serving code.

    python -m benchmarks.study --bench DIR [--bundle DIR] [--only bfcl-a mmlu ...] [--repeats N] [--json OUT]

DIR holds bfcl/, routellm-mmlu/, routellm-gsm8k/, llmrouter9/, local5/ and gptoss/, each with queries.jsonl and
outcomes*.jsonl in this project's formats (`python -m training.datasets` makes them). Absent data sets are skipped with
a message. One recipe serves all of them: nothing is set per data set. The encoder and the complexity head come from the
bundle.

Figures are printed beside the static mix of single models and two simple learners that are judged alike. Intervals:
95 %, bootstrap over groups of queries; for repeated fits, the spread over the repeats.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.terminal import run_command
from router_ml.types import Outcome, Query
from training.arrays import Index
from training.command import command_parser, write_json
from training.evaluate import JudgedOutcomes, report
from training.measuring.metrics import apgr
from training.outcomes.outcome_fit import fit_outcomes
from training.outcomes.table import outcome_table
from training.splits import group_numbers, permuted_folds

FOLDS = 5
HELD_TASKS = 3  # tasks that are held out whole, in turn
SIZES = (100, 250, 500, 1000, 2000)
NO_CATALOGUE = Catalogue(())  # no priors: outcomes alone count
RANKING = ("apgr", "cpt_50", "cpt_80")


@dataclass(frozen=True)
class Data:
    """One data set with its features, computed once."""

    name: str
    queries: list[Query]
    outcomes: list[Outcome]
    features: Features
    complexity: NDArray[np.float32]

    def part(self, rows: Index) -> tuple[list[Query], list[Outcome], Features, NDArray[np.float32]]:
        """Return queries, their outcomes, features and probabilities of some rows."""
        queries = [self.queries[i] for i in rows]
        known = {query.id for query in queries}
        outcomes = [outcome for outcome in self.outcomes if outcome.query_id in known]
        return queries, outcomes, self.features.rows(rows), self.complexity[rows]

    @property
    def groups(self) -> Index:
        """A number (n,) per query, equal for queries of one group."""
        return group_numbers(self.queries)


SETS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "bfcl-a": ("bfcl", "outcomes-a", ("aiq_normalised", "cost_share_within_1_point")),
    "bfcl-c": ("bfcl", "outcomes-c", ("aiq_normalised", "cost_share_within_1_point")),
    "bfcl-d": ("bfcl", "outcomes-d", ("aiq_normalised", "accuracy_over_best_single")),
    "mmlu": ("routellm-mmlu", "outcomes", ("apgr", "cpt_50")),
    "gsm8k": ("routellm-gsm8k", "outcomes", ("apgr",)),
    "llmrouter9": ("llmrouter9", "outcomes", ("accuracy", "aiq")),
    "local5": ("local5", "outcomes", ("aiq_normalised", "accuracy_over_best_single")),
    "gptoss": ("gptoss", "outcomes", ("aiq_normalised", "accuracy_over_best_single")),
}  # folder, outcomes and figures


class Reader:
    """Data sets with their features, computed with a bundle's encoder and complexity head."""

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
        """Return a data set, or None with a message on standard error where its files are absent."""
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
        return Data(name, queries, _comparable(read_outcomes(outcomes_path)), features, probabilities)


def _comparable(outcomes: list[Outcome]) -> list[Outcome]:
    """Leave out models whose latency is unknown where that of others was measured: they would cost nothing."""
    timed = {outcome.model for outcome in outcomes if outcome.latency_s is not None}
    return [outcome for outcome in outcomes if outcome.model in timed] if timed else outcomes


def fit_and_judge(
    data: Data, train: Index, test: Index, seed: int, other: Data | None = None
) -> tuple[JudgedOutcomes, str]:
    """Fit on some rows and judge on others (of another data set where given), through the serving arrays."""
    queries, outcomes, features, complexity = data.part(train)
    fitted = fit_outcomes(queries, outcomes, features, complexity, NO_CATALOGUE, seed=seed, tune=True)
    predictor = OutcomePredictor.from_arrays(fitted.config, fitted.arrays, NO_CATALOGUE)
    queries, outcomes, features, complexity = (other or data).part(test)
    table = outcome_table(queries, outcomes)
    unknown = np.full(len(test), np.nan, np.float32)
    predicted = predictor(features.embedding, features.table, complexity, unknown)
    order = [predicted.models.index(model) for model in table.models]
    judged = JudgedOutcomes(
        table=table,
        p_success=predicted.p_success[:, order].astype(np.float64),
        latency_s=predicted.latency_s[:, order].astype(np.float64),
        cost_usd=predicted.cost_usd[:, order].astype(np.float64),
        novelty=predicted.novelty.astype(np.float64),
        policy_choices={},
        features=features,
        bundle=f"{data.name} ({fitted.report['learner']})",
    )
    return judged, str(fitted.report["learner"])


def cross_validated(data: Data, seed: int) -> tuple[JudgedOutcomes, list[str]]:
    """Judge every query once, by a fit that did not see its group."""
    parts = [
        (test, *fit_and_judge(data, train, test, seed)) for train, test in permuted_folds(data.groups, FOLDS, seed)
    ]
    return joined(data, [(test, judged) for test, judged, _ in parts]), [learner for _, _, learner in parts]


def joined(data: Data, parts: Sequence[tuple[Index, JudgedOutcomes]]) -> JudgedOutcomes:
    """Return the judged parts of a data set as one, in its order; each row is in one part."""
    order = np.argsort(np.concatenate([rows for rows, _ in parts]))

    def whole(name: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.concatenate([getattr(judged, name) for _, judged in parts])[order]
        return values

    return JudgedOutcomes(
        table=outcome_table(data.queries, data.outcomes),
        p_success=whole("p_success"),
        latency_s=whole("latency_s"),
        cost_usd=whole("cost_usd"),
        novelty=whole("novelty"),
        policy_choices={},
        features=data.features,
        bundle=data.name,
    )


def transfer(data: Data, other: Data) -> float:
    """Return the APGR on one data set of a fit on another."""
    judged, _ = fit_and_judge(data, np.arange(len(data.queries)), np.arange(len(other.queries)), 0, other)
    success = judged.table.success
    strong, weak = int(success.mean(axis=0).argmax()), int(success.mean(axis=0).argmin())
    return apgr(judged.p_success[:, strong] - judged.p_success[:, weak], success[:, strong], success[:, weak])


def unseen_tasks(data: Data, seed: int) -> list[float]:
    """Return accuracy over the best single model of the training data, with whole tasks held out in turn."""
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
    """Return accuracy over the best single model of the training rows, by outcome rows, on half of the queries."""
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


def by_fold(data: Data, judged: JudgedOutcomes, figure: str, seed: int) -> float:
    """Return a ranking figure as the mean over the folds, since scores of different fits have different scales."""
    values = []
    for _, test in permuted_folds(data.groups, FOLDS, seed):
        part = JudgedOutcomes(
            judged.table.rows(test),
            judged.p_success[test],
            judged.latency_s[test],
            judged.cost_usd[test],
            judged.novelty[test],
            {},
        )
        values.append(report(part, resamples=1)["figures"][figure]["value"])
    return float(np.nanmean(values))


def _line(name: str, value: str, beside: str = "") -> str:
    return f"{name:<44} {value:<30} {beside}".rstrip()


def _cross_validated_lines(data: Data, repeats: int, resamples: int) -> tuple[list[str], dict[str, Any]]:
    started = time.monotonic()
    runs = [cross_validated(data, seed) for seed in range(repeats)]
    seconds = (time.monotonic() - started) / (repeats * FOLDS)
    reports = [report(judged, resamples=resamples) for judged, _ in runs]
    first, lines = reports[0], []
    for name in SETS[data.name][2]:
        values = [found["figures"][name]["value"] for found in reports]
        if name in RANKING:
            values = [by_fold(data, judged, name, seed) for seed, (judged, _) in enumerate(runs)]
        low, high = first["figures"][name]["low"], first["figures"][name]["high"]
        text = f"{np.nanmean(values):.4f} [{low:.3f}, {high:.3f}]"
        lines.append(_line(f"{data.name} {name}", text, _baselines(first) if name == "aiq_normalised" else ""))
    calibration = float(np.mean([found["calibration"]["ece"] for found in reports]))
    lines.append(_line(f"{data.name} ece of p_success", f"{calibration:.4f}"))
    lines += _latency_lines(data.name, reports)
    learners = sorted({learner for _, chosen in runs for learner in chosen})
    lines.append(_line("  chosen learners", "; ".join(learners), f"{seconds:.1f} s a fit"))
    return lines, {"figures": [found["figures"] for found in reports], "ece": calibration, "fit_s": seconds}


def _baselines(found: dict[str, Any]) -> str:
    """Return the same figure of what needs no learning, or of a simple learner."""
    values = {"static mix": found["figures"]["aiq_normalised_static_mix"]["value"]}
    values |= {
        name: row["aiq_normalised"]
        for name, row in found["baselines"].items()
        if name not in ("router", "oracle") and row.get("aiq_normalised") is not None
    }
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _latency_lines(name: str, reports: list[dict[str, Any]]) -> list[str]:
    models = list(reports[0]["latency"])
    if not models:
        return []

    def means(key: str) -> list[float]:
        return [float(np.mean([found["latency"][model][key] for found in reports])) for model in models]

    def text(values: list[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    return [
        _line(f"{name} latency MAE / MAE of the median", f"{np.mean(means('mae_ratio')):.3f}", "constant median 1.000"),
        _line(f"{name} latency p95 coverage", text(means("coverage_p95")), "nominal 0.950"),
        _line(f"{name} latency R2 log", text(means("r2_log")), ", ".join(models)),
    ]


def study(
    reader: Reader, only: Sequence[str], repeats: int, resamples: int, emit: Callable[[str], None]
) -> dict[str, Any]:
    """Run everything whose data is there; `emit` gets each line as soon as it is known."""
    found: dict[str, Any] = {}
    loaded = {name: data for name in SETS if name in only if (data := reader.read(name)) is not None}
    emit(_line("what", "value", "beside it"))
    for name, data in loaded.items():
        lines, found[name] = _cross_validated_lines(data, repeats, resamples)
        for line in lines:
            emit(line)
    if {"mmlu", "gsm8k"} <= loaded.keys():
        for a, b in (("mmlu", "gsm8k"), ("gsm8k", "mmlu")):
            value = found[f"{a} -> {b}"] = transfer(loaded[a], loaded[b])
            emit(_line(f"{a} -> {b} apgr", f"{value:.4f}", "random 0.500"))
    if "llmrouter9" in loaded:
        gains = [gain for seed in range(repeats) for gain in unseen_tasks(loaded["llmrouter9"], seed)]
        found["unseen tasks"] = gains
        text = f"{np.mean(gains):+.4f} (worst {min(gains):+.4f})"
        emit(_line("llmrouter9 unseen tasks", text, "over the best model of the training tasks"))
    for name, data in loaded.items():
        for size, values in learning_curve(data, repeats).items():
            found.setdefault("learning curve", {}).setdefault(name, {})[size] = values
            text = f"{np.mean(values):+.4f} (worst {min(values):+.4f})"
            emit(_line(f"{name} {size} rows", text, "over the best model of the training rows"))
    return found


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.study", __doc__)
    cli.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, help="bundle whose encoder is used (default: the active one)")
    cli.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS), help="some of the data sets")
    cli.add_argument("--repeats", type=int, default=3, help="cross-validations and repeats (%(default)s)")
    cli.add_argument("--resamples", type=int, default=200, help="bootstrap resamples (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write every figure to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; exit code 2 if the folder is absent, 1 if the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.study", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    if not options.bench.is_dir():
        raise InputError(f"{options.bench} is not a folder; give the one that holds the data sets")
    reader = Reader(options.bench, options.bundle or active_bundle(load_settings()))
    found = study(reader, options.only, options.repeats, options.resamples, lambda line: print(line, flush=True))
    write_json(options.json, found)


if __name__ == "__main__":
    sys.exit(main())
