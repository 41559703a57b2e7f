"""Learn success, latency, output tokens and cost of every model from measured outcomes, and export arrays.

The same recipe for every data set: the learners of `learners.LEARNERS` predict every row held out by its group
(`cross_fitting`); their blend is chosen by routing utility (`routing_utility`), recalibrated (`calibration`) and shrunk
towards each model's level (`level_fit`) as far as it is not proven (`shrinkage`); residuals give the
quantiles of latency (`conformal`); the result is folded into the arrays that serving computes (`head_export`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.arm import arm_key
from router_ml.catalogue import Catalogue, Model, model_entry
from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.ability import Abilities
from router_ml.decide.predictors.difficulty import Difficulty, DifficultyHead
from router_ml.decide.predictors.outcomes import FORMAT
from router_ml.types import Outcome, Query
from training.arrays import Arrays, Index, Matrix
from training.outcomes.blending import (
    Settings,
    best_settings,
    blended_quantities,
    blended_success,
    latency_from_tokens,
)
from training.outcomes.calibration import fit_calibration
from training.outcomes.cascade_fit import cascade_config
from training.outcomes.conformal import latency_error, residual_quantiles, smearing
from training.outcomes.cross_fitting import FOLDS, HeldOut, cross_fit, fit_learners
from training.outcomes.guarantee_table import guarantee_table
from training.outcomes.head_export import export_heads
from training.outcomes.learner import TrainingRows
from training.outcomes.learners import Blend, success_blends
from training.outcomes.level_fit import LevelFit, LevelRows
from training.outcomes.neighbour_learner import neighbour_count
from training.outcomes.ridge_learner import penalties
from training.outcomes.routing_utility import routing_utility
from training.outcomes.shrinkage import NOVEL_MARGIN, proven_factor, significantly_better
from training.outcomes.table import MIN_QUERIES, MIN_ROWS, OutcomeTable, derived_profiles, outcome_table
from training.outcomes.targets import targets_of
from training.outcomes.transfer_learner import shrinkage_correction

NOVELTY_QUANTILES = (0.92, 0.955)  # of the training queries' own distance, between which novelty rises from 0 to 1
MARGIN_QUANTILES = (0.6, 0.96)  # the same for the margin, which grows for queries that are only a little unusual
_MIN_DISTANCE_RANGE = 1e-3
LEVELS = "prior"  # no learner: each model's prior and its own outcomes
LEVEL_ROWS = 10.0  # outcomes of a model from which what was learned of queries weighs more than half

Log = Callable[[str, dict[str, float]], None]


@dataclass(frozen=True)
class FittedOutcomes:
    """What was learned: JSON-ready configuration, arrays, a report, and profiles of models in no catalogue."""

    config: dict[str, Any]
    arrays: Arrays
    report: dict[str, Any]
    profiles: tuple[Model, ...]


class Chosen(NamedTuple):
    """What cross-validation chose."""

    blend: Blend
    settings: Settings
    factor: float  # share of what was learned of queries that is served
    p: Matrix  # (n, M) success as it will be served, held out
    cost: Matrix  # (n, M) expected seconds, else dollars; held out


def fit_outcomes(
    queries: Sequence[Query],
    outcomes: Sequence[Outcome],
    features: Features,
    complexity: NDArray[Any],
    catalogue: Catalogue,
    *,
    seed: int,
    tune: bool,
    log: Log | None = None,
    reading: DifficultyHead | None = None,
) -> FittedOutcomes:
    """Learn outcomes of all models; `features` and `complexity` (n, 4) are rows of the same queries. `reading` is the
    difficulty head that will serve with them.

    `log(name, metrics)` is called for each blend tried. Raises `InputError` for outcomes that cannot be used."""
    table = outcome_table(queries, said(outcomes, catalogue))
    place = {query.id: i for i, query in enumerate(queries)}
    index = np.array([place[query.id] for query in table.queries], dtype=np.intp)
    features, probabilities = features.rows(index), np.asarray(complexity, np.float64)[index]
    difficulty = _difficulties(features, reading)
    levels = LevelFit(table.models, catalogue, reading)
    abilities = levels.fit(table, LevelRows(probabilities.astype(np.float32), difficulty))
    abilities, profiles = levels.settled(abilities, derived_profiles(table, probabilities, catalogue))
    table, kept = _learnable(table)
    features, probabilities = features.rows(kept), probabilities[kept]
    if reason := _too_few(table):
        return _levels_alone(reason, profiles, abilities)
    rows = TrainingRows(features, probabilities, targets_of(table), seed, tune)
    held_out = cross_fit(rows, table.groups)
    level_rows = LevelRows(probabilities.astype(np.float32), _difficulties(features, reading))
    level = LevelFit(table.models, catalogue, reading).held_out(table, level_rows, FOLDS, seed)
    chosen, report = _choose(table, rows, held_out, level, log)
    fitted = _final(table, rows, held_out, chosen, report, profiles)
    fitted.config["abilities"] = abilities.as_config()
    return fitted


def said(outcomes: Sequence[Outcome], catalogue: Catalogue) -> list[Outcome]:
    """Return the outcomes; those that do not say how the model was asked count for its default arm where that arm has
    rows of its own, and are left out for a query that has both."""
    keys = {(o.query_id, arm_key(o.model, o.think)) for o in outcomes}
    measured = {key for _, key in keys}
    found = []
    for o in outcomes:
        arm = catalogue.arm(o.model) if o.think is None else None
        if arm is None or arm_key(o.model, arm.think) not in measured or arm.think is None:
            found.append(o)
        elif (o.query_id, arm_key(o.model, arm.think)) not in keys:
            found.append(replace(o, think=arm.think))
    return found


def _difficulties(features: Features, reading: DifficultyHead | None) -> list[Difficulty] | None:
    if reading is None:
        return None
    return [reading(*pair) for pair in zip(features.embedding, features.table, strict=True)]


def _learnable(table: OutcomeTable) -> tuple[OutcomeTable, Index]:
    """Keep models with enough known successes, and queries with a known success of one of them."""
    enough = np.flatnonzero((~np.isnan(table.success)).sum(axis=0) >= MIN_ROWS)
    table = table.columns(enough.tolist())
    rows: Index = np.flatnonzero((~np.isnan(table.success)).any(axis=1))
    return table.rows(rows), rows


def _too_few(table: OutcomeTable) -> str:
    """Return why nothing can be learned, or ""."""
    if len(table) < MIN_QUERIES or not table.models:
        return f"{len(table)} queries with outcomes; {MIN_QUERIES} are needed before anything is learned"
    if not table.groups.any():
        return "all queries are of one group, so none can be held out; give queries of several groups"
    return ""


def _levels_alone(reason: str, profiles: tuple[Model, ...], abilities: Abilities) -> FittedOutcomes:
    entries = [model_entry(model) for model in profiles]
    config = {
        "format": FORMAT,
        "models": [],
        "profiles": entries,
        "learner": LEVELS,
        "abilities": abilities.as_config(),
    }
    return FittedOutcomes(config, {}, {"learner": LEVELS, "reason": reason}, profiles)


def _choose(
    table: OutcomeTable, rows: TrainingRows, held_out: HeldOut, level: Matrix, log: Log | None
) -> tuple[Chosen, dict[str, Any]]:
    """Choose settings, blend and shrinkage on held-out rows."""
    n_models, blends = len(table.models), success_blends()
    settings = best_settings(held_out, rows.targets, next(iter(blends.values())))
    utility = routing_utility(table, rows.targets, blended_quantities(held_out, settings, n_models))
    baseline = utility(level)
    tried = {LEVELS: utility.figures(level, baseline)}
    best_name, best_p, best_utilities = "", level, baseline
    for name, blend in blends.items():
        raw = blended_success(held_out, settings, blend, n_models)
        p = fit_calibration(raw, table.success)(raw)
        tried[name], utilities = utility.figures(p, baseline), utility(p)
        if not best_name or significantly_better(utilities, best_utilities):
            best_name, best_p, best_utilities = name, p, utilities
    for name, figures in tried.items():
        if log is not None:
            log(name, {f"val/{key}": value for key, value in figures.items()})
    factor = proven_factor(best_p, level, utility)
    single = {model: float(np.nanmean(table.success[:, j])) for j, model in enumerate(table.models)}
    learner = best_name if factor else LEVELS
    report = {
        "learner": learner,
        "shrinkage": factor,
        "queries": len(table),
        "outcomes": table.n_outcomes,
        "penalty": penalties(rows.tune)[settings["linear"].success],
        "best_single": max(single, key=single.__getitem__),
        "best_single_success": max(single.values()),
        "cross_validated": tried,
    }
    served = best_p + np.array(_level_weights(table, factor)) * (level - best_p)
    return Chosen(blends[best_name], settings, factor, served, utility.expected_cost), report


def _final(
    table: OutcomeTable,
    rows: TrainingRows,
    held_out: HeldOut,
    chosen: Chosen,
    report: dict[str, Any],
    profiles: tuple[Model, ...],
) -> FittedOutcomes:
    """Fit on all rows and fold in what the held-out predictions taught."""
    targets, n_models = rows.targets, rows.targets.n_models
    fitted = fit_learners(rows)
    raw = blended_success(held_out, chosen.settings, chosen.blend, n_models)
    calibration = fit_calibration(raw, table.success)
    predicted = np.hstack((raw, blended_quantities(held_out, chosen.settings, n_models)))
    mix = latency_from_tokens(targets, predicted)
    novelty, unusual = (_between(held_out.distance, quantiles) for quantiles in (NOVELTY_QUANTILES, MARGIN_QUANTILES))
    served = _with_transfer(mix(predicted), held_out, novelty)
    if np.isfinite(error := latency_error(targets, served)):
        report["latency_error"] = error
    offset = smearing(targets, served)
    mix.matrix[:n_models, :n_models] *= calibration.slope
    mix.constant[:n_models] = calibration.intercept
    mix.constant[n_models:] += offset[n_models:]
    scale = shrinkage_correction(held_out.transfer[:, :n_models], table.success)
    fitted = replace(fitted, transfer=fitted.transfer.rescaled(scale, n_models))
    arrays = export_heads(fitted, chosen.settings, chosen.blend, mix, offset)
    default = int(rows.means[:n_models].argmax())
    config = {
        "format": FORMAT,
        "learner": report["learner"],
        "trust": chosen.factor,
        "models": list(table.models),
        "default_model": table.models[default],
        "profiles": [model_entry(model) for model in profiles],
        "columns": targets.columns,
        "latency_residuals": residual_quantiles(targets, served),
        "outcomes": (~np.isnan(table.success)).sum(axis=0).tolist(),
        "prior_weight": _level_weights(table, chosen.factor),
        "basis": int(rows.basis.directions.shape[1]),
        "margin": {"near": 0.0, "far": NOVEL_MARGIN if chosen.factor else 0.0},
        "novelty": _range(novelty),
        "doubt": _range(unusual),
        "cascade": cascade_config(chosen.p, table.success, table.logprob_mean, table.groups, rows.seed),
        "guarantee": guarantee_table(chosen.p, table.success, chosen.cost, table.groups, default),
        "neighbours": {"k": neighbour_count(len(rows))} if "neighbour_keys" in arrays else None,
    }
    return FittedOutcomes(config, arrays, report, profiles)


def _between(distance: Matrix, quantiles: tuple[float, float]) -> tuple[float, float]:
    return float(np.quantile(distance, quantiles[0])), float(np.quantile(distance, quantiles[1]))


def _range(bounds: tuple[float, float]) -> dict[str, float]:
    near, far = bounds
    return {"near": near, "far": max(far, near + _MIN_DISTANCE_RANGE)}


def _with_transfer(predicted: Matrix, held_out: HeldOut, bounds: tuple[float, float]) -> Matrix:
    """Return held-out predictions (n, K) as they are served: for novel queries mainly by the transfer head."""
    near, far = bounds
    novelty = np.clip((held_out.distance - near) / max(far - near, _MIN_DISTANCE_RANGE), 0.0, 1.0)
    return np.asarray(predicted + novelty[:, None] * (held_out.transfer - predicted))


def _level_weights(table: OutcomeTable, factor: float) -> list[float]:
    """Return the weight of each model's level beside what was learned of queries."""
    rows = (~np.isnan(table.success)).sum(axis=0)
    weights: list[float] = (1.0 - factor * rows / (rows + LEVEL_ROWS)).tolist()
    return weights
