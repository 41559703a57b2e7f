"""Judge a bundle on queries with measured outcomes, through the serving code.

    python -m training.evaluate --bundle models/default --queries Q --outcomes O [--json OUT] [--plots DIR]

The router is compared with every single model, a random choice, prompt length alone, nearest neighbours and an oracle,
with 95 % intervals from a bootstrap over groups of queries. Give queries that the bundle was not fitted on: on the
others its figures are optimistic, and the report says so.

    accuracy                     mean success of the model most likely to succeed
    aiq, aiq_normalised          quality over the range of cost; normalised: 0 as the cheapest and the most expensive
                                 model mixed, 1 as an oracle
    cost_share_within_1_point    cost at which quality is within a point of the best model, over that model's cost
    apgr, cpt_50, cpt_80         gap between the cheapest and the best model recovered; share of calls of the best
                                 model that recover 50 % and 80 % of it
    ece, brier, auc              calibration and ranking of the predicted success
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from router_ml.arm import arm_key
from router_ml.bundles.format import load_bundle
from router_ml.decide.features.extractor import Extractor, Features
from router_ml.decide.features.onnx import OnnxEmbedder
from router_ml.decide.predictors.outcomes import Predictions
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.terminal import format_table, run_command
from training.arrays import Floats, Index
from training.command import command_parser, write_json
from training.measuring import baselines
from training.measuring.metrics import (
    Aiq,
    Curve,
    Sweep,
    aiq_of,
    apgr,
    auc,
    brier,
    choose,
    cost_to_reach,
    cpt,
    ece,
    latency_report,
    over_and_under,
    reliability,
    sweep_choices,
)
from training.measuring.plots import draw_all
from training.outcomes.table import LEARNED_FROM, OutcomeTable, outcome_table, query_keys
from training.tracking.tracker import EVALUATIONS, tracked

RESAMPLES = 200
WITHIN = 0.01  # of the best single model's success
BATCH = 512
POLICIES = ("fast", "balanced", "accurate")


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class JudgedOutcomes:
    """Outcomes and a router's predictions of them, in the same order of models."""

    table: OutcomeTable
    p_success: Floats
    latency_s: Floats  # (n, M, 3)
    cost_usd: Floats
    novelty: Floats
    policy_choices: dict[str, Index]
    features: Features | None = None
    bundle: str = ""

    @property
    def expected(self) -> tuple[str, Floats, Floats]:
        """Name, prediction and truth of cost: median seconds, else dollars."""
        name, truth = self.table.cost_axis
        predicted = self.latency_s[:, :, 0] if name == "latency_s" else self.cost_usd
        if name == "none" or np.isnan(predicted).any():
            predicted = np.broadcast_to(np.nan_to_num(np.nanmean(truth, axis=0)), truth.shape)
        return name, predicted, _filled(truth)


def _filled(truth: Floats) -> Floats:
    """Replace an unknown cost of a measured model by the model's mean."""
    known = ~np.isnan(truth)
    means = np.where(known, truth, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, truth, means)


def judge(router: Router, table: OutcomeTable, features: Features | None = None) -> JudgedOutcomes:
    """Let a router decide every query of a table. Raises `InputError` for models it does not know."""
    texts, contexts = [q.text for q in table.queries], [q.context for q in table.queries]
    parts = [router.predict_many(texts[i : i + BATCH], contexts[i : i + BATCH])[1] for i in range(0, len(texts), BATCH)]
    columns = _columns(parts[0], router, table)
    choices = {}
    for policy in POLICIES:
        decisions = router.decide_many(texts, contexts, policy)
        choices[policy] = np.array([_first(decision.ranked, columns, i, table) for i, decision in enumerate(decisions)])
    order = list(columns.values())
    return JudgedOutcomes(
        table=table,
        p_success=np.concatenate([part.p_success for part in parts])[:, order].astype(np.float64),
        latency_s=np.concatenate([part.latency_s for part in parts])[:, order].astype(np.float64),
        cost_usd=np.concatenate([part.cost_usd for part in parts])[:, order].astype(np.float64),
        novelty=np.concatenate([part.novelty for part in parts]).astype(np.float64),
        policy_choices=choices,
        features=features,
        bundle=router.name,
    )


def _columns(predictions: Predictions, router: Router, table: OutcomeTable) -> dict[str, int]:
    """Return, for each model of the table under the router's name for it, its column among the predictions."""
    found: dict[str, int] = {}
    for model in table.models:
        known = router.catalogue.arm(model)
        if known is None or known.key not in predictions.models:
            raise InputError(
                f"the bundle has no model {model!r}; fit one on outcomes of that model, or add it to the catalogue"
            )
        found[known.key] = predictions.models.index(known.key)
    return found


def _first(ranked: Sequence[Any], columns: dict[str, int], row: int, table: OutcomeTable) -> int:
    """Return the first of a decision's models that was measured on the query."""
    position = {name: j for j, name in enumerate(columns)}
    for candidate in ranked:
        j = position.get(arm_key(candidate.model, candidate.think))
        if j is not None and not np.isnan(table.success[row, j]):
            return j
    return int(np.nanargmax(np.where(np.isnan(table.success[row]), -1.0, 0.0)))


class _Weights:
    """Bootstrap weights of the queries: whole groups are drawn (Davison and Hinkley 1997, section 3.8)."""

    def __init__(self, groups: Index, resamples: int, seed: int = 0) -> None:
        n_groups = int(groups.max()) + 1
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
        self.rows = np.vstack((np.ones(len(groups)), counts[:, groups].astype(np.float64)))  # the first: all

    def estimate(self, figure: Any) -> Estimate:
        """Return a figure of the weights, with its percentile interval."""
        values = [float(figure(weights)) for weights in self.rows]
        known = [value for value in values[1:] if np.isfinite(value)]
        low, high = np.quantile(known, (0.025, 0.975)) if known else (np.nan, np.nan)
        return Estimate(values[0], float(low), float(high))


def report(judged: JudgedOutcomes, *, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return every figure of a judged router, JSON-ready."""
    table = judged.table
    name, predicted, cost = judged.expected
    success, measured = table.success, ~np.isnan(table.success)
    weights = _Weights(table.groups, resamples)
    run = sweep_choices(judged.p_success, predicted, success, cost)
    oracle = sweep_choices(success, cost, success, cost)
    chosen = choose(judged.p_success, measured)
    rows = np.arange(len(chosen))
    means = _weighted_means(success, cost)

    def area(w: Floats) -> Aiq:
        return aiq_of(run.curve(w), Curve(*means(w)), oracle.curve(w))

    def best_gain(w: Floats) -> float:
        return float(np.average(success[rows, chosen], weights=w) - means(w)[1].max())

    def share_of_cost(w: Floats) -> float:
        single_cost, single_success = means(w)
        best = int(single_success.argmax())
        return cost_to_reach(run.curve(w), float(single_success[best]) - WITHIN) / float(single_cost[best])

    figures = {
        "accuracy": weights.estimate(lambda w: np.average(success[rows, chosen], weights=w)),
        "accuracy_over_best_single": weights.estimate(best_gain),
        f"{name}_at_best_accuracy": weights.estimate(lambda w: np.average(cost[rows, chosen], weights=w)),
        "aiq": weights.estimate(lambda w: area(w).raw),
        "aiq_normalised": weights.estimate(lambda w: area(w).normalised),
        "aiq_normalised_static_mix": weights.estimate(lambda w: area(w).static),
        "cost_share_within_1_point": weights.estimate(share_of_cost),
        **_pair_figures(judged, weights),
    }
    over, under = over_and_under(chosen, success, cost)
    calibration = _calibration(judged)
    return {
        "bundle": judged.bundle,
        "queries": len(table),
        "outcomes": table.n_outcomes,
        "models": list(table.models),
        "cost_axis": name,
        "novelty_mean": float(judged.novelty.mean()),
        "figures": {key: value._asdict() for key, value in figures.items()},
        "over_routed": over,
        "under_routed": under,
        "calibration": calibration,
        "latency": _latency(judged),
        "policies": {key: _choice_row(table, cost, choice) for key, choice in judged.policy_choices.items()},
        "baselines": _baselines(judged, cost, predicted, oracle, Curve(*means(np.ones(len(table))))),
        "slices": _slices(judged, chosen, cost),
        "curve": _points(run.curve()),
        "oracle": _points(oracle.curve()),
    }


def _weighted_means(success: Floats, cost: Floats) -> Any:
    known = ~np.isnan(success)
    filled = np.where(known, success, 0.0)

    def means(w: Floats) -> tuple[Floats, Floats]:
        total = np.maximum(w @ known, 1e-12)
        return (w @ np.where(known, cost, 0.0)) / total, (w @ filled) / total

    return means


def _pair_figures(judged: JudgedOutcomes, weights: _Weights) -> dict[str, Estimate]:
    """Return APGR and CPT between the best model (strong) and the cheapest (weak), on rows where both were measured."""
    success = judged.table.success
    cost_means, success_means = baselines.model_means(judged.table)
    strong = int(success_means.argmax())
    weak = int(success_means.argmin()) if len(success_means) == 2 else int(cost_means.argmin())
    if strong == weak:
        return {}
    both = ~(np.isnan(success[:, strong]) | np.isnan(success[:, weak]))
    score = (judged.p_success[:, strong] - judged.p_success[:, weak])[both]
    good, poor = success[both, strong], success[both, weak]

    def resampled(figure: Any) -> Any:
        def of(w: Floats) -> float:
            index = np.repeat(np.arange(len(score)), w[both].astype(int))
            return float(figure(score[index], good[index], poor[index]))

        return of

    return {
        "apgr": weights.estimate(resampled(apgr)),
        "cpt_50": weights.estimate(resampled(lambda s, g, p: cpt(s, g, p, 0.5))),
        "cpt_80": weights.estimate(resampled(lambda s, g, p: cpt(s, g, p, 0.8))),
    }


def _calibration(judged: JudgedOutcomes) -> dict[str, Any]:
    per_model: dict[str, dict[str, Any]] = {}
    for j, model in enumerate(judged.table.models):
        p, y = judged.p_success[:, j], judged.table.success[:, j]
        per_model[model] = {"ece": ece(p, y), "brier": brier(p, y), "auc": auc(p, y), "bins": reliability(p, y)}
    mean = {key: float(np.nanmean([m[key] for m in per_model.values()])) for key in ("ece", "brier")}
    aucs = [m["auc"] for m in per_model.values() if np.isfinite(m["auc"])]
    return {**mean, "auc": float(np.mean(aucs)) if aucs else None, "models": per_model}


def _latency(judged: JudgedOutcomes) -> dict[str, Any]:
    table = judged.table
    reports = {}
    for j, model in enumerate(table.models):
        known = table.latency_s[:, j][~np.isnan(table.latency_s[:, j])]
        if len(known):
            reports[model] = latency_report(judged.latency_s[:, j], table.latency_s[:, j], float(np.median(known)))
    return reports


def _choice_row(table: OutcomeTable, cost: Floats, chosen: Index) -> dict[str, Any]:
    """Return what a choice gives and costs, on average over the queries where the chosen model was measured."""
    rows = np.flatnonzero(~np.isnan(table.success[np.arange(len(chosen)), chosen]))
    chosen = chosen[rows]
    shares = np.bincount(chosen, minlength=len(table.models)) / len(chosen)
    return {
        "queries": len(rows),
        "accuracy": float(table.success[rows, chosen].mean()),
        "mean_cost": float(cost[rows, chosen].mean()),
        "mean_latency_s": _mean_or_none(table.latency_s[rows, chosen]),
        "mean_cost_usd": _mean_or_none(table.cost_usd[rows, chosen]),
        "shares": dict(zip(table.models, shares.tolist(), strict=True)),
    }


def _mean_or_none(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _baselines(judged: JudgedOutcomes, cost: Floats, predicted: Floats, oracle: Sweep, single: Curve) -> dict[str, Any]:
    table, success = judged.table, judged.table.success
    measured = ~np.isnan(success)
    mean_cost = np.broadcast_to(single.cost, cost.shape)
    rows: dict[str, Any] = {}
    for j, model in enumerate(table.models):
        if measured[:, j].any():
            rows[f"always {model}"] = _choice_row(table, cost, np.full(len(table), j))
    rows["random"] = _choice_row(table, cost, choose(baselines.random_scores(table, 0), measured))
    swept: dict[str, Floats] = {"prompt length": baselines.length_scores(table)}
    if judged.features is not None:
        role = baselines.roles(*baselines.model_means(table))
        heuristic = baselines.heuristic_choice(role, judged.features.table)
        rules = np.eye(len(table.models))[heuristic]
        rows["heuristic rules"] = _choice_row(table, cost, choose(rules, measured))
        swept["knn, cross-fitted on these rows"] = baselines.knn_scores(table, judged.features)
    swept |= {"router": judged.p_success, "oracle": success}
    for name, scores in swept.items():
        expected = predicted if name == "router" else cost if name == "oracle" else mean_cost
        curve = sweep_choices(scores, expected, success, cost).curve()
        area = aiq_of(curve, single, oracle.curve())
        best = _choice_row(table, cost, choose(scores, measured))
        rows[name] = {**best, "aiq": area.raw, "aiq_normalised": area.normalised, "curve": _points(curve)}
    return rows


def _slices(judged: JudgedOutcomes, chosen: Index, cost: Floats) -> dict[str, Any]:
    names = np.array([query.slice or "" for query in judged.table.queries])
    found = {}
    for name in sorted(set(names.tolist())):
        rows = np.flatnonzero(names == name)
        part = judged.table.success[rows]
        single = np.nanmean(part[:, (~np.isnan(part)).any(axis=0)], axis=0)
        found[name or "(none)"] = {
            "queries": len(rows),
            "router": float(np.nanmean(part[np.arange(len(rows)), chosen[rows]])),
            "best_single_here": float(np.nanmax(single)),
            "router_cost": float(cost[rows, chosen[rows]].mean()),
            "novelty": float(judged.novelty[rows].mean()),
        }
    return found


def _points(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.cost.tolist(), curve.quality.tolist(), strict=True))


def summary(found: dict[str, Any]) -> str:
    """Return the report as text."""
    lines = [
        f"{found['bundle']}: {found['queries']} queries, {found['outcomes']} outcomes; cost is {found['cost_axis']}"
    ]
    if found.get("learned_from"):
        lines.append(
            f"  WARNING: {found['learned_from']} of these queries were used in training; the figures are optimistic"
        )
    lines += [
        f"  {key:<28} {value['value']:8.4f}   [{value['low']:.4f}, {value['high']:.4f}]"
        for key, value in found["figures"].items()
    ]
    c = found["calibration"]
    lines.append(f"  {'ece, brier':<28} {c['ece']:8.4f}   {c['brier']:.4f}")
    lines.append(f"  {'over, under routed':<28} {found['over_routed']:8.4f}   {found['under_routed']:.4f}")
    for model, entry in found["latency"].items():
        lines.append(
            f"  latency {model:<34} MAE/median {entry['mae_ratio']:.3f}  R2 log {entry['r2_log']:.3f}  "
            f"under p50 {entry['bias_p50']:.3f}  p95 {entry['coverage_p95']:.3f}"
        )
    rows = [("", "accuracy", "mean cost", "normalised AIQ", "queries")]
    for name, row in {**found["baselines"], **{f"policy {k}": v for k, v in found["policies"].items()}}.items():
        area = "" if row.get("aiq_normalised") is None else f"{row['aiq_normalised']:.3f}"
        rows.append((name, f"{row['accuracy']:.4f}", f"{row['mean_cost']:.5g}", area, str(row["queries"])))
    return "\n".join([*lines, format_table(rows)])


def evaluate(
    bundle: Path, queries: Path, outcomes: Path, *, resamples: int = RESAMPLES
) -> tuple[dict[str, Any], JudgedOutcomes]:
    """Judge the bundle in a folder on files of queries and outcomes. Raises `InputError` for files that do not fit."""
    table = outcome_table(read_queries(queries), read_outcomes(outcomes))
    table = table.rows(np.flatnonzero((~np.isnan(table.success)).any(axis=1)))
    if not len(table):
        raise InputError(
            f"{outcomes} holds no outcome with a known success; run 'python -m training.benchmark' to measure some"
        )
    loaded = load_bundle(bundle)
    extractor = Extractor(OnnxEmbedder(loaded.encoder, loaded.tokenizer))
    features = extractor.extract([q.text for q in table.queries], [q.context for q in table.queries])
    judged = judge(Router.load(bundle), table, features)
    found = report(judged, resamples=resamples)
    learned_from = np.isin(query_keys(table.queries), loaded.arrays.get(LEARNED_FROM, np.empty(0, np.uint64)))
    return {**found, "learned_from": int(learned_from.sum())}, judged


def _logged(found: dict[str, Any]) -> dict[str, float]:
    values = {f"test/{key}": value["value"] for key, value in found["figures"].items()}
    values |= {f"calibration/{key}": found["calibration"][key] for key in ("ece", "brier")}
    for model, entry in found["latency"].items():
        safe = "".join(ch if ch.isalnum() or ch in "-_. " else "_" for ch in model)
        values |= {f"latency/{safe}_{key}": entry[key] for key in ("mae_ratio", "coverage_p95", "r2_log")}
    return {key: float(value) for key, value in values.items() if value is not None and np.isfinite(value)}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.evaluate", __doc__)
    cli.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    cli.add_argument("--queries", type=Path, required=True, help="queries, JSON Lines")
    cli.add_argument("--outcomes", type=Path, required=True, help="measured outcomes on them, JSON Lines")
    cli.add_argument("--json", type=Path, metavar="F", help="write the whole report to this file")
    cli.add_argument("--plots", type=Path, metavar="D", help="draw plots into this folder")
    cli.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap resamples (%(default)s)")
    cli.add_argument("--experiment", default=EVALUATIONS, help="MLflow experiment (%(default)s)")
    cli.add_argument("--no-mlflow", action="store_true", help="do not log to MLflow")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run an evaluation; exit code 2 for bad input, 1 if the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("training.evaluate", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    found, judged = evaluate(options.bundle, options.queries, options.outcomes, resamples=options.resamples)
    print(summary(found))
    if found["learned_from"]:
        print(
            f"warning: {found['learned_from']} of the {found['queries']} queries were used to train "
            f"{found['bundle']}; the figures are optimistic, so judge it on other queries",
            file=sys.stderr,
        )
    write_json(options.json, found)
    if options.plots:
        draw_all(found, judged.latency_s, judged.table, options.plots)
    if not options.no_mlflow:
        name = f"{found['bundle']} on {options.outcomes.parent.name}/{options.outcomes.stem}"
        with tracked(options.experiment, name, summary(found).split("\n", 1)[0]) as tracker:
            tracker.params({"bundle": found["bundle"], "queries": found["queries"], "models": len(found["models"])})
            tracker.metrics(_logged(found))
            if options.plots:
                tracker.files(options.plots, "plots")


if __name__ == "__main__":
    sys.exit(main())
