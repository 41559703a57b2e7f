"""Learns success, latency, output tokens and cost of every model from measured outcomes, and exports arrays.

The recipe, the same for every data set: a ridge regression and a forest for all models together, and a kNN, are
predicted out of fold by grouped cross-validation; the fit chooses their blend by *routing utility*: what the choices
would really have given at several prices of time. The best single model is the yardstick: another model must beat its
chance of success by a margin, and where no gain over it is proven, none ever does. The margin touches only the side
where the default would lose its place, so the time saved by cheaper models stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import Catalogue, Model, model_entry
from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.neighbours import Neighbours
from router_ml.decide.predictors.outcomes import FORMAT, NEVER, QUANTITIES, with_margin
from router_ml.types import Outcome, Query
from training.measuring.metrics import aiq, auc, brier, choose, ece, sweep
from training.outcomes.basis import Basis, fit_basis
from training.outcomes.forest_learner import export_forest, fit_forest, predict_forest
from training.outcomes.ridge_learner import Matrix, fit_ridge
from training.outcomes.table import MIN_COST_USD, MIN_QUERIES, MIN_ROWS, OutcomeTable, derived_profiles, outcome_table

FOLDS = 5
PENALTIES = (100.0, 300.0, 1000.0)
PENALTY = 300.0
TRANSFER_PENALTY = 10_000.0  # so strong that each feature speaks almost for itself: that carries over to unseen tasks
TRANSFER_PENALTY_LOG = 1_000.0
MAX_SPREAD = 4.0
NEIGHBOURS = 60
ROWS_PER_NEIGHBOUR = 8
STORED_ROWS = 32_768  # a bundle stays small
SUCCESS_TREES, QUANTITY_TREES = 128, 72
PRICES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5)  # of cost, in units of the models' spread of quality over cost
TRUST = (1.0, 0.75, 0.5, 0.25, 0.1)  # how far differences from the models' means are believed
CAUTION = 2.0  # standard errors an alternative must gain before it replaces the choice preferred without proof
DOUBT = 1.0  # standard errors by which a gain over the best single model may be smaller than it looks,
SCARCE = 100.0  # and this over the number of queries more: the choice among learners flatters most where rows are few
MARGINS = (0.0, 0.02)  # chance of success by which another model must beat the default model; else `NEVER`
MARGIN_DOUBT, MARGIN_SCARCE = 0.3, 250.0  # as DOUBT and SCARCE, for the gain in success alone
NOVEL_MARGIN = 0.1  # the same for a query unlike all training queries
NEAR, FAR = 0.92, 0.955  # quantiles of the training queries' own distance between which novelty rises from 0 to 1
DOUBT_NEAR, DOUBT_FAR = 0.6, 0.96  # the same for the margin, which is asked of queries that are only a little unusual
LEVELS = (0.5, 0.9, 0.95)
Log = Callable[[str, dict[str, float]], None]


class Blend(NamedTuple):
    """Shares of the three learners in p_success."""

    linear: float
    forest: float
    neighbours: float


# In the order in which they are preferred where the gain is not clear.
LEARNERS: dict[str, Blend] = {
    "linear + forest + knn": Blend(1 / 4, 2 / 4, 1 / 4),
    "linear + forest": Blend(1 / 3, 2 / 3, 0.0),
    "forest + knn": Blend(0.0, 1 / 2, 1 / 2),
    "forest": Blend(0.0, 1.0, 0.0),
    "linear": Blend(1.0, 0.0, 0.0),
    "linear + knn": Blend(1 / 2, 0.0, 1 / 2),
    "knn": Blend(0.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class FittedOutcomes:
    """What the fit learned: JSON-ready configuration, arrays, a report, and profiles of models in no catalogue."""

    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    report: dict[str, Any]
    profiles: tuple[Model, ...]


@dataclass(frozen=True)
class _Targets:
    """Everything to be predicted, as columns: success of each model, then the log of each quantity known of it."""

    values: Matrix  # (n, K)
    n_models: int
    columns: dict[str, list[int]]  # per quantity, for each model its place among that quantity's columns, or -1

    def column(self, quantity: str, model: int) -> int:
        """Column of a quantity of a model, or -1."""
        place, offset = self.columns[quantity][model], self.n_models
        for name in QUANTITIES:
            if name == quantity:
                return -1 if place < 0 else offset + place
            offset += sum(p >= 0 for p in self.columns[name])
        raise KeyError(quantity)


@dataclass
class _OutOfFold:
    """Predictions for rows that the learner did not see."""

    linear: dict[float, Matrix] = field(default_factory=dict)
    forest: Matrix = field(default_factory=lambda: np.zeros(0))
    neighbours: Matrix = field(default_factory=lambda: np.zeros(0))
    transfer: Matrix = field(default_factory=lambda: np.zeros(0))
    means: Matrix = field(default_factory=lambda: np.zeros(0))
    distance: Matrix = field(default_factory=lambda: np.zeros(0))


class _Chosen(NamedTuple):
    learner: str
    blend: Blend
    trust: float
    margin: float


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
) -> FittedOutcomes:
    """Learn outcomes of all models; `features` and `complexity` (n, 4) are rows of the same queries.

    `log(name, metrics)` is called for each learner tried. Raises `InputError` for outcomes that cannot be used."""
    table = outcome_table(queries, outcomes)
    place = {query.id: i for i, query in enumerate(queries)}
    index = np.array([place[query.id] for query in table.queries], dtype=np.intp)
    features, probabilities = features.rows(index), np.asarray(complexity, np.float64)[index]
    profiles = derived_profiles(table, probabilities, catalogue)
    table, features, probabilities = _learnable(table, features, probabilities)
    if len(table) < MIN_QUERIES or not table.models:
        return _priors_alone(table, profiles)
    targets = _targets(table)
    data = _Data(table, features, probabilities, targets, seed)
    folds = _out_of_fold(data, PENALTIES if tune else (PENALTY,))
    penalties = _best_penalties(folds, targets)
    chosen, report = _choose(data, folds, penalties, log)
    return _final(data, folds, penalties, chosen, report, profiles, catalogue)


class _Data(NamedTuple):
    table: OutcomeTable
    features: Features
    complexity: Matrix
    targets: _Targets
    seed: int


def _learnable(table: OutcomeTable, features: Features, complexity: Matrix) -> tuple[OutcomeTable, Features, Matrix]:
    enough = np.flatnonzero((~np.isnan(table.success)).sum(axis=0) >= MIN_ROWS)
    table = table.columns(enough.tolist())
    rows: NDArray[np.intp] = np.flatnonzero((~np.isnan(table.success)).any(axis=1))
    return table.rows(rows), features.rows(rows), complexity[rows]


def _priors_alone(table: OutcomeTable, profiles: tuple[Model, ...]) -> FittedOutcomes:
    why = f"{len(table)} queries with outcomes; {MIN_QUERIES} are needed before anything is learned"
    config = {
        "format": FORMAT,
        "models": [],
        "profiles": [model_entry(model) for model in profiles],
        "learner": "prior",
    }
    return FittedOutcomes(config, {}, {"learner": "prior", "reason": why}, profiles)


def _targets(table: OutcomeTable) -> _Targets:
    parts = [table.success]
    columns: dict[str, list[int]] = {}
    for name in QUANTITIES:
        values = getattr(table, name)
        known = (~np.isnan(values)).sum(axis=0) >= MIN_ROWS
        columns[name] = np.where(known, np.cumsum(known) - 1, -1).tolist()
        floor = MIN_COST_USD if name == "cost_usd" else 1e-3 if name == "latency_s" else 1.0
        parts.append(np.log(np.maximum(values[:, known], floor)))
    return _Targets(np.hstack(parts), len(table.models), columns)


def _splits(groups: NDArray[np.intp], seed: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    n_groups = int(groups.max()) + 1
    fold = (np.random.default_rng(seed).permutation(n_groups) % FOLDS)[groups]
    for f in range(FOLDS):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        if len(train) and len(test):
            yield train, test


def _out_of_fold(data: _Data, penalties: Sequence[float]) -> _OutOfFold:
    values, n_models = data.targets.values, data.targets.n_models
    blank = np.full(values.shape, np.nan)
    out = _OutOfFold(
        linear={penalty: blank.copy() for penalty in penalties},
        forest=blank.copy(),
        neighbours=np.full((len(values), n_models), np.nan),
        transfer=blank.copy(),
        means=blank.copy(),
        distance=np.full(len(values), np.nan),
    )
    for train, test in _splits(data.table.groups, data.seed):
        learners = _fit_learners(data, train, penalties)
        seen = data.features.rows(test)
        inputs = learners.basis.inputs(seen, data.complexity[test])
        for penalty, ridge in learners.linear.items():
            out.linear[penalty][test] = ridge(inputs)
        out.forest[test] = learners.predict_forest(seen)
        keys = learners.basis.neighbour_keys(seen).astype(np.float32)
        out.neighbours[test] = Neighbours(learners.keys, values[train, :n_models].astype(np.float32), learners.k)(keys)
        out.transfer[test] = learners.transfer(learners.basis.transfer_inputs(seen))
        out.means[test] = learners.means
        out.distance[test] = learners.basis.distance(seen)
    return out


@dataclass(frozen=True)
class _Learners:
    """Everything fitted on one set of rows."""

    basis: Basis
    linear: dict[float, Any]
    forests: tuple[_Forest, ...]
    transfer: Any
    transfer_centre: Matrix  # what the transfer head says on average of the rows it was fitted on
    means: Matrix
    keys: NDArray[np.float32]
    k: int

    def with_transfer_spread(self, spread: float, n_models: int) -> _Learners:
        """The same with the transfer head's success spread out around the models' means."""
        weights, bias = self.transfer.weights.copy(), self.transfer.bias.copy()
        weights[:, :n_models] *= spread
        bias[:n_models] = self.transfer_centre[:n_models] + spread * (bias[:n_models] - self.transfer_centre[:n_models])
        return replace(self, transfer=self.transfer._replace(weights=weights, bias=bias))

    def predict_forest(self, features: Features) -> Matrix:
        inputs = self.basis.forest_inputs(features)
        out = np.broadcast_to(self.means, (len(inputs), len(self.means))).copy()
        for forest in self.forests:
            out[:, forest.columns] += predict_forest(forest.model, inputs) * forest.scale
        return out


def _spread(transfer: Matrix, success: Matrix) -> float:
    """How much wider the timid transfer head must speak to be right on average: else it drowns where it is mixed in."""
    known = ~np.isnan(success)
    count = np.maximum(known.sum(axis=0), 1)
    x = np.where(known, transfer - np.where(known, transfer, 0).sum(axis=0) / count, 0.0)
    return float(np.clip((x * np.nan_to_num(success)).sum() / max(float((x * x).sum()), 1e-9), 1.0, MAX_SPREAD))


class _Forest(NamedTuple):
    """A forest on some of the targets, each in units of its spread."""

    model: Any
    columns: slice
    scale: Matrix

    def exported(self, n_columns: int) -> dict[str, NDArray[Any]]:
        """Its arrays, with a column of values for every target."""
        arrays = export_forest(self.model)
        values = np.zeros((*arrays["values"].shape[:2], n_columns))
        values[:, :, self.columns] = arrays["values"] * self.scale
        return arrays | {"values": values}


def _fit_forests(inputs: Matrix, targets: Matrix, data: _Data) -> tuple[_Forest, ...]:
    """One forest for success, another for the quantities: what moves latency is not what moves success."""
    n_models, forests = data.targets.n_models, []
    for columns, trees in ((slice(0, n_models), SUCCESS_TREES), (slice(n_models, None), QUANTITY_TREES)):
        wanted = targets[:, columns]
        if wanted.shape[1]:
            scale = np.maximum(wanted.std(axis=0), 1e-3)
            forests.append(_Forest(fit_forest(inputs, wanted / scale, data.seed, trees), columns, scale))
    return tuple(forests)


def _fit_learners(data: _Data, rows: NDArray[np.intp], penalties: Sequence[float]) -> _Learners:
    features, complexity, values = data.features.rows(rows), data.complexity[rows], data.targets.values[rows]
    basis = fit_basis(features, complexity, data.seed)
    inputs = basis.inputs(features, complexity)
    means = _pulled_means(values, data.targets.n_models)
    linear = {penalty: fit_ridge(inputs, _or_mean(values, means), penalty) for penalty in penalties}
    # what was not measured is filled with what the linear learner expects, so that the trees see complete rows
    filled = np.where(np.isnan(values), linear[penalties[len(penalties) // 2]](inputs), values)
    forests = _fit_forests(basis.forest_inputs(features), filled - means, data)
    surface = basis.transfer_inputs(features)
    transfer = _fit_transfer(surface, _or_mean(values, means), data.targets.n_models)
    k = max(1, min(NEIGHBOURS, len(rows) // ROWS_PER_NEIGHBOUR))
    return _Learners(
        basis,
        linear,
        forests,
        transfer,
        transfer(surface).mean(axis=0),
        means,
        basis.neighbour_keys(features).astype(np.float32),
        k,
    )


def _or_mean(values: Matrix, means: Matrix) -> Matrix:
    """A column without any known row is its mean."""
    empty = np.isnan(values).all(axis=0)
    return np.where(empty, means, values) if empty.any() else values


def _pulled_means(values: Matrix, n_models: int) -> Matrix:
    """Column means; a success rate counts one success and one failure more, so that it never is 0 or 1."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(float)
    total[:n_models] += 1.0
    count[:n_models] += 2.0
    return np.asarray(total / np.maximum(count, 1.0))


def _fit_transfer(inputs: Matrix, values: Matrix, n_models: int) -> Any:
    success = fit_ridge(inputs, values[:, :n_models], TRANSFER_PENALTY)
    if values.shape[1] == n_models:
        return success
    quantities = fit_ridge(inputs, values[:, n_models:], TRANSFER_PENALTY_LOG)
    return success._replace(
        weights=np.hstack((success.weights, quantities.weights)), bias=np.concatenate((success.bias, quantities.bias))
    )


class _Penalties(NamedTuple):
    success: float
    quantities: float


def _best_penalties(folds: _OutOfFold, targets: _Targets) -> _Penalties:
    """The penalties that serve best beside the forest: alone, the linear learner would want to be too timid."""
    preferred = next(iter(LEARNERS.values()))

    def best(columns: slice, share: float) -> float:
        wanted = targets.values[:, columns]
        if not wanted.shape[1]:
            return next(iter(folds.linear))
        spread, forest = np.nanvar(wanted, axis=0) + 1e-9, folds.forest[:, columns]
        errors = {
            penalty: float(np.nanmean((share * linear[:, columns] + (1 - share) * forest - wanted) ** 2 / spread))
            for penalty, linear in folds.linear.items()
        }
        return min(errors, key=errors.__getitem__)

    success, quantities = slice(0, targets.n_models), slice(targets.n_models, None)
    return _Penalties(best(success, preferred.linear), best(quantities, 0.5))


def _quantities(folds: _OutOfFold, penalties: _Penalties, n_models: int) -> Matrix:
    """Log quantities: ridge and forest in equal parts."""
    return 0.5 * (folds.linear[penalties.quantities][:, n_models:] + folds.forest[:, n_models:])


def _blended(folds: _OutOfFold, penalty: float, blend: Blend, n_models: int) -> Matrix:
    linear, forest = folds.linear[penalty][:, :n_models], folds.forest[:, :n_models]
    return blend.linear * linear + blend.forest * forest + blend.neighbours * folds.neighbours


class _Calibration(NamedTuple):
    """Per model: `p = intercept + slope * raw`."""

    slope: Matrix
    intercept: Matrix

    def __call__(self, raw: Matrix) -> Matrix:
        return self.intercept + self.slope * raw


def _calibrate(raw: Matrix, success: Matrix) -> _Calibration:
    """Linear recalibration on rows the learner did not see: a level for each model, one slope for all of them.

    A slope of its own for each model would turn the noise in the slopes into differences between models."""
    known = ~np.isnan(success)
    count = np.maximum(known.sum(axis=0), 1)
    x_mean = np.where(known, raw, 0).sum(axis=0) / count
    y_mean = np.where(known, success, 0).sum(axis=0) / count
    x, y = np.where(known, raw - x_mean, 0.0), np.where(known, success - y_mean, 0.0)
    common = float((x * y).sum() / max(float((x * x).sum()), 1e-9))
    slope = np.full(raw.shape[1], np.clip(common, 0.0, 1.5))
    return _Calibration(slope, y_mean - slope * x_mean)


class _Economy(NamedTuple):
    """What choices cost and give, for the routing utility. Rows with at least one known success."""

    success: Matrix
    cost: Matrix  # true; the model's mean where unknown
    expected: Matrix  # predicted out of fold
    measured: NDArray[np.bool_]
    unit: float  # quality the dearest model may cost: one unit of PRICES

    def utilities(self, p: Matrix) -> Matrix:
        """Mean over the prices of success minus price times cost of the model chosen, for each query."""
        rows = np.arange(len(p))
        total = np.zeros(len(p))
        for price in PRICES:
            weight = price * self.unit
            chosen = choose(p - weight * self.expected, self.measured)
            total += self.success[rows, chosen] - weight * self.cost[rows, chosen]
        return total / len(PRICES)

    def gained(self, p: Matrix) -> Matrix:
        """Success of the model likeliest to succeed, for each query."""
        return np.asarray(self.success[np.arange(len(p)), choose(p, self.measured)])


def _economy(data: _Data, quantities: Matrix) -> _Economy:
    name, cost = data.table.cost_axis
    known = ~np.isnan(cost)
    means = np.where(known, cost, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    means = np.where(known.any(axis=0), means, means[known.any(axis=0)].mean() if known.any() else 0.0)
    expected = np.broadcast_to(means, cost.shape).copy()
    for j in range(len(means)):
        column = data.targets.column(name, j) if name in QUANTITIES else -1
        if column >= 0:
            predicted = np.exp(quantities[:, column - data.targets.n_models])
            expected[:, j] = predicted * means[j] / predicted.mean()
    success = data.table.success
    rates = np.nanmean(success, axis=0)
    spread = float(means.max() - means.min())
    unit = max(float(rates.max() - rates.min()), 0.05) / spread if spread > 0 else 0.0
    return _Economy(np.nan_to_num(success), np.where(known, cost, means), expected, ~np.isnan(success), unit)


def _choose(data: _Data, folds: _OutOfFold, penalties: _Penalties, log: Log | None) -> tuple[_Chosen, dict[str, Any]]:
    """The learner and the trust with the best routing utility; a gain within the noise does not count."""
    n_models = data.targets.n_models
    economy = _economy(data, _quantities(folds, penalties, n_models))
    means = folds.means[:, :n_models]
    fixed = economy.utilities(means)
    tried: dict[str, dict[str, float]] = {"prior": _scores(means, data, economy, fixed)}
    best: tuple[str, Matrix, Matrix] | None = None
    for name, blend in LEARNERS.items():
        raw = _blended(folds, penalties.success, blend, n_models)
        p = _calibrate(raw, data.table.success)(raw)
        utilities = economy.utilities(p)
        tried[name] = _scores(p, data, economy, fixed)
        if best is None or _clearly_better(utilities, best[2]):
            best = name, p, utilities
    assert best is not None
    for name, scores in tried.items():
        if log is not None:
            log(name, {f"val/{key}": value for key, value in scores.items()})
    name, p, _ = best
    margin = _margin(p, means, economy)
    trust = _trusted(p, means, economy, fixed, margin)
    single = {model: float(np.nanmean(data.table.success[:, j])) for j, model in enumerate(data.table.models)}
    report = {
        "learner": "prior" if trust == 0.0 else name,
        "trust": trust,
        "margin": margin,
        "queries": len(data.table),
        "outcomes": data.table.n_outcomes,
        "penalty": penalties.success,
        "best_single": max(single, key=single.__getitem__),
        "best_single_success": max(single.values()),
        "cross_validated": tried,
    }
    return _Chosen(name, LEARNERS[name], trust, margin), report


def _clearly_better(new: Matrix, old: Matrix) -> bool:
    gain = new - old
    return bool(gain.mean() > CAUTION * gain.std() / np.sqrt(len(gain)) and gain.mean() > 0)


def _margin(p: Matrix, means: Matrix, economy: _Economy) -> float:
    """The margin over the default model that gains most success; `NEVER` where not even that is likely a gain over
    the best single model of all rows."""
    single = economy.success[:, np.nanmean(np.where(economy.measured, economy.success, np.nan), axis=0).argmax()]
    gains = {margin: economy.gained(_held(p, means, margin)) - single for margin in MARGINS}
    best = max(gains, key=lambda margin: float(gains[margin].mean()))
    return best if _lower_bound(gains[best], MARGIN_DOUBT + MARGIN_SCARCE / len(p)) > 0 else NEVER


def _held(p: Matrix, means: Matrix, margin: float) -> Matrix:
    """`with_margin`, each row's default being the best single model of the rows its fold was fitted on."""
    held = p.copy()
    default = means.argmax(axis=1)
    for j in np.unique(default):
        held[default == j] = with_margin(p[default == j], int(j), margin)
    return held


def _trusted(p: Matrix, means: Matrix, economy: _Economy, fixed: Matrix, margin: float) -> float:
    """How far differences between queries are believed: all the way where that gains over the best single model, else
    as far as the gain is proven, and not at all where there is none at any price."""
    doubt = DOUBT + SCARCE / len(p)
    for trust in TRUST:
        gain = economy.utilities(_held(means + trust * (p - means), means, margin)) - fixed
        if _lower_bound(gain, doubt) > 0:
            return trust
    return 0.0


def _lower_bound(gain: Matrix, doubt: float) -> float:
    return float(gain.mean() - doubt * gain.std() / np.sqrt(len(gain)))


def _scores(p: Matrix, data: _Data, economy: _Economy, fixed: Matrix) -> dict[str, float]:
    success = data.table.success
    clipped = np.clip(p, 0.0, 1.0)
    chosen = choose(p, economy.measured)
    curve = sweep(p, economy.expected, np.where(economy.measured, success, np.nan), economy.cost)
    area = aiq(curve, success, economy.cost) if economy.unit else None
    utilities = economy.utilities(p)
    scores = {
        "utility": float(utilities.mean()),
        "utility_gain": float((utilities - fixed).mean()),
        "utility_gain_se": float((utilities - fixed).std() / np.sqrt(len(fixed))),
        "accuracy": float(economy.success[np.arange(len(p)), chosen].mean()),
        "brier": brier(clipped, success),
        "ece": float(np.nanmean([ece(clipped[:, j], success[:, j]) for j in range(p.shape[1])])),
        "auc": _mean_known([auc(p[:, j], success[:, j]) for j in range(p.shape[1])]),
    }
    if area is not None:
        scores |= {"aiq": area.raw, "aiq_normalised": area.normalised}
    return {name: value for name, value in scores.items() if np.isfinite(value)}


def _mean_known(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


class _Mix(NamedTuple):
    """A linear map of the targets' predictions (K, K) and a constant (K,)."""

    matrix: Matrix
    constant: Matrix


def _quantity_mix(data: _Data, predicted: Matrix) -> _Mix:
    """Latency from predicted output tokens where that is the better road, else from log latency directly.

    With tokens, log latency = a + b * log tokens, a model's rate; both roads' mean is the third way. Chosen for each
    model by the mean absolute error out of fold."""
    targets = data.targets
    matrix, constant = np.eye(predicted.shape[1]), np.zeros(predicted.shape[1])
    for j in range(targets.n_models):
        latency, tokens = targets.column("latency_s", j), targets.column("output_tokens", j)
        if latency < 0 or tokens < 0:
            continue
        y, t, t_hat = targets.values[:, latency], targets.values[:, tokens], predicted[:, tokens]
        known = ~(np.isnan(y) | np.isnan(t))
        if known.sum() < MIN_ROWS or t_hat[known].std() < 1e-6:
            continue
        slope, level = np.polyfit(t_hat[known], y[known], 1)
        errors = {
            share: float(
                np.abs(y - (1 - share) * predicted[:, latency] - share * (level + slope * t_hat))[known].mean()
            )
            for share in (0.0, 0.5, 1.0)
        }
        share = min(errors, key=errors.__getitem__)
        matrix[:, latency] *= 1 - share
        matrix[tokens, latency] += share * slope
        constant[latency] += share * level
    return _Mix(matrix, constant)


def _final(
    data: _Data,
    folds: _OutOfFold,
    penalties: _Penalties,
    chosen: _Chosen,
    report: dict[str, Any],
    profiles: tuple[Model, ...],
    catalogue: Catalogue,
) -> FittedOutcomes:
    targets, n_models = data.targets, data.targets.n_models
    learners = _fit_learners(data, np.arange(len(data.table)), tuple(folds.linear))
    means = learners.means[:n_models]
    raw = _blended(folds, penalties.success, chosen.blend, n_models)
    calibration = _calibrate(raw, data.table.success)
    slope = chosen.trust * calibration.slope
    intercept = chosen.trust * calibration.intercept + (1 - chosen.trust) * means
    predicted = np.hstack((raw, _quantities(folds, penalties, n_models)))
    mix = _quantity_mix(data, predicted)
    near, far, doubt_near, doubt_far = (
        float(np.quantile(folds.distance, q)) for q in (NEAR, FAR, DOUBT_NEAR, DOUBT_FAR)
    )
    novelty = np.clip((folds.distance - near) / max(far - near, 1e-3), 0.0, 1.0)
    learners = learners.with_transfer_spread(_spread(folds.transfer[:, :n_models], data.table.success), n_models)
    residuals, offset = _residuals(data, predicted @ mix.matrix + mix.constant, folds.transfer, novelty)
    mix.matrix[:n_models, :n_models] *= slope
    mix.constant[:n_models] = intercept
    mix.constant[n_models:] += offset[n_models:]
    arrays = _export(data, learners, penalties, chosen.blend, mix, slope, offset)
    strength = np.array([m.prior.strength if (m := catalogue.find(name)) else 0.0 for name in data.table.models])
    rows = (~np.isnan(data.table.success)).sum(axis=0)
    config = {
        "format": FORMAT,
        "learner": report["learner"],
        "trust": chosen.trust,
        "models": list(data.table.models),
        "default_model": data.table.models[int(means.argmax())],
        "profiles": [model_entry(model) for model in profiles],
        "columns": targets.columns,
        "latency_residuals": residuals,
        "prior_weight": (strength / (rows + strength)).tolist(),
        "basis": int(learners.basis.directions.shape[1]),
        "margin": {"near": chosen.margin, "far": max(chosen.margin, NOVEL_MARGIN)},
        "novelty": {"near": near, "far": max(far, near + 1e-3)},
        "doubt": {"near": doubt_near, "far": max(doubt_far, doubt_near + 1e-3)},
        "neighbours": {"k": learners.k} if "neighbour_keys" in arrays else None,
    }
    return FittedOutcomes(config, arrays, report, profiles)


def _residuals(data: _Data, predicted: Matrix, transfer: Matrix, novelty: Matrix) -> tuple[list[list[float]], Matrix]:
    """Quantiles of the residual of log latency for each model, and what turns the mean of a log into a log of a mean.

    Split-conformal quantiles (Vovk et al. 2005): the ceil((n + 1) q)-th smallest residual out of fold. Tokens and
    costs are expected values: their offset is Duan's smearing factor (1983)."""
    targets = data.targets
    blended = predicted + novelty[:, None] * (transfer - predicted)
    offset = np.zeros(predicted.shape[1])
    quantiles: list[list[float]] = []
    for name in QUANTITIES:
        for j in range(targets.n_models):
            column = targets.column(name, j)
            if column < 0:
                continue
            residual = targets.values[:, column] - blended[:, column]
            residual = np.sort(residual[~np.isnan(residual)])
            if name == "latency_s":
                quantiles.append([_conformal(residual, level) for level in LEVELS])
            else:
                offset[column] = float(np.log(np.mean(np.exp(np.minimum(residual, 5.0)))))
    return quantiles, offset


def _conformal(ordered: Matrix, level: float) -> float:
    rank = int(np.ceil((len(ordered) + 1) * level)) if level > 0.5 else round((len(ordered) + 1) * level)
    return float(ordered[min(max(rank, 1), len(ordered)) - 1])


def _export(
    data: _Data, learners: _Learners, penalties: _Penalties, blend: Blend, mix: _Mix, slope: Matrix, offset: Matrix
) -> dict[str, NDArray[Any]]:
    """Everything folded into one matrix, one forest, one transfer matrix and, where chosen, stored neighbours."""
    n_models, n_columns = data.targets.n_models, data.targets.values.shape[1]
    basis = learners.basis
    success, quantities = learners.linear[penalties.success], learners.linear[penalties.quantities]
    share = np.full(n_columns, 0.5)
    share[:n_models] = blend.linear
    of_forest = np.full(n_columns, 0.5)
    of_forest[:n_models] = blend.forest
    weights = np.hstack((success.weights[:, :n_models], quantities.weights[:, n_models:])) * share
    bias = np.concatenate((success.bias[:n_models], quantities.bias[n_models:])) * share + learners.means * of_forest
    heads = basis.folded(weights @ mix.matrix, bias @ mix.matrix + mix.constant)
    parts = (heads, basis.folded_keys())
    exported = [forest.exported(n_columns) for forest in learners.forests]
    forest = {
        name: np.concatenate([one[name] for one in exported], axis=1) for name in ("feature", "threshold", "keeps")
    }
    values = np.concatenate([one["values"] for one in exported]) * of_forest @ mix.matrix
    transfer_weights, transfer_bias = learners.transfer.weights, learners.transfer.bias + offset
    arrays: dict[str, NDArray[Any]] = {
        "weights": np.hstack([part[0] for part in parts]).astype(np.float32),
        "bias": np.concatenate([part[1] for part in parts]).astype(np.float32),
        "table_centre": basis.table_mean.astype(np.float32),
        "table_scale": basis.table_scale.astype(np.float32),
        "joint_scale": basis.joint_scale.astype(np.float32),
        "centroids": basis.centroids.astype(np.float32),
        "transfer_weights": transfer_weights.astype(np.float32),
        "transfer_bias": transfer_bias.astype(np.float32),
        "forest_feature": forest["feature"].astype(np.int16),
        "forest_threshold": forest["threshold"],
        "forest_keeps": forest["keeps"],
        "forest_values": values.astype(np.float32),
    }
    if blend.neighbours and slope.any():
        newest = slice(max(0, len(learners.keys) - STORED_ROWS), None)
        arrays |= {
            "neighbour_rotation": basis.rotation.astype(np.float32),
            "neighbour_keys": learners.keys[newest].astype(np.float16),
            "neighbour_outcomes": data.table.success[newest].astype(np.float16),
            "neighbour_weights": (blend.neighbours * slope).astype(np.float32),
        }
    return arrays
