"""What needs no learning, or hardly any: the figures every report of a router must stand beside.

Each baseline gives a score per query and model; routing by `score - weight * cost` sweeps it like a router.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.decide.predictors.neighbours import Neighbours
from router_ml.types import LABELS
from training.outcomes.table import OutcomeTable

Matrix: TypeAlias = NDArray[np.float64]

KNN = 100
FOLDS = 5
LENGTH_BINS = 10


class Roles(NamedTuple):
    """Columns of the models that stand for fast, balanced and accurate."""

    fast: int
    balanced: int
    accurate: int


def roles(table: OutcomeTable) -> Roles:
    """By what was measured: the cheapest on average, the one with the best success, and between them the best that
    is cheaper than the accurate one (the accurate one itself where there is none)."""
    cost, success = model_means(table)
    fast, accurate = int(cost.argmin()), int(success.argmax())
    between = [j for j in range(len(cost)) if j not in (fast, accurate) and cost[j] < cost[accurate]]
    balanced = max(between, key=lambda j: success[j]) if between else accurate
    return Roles(fast, balanced, accurate)


def model_means(table: OutcomeTable) -> tuple[Matrix, Matrix]:
    """Mean cost (seconds, else dollars) and mean success of each model over its known rows."""
    _, cost = table.cost_axis
    return _known_mean(cost), _known_mean(table.success)


def _known_mean(values: Matrix) -> Matrix:
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def random_scores(table: OutcomeTable, seed: int) -> Matrix:
    """Any model, drawn evenly."""
    return np.random.default_rng(seed).random(table.success.shape)


def heuristic_choice(table: OutcomeTable, features: Features) -> NDArray[np.intp]:
    """The hand-written rules: simple goes to the fast model, all else to the balanced one."""
    role = roles(table)
    labels = HeuristicComplexity(TABLE_NAMES)(None, features.table).argmax(axis=1)
    of_label = np.array([role.fast if label == "simple" else role.balanced for label in LABELS], dtype=np.intp)
    chosen: NDArray[np.intp] = of_label[labels]
    return chosen


def length_scores(table: OutcomeTable) -> Matrix:
    """Success by prompt length alone: each model's rate among the queries of like length in the other folds."""
    length = np.array([len(query.text) for query in table.queries], dtype=np.float64)
    out = np.zeros(table.success.shape)
    for train, test in folds(table):
        edges = np.quantile(length[train], np.linspace(0, 1, LENGTH_BINS + 1)[1:-1])
        inside, outside = np.digitize(length[train], edges), np.digitize(length[test], edges)
        overall = _known_mean(table.success[train])
        for b in range(LENGTH_BINS):
            values = table.success[train][inside == b]
            known = ~np.isnan(values)
            out[test[outside == b]] = (np.where(known, values, 0.0).sum(axis=0) + 10 * overall) / (
                known.sum(axis=0) + 10
            )
    return out


def knn_scores(table: OutcomeTable, features: Features) -> Matrix:
    """The mean success of the 100 nearest queries of the other folds, by cosine of the sentence vectors."""
    out = np.zeros(table.success.shape)
    for train, test in folds(table):
        stored = Neighbours(features.embedding[train], table.success[train].astype(np.float32), KNN)
        out[test] = stored(features.embedding[test])
    return out


def folds(table: OutcomeTable) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Grouped folds over the rows to be judged, for baselines that must learn from somewhere."""
    groups = table.groups
    n_groups = int(groups.max()) + 1
    fold = (np.random.default_rng(0).permutation(n_groups) % FOLDS)[groups]
    pairs = ((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(FOLDS))
    return [(train, test) for train, test in pairs if len(train) and len(test)]
