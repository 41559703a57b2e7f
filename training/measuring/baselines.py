"""Baselines that need no learning, or little: every report shows them beside the router.

Each gives a score per query and model; routing by `score - weight * cost` sweeps it like a router.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.decide.predictors.neighbours import Neighbours
from router_ml.types import LABELS
from training.arrays import Index, Matrix, Singles
from training.outcomes.table import OutcomeTable
from training.splits import permuted_folds

KNN = 100
FOLDS = 5
LENGTH_BINS = 10


class Roles(NamedTuple):
    """Columns of the models that stand for fast, balanced and accurate."""

    fast: int
    balanced: int
    accurate: int


def roles(cost: Matrix, success: Matrix) -> Roles:
    """Return the roles of models by their mean cost and success (M,).

    The cheapest, the most successful, and between them the best that is cheaper than the accurate one (the accurate
    one itself if there is none)."""
    fast, accurate = int(cost.argmin()), int(success.argmax())
    between = [j for j in range(len(cost)) if j not in (fast, accurate) and cost[j] < cost[accurate]]
    return Roles(fast, max(between, key=lambda j: success[j], default=accurate), accurate)


def model_means(table: OutcomeTable) -> tuple[Matrix, Matrix]:
    """Return mean cost (seconds, else dollars) and mean success of each model over its known rows."""
    _, cost = table.cost_axis
    return _known_mean(cost), _known_mean(table.success)


def _known_mean(values: Matrix) -> Matrix:
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))


def random_scores(table: OutcomeTable, seed: int) -> Matrix:
    """Return scores that choose any model with equal probability."""
    return np.random.default_rng(seed).random(table.success.shape)


def heuristic_choice(role: Roles, surface: Singles) -> Index:
    """Return the choice (n,) of the hand-written rules: simple goes to the fast model, all else to the balanced one.

    `surface` (n, m) is the table of surface features."""
    labels = HeuristicComplexity(TABLE_NAMES)(None, surface).argmax(axis=1)
    of_label = np.array([role.fast if label == "simple" else role.balanced for label in LABELS], dtype=np.intp)
    chosen: Index = of_label[labels]
    return chosen


def length_scores(table: OutcomeTable) -> Matrix:
    """Return success by prompt length alone: each model's rate among queries of similar length in the other folds."""
    length = np.array([len(query.text) for query in table.queries], dtype=np.float64)
    out = np.zeros(table.success.shape)
    for train, test in permuted_folds(table.groups, FOLDS):
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
    """Return the mean success of the 100 nearest queries of the other folds, by cosine of the sentence vectors."""
    out = np.zeros(table.success.shape)
    for train, test in permuted_folds(table.groups, FOLDS):
        stored = Neighbours(features.embedding[train], table.success[train].astype(np.float32), KNN)
        out[test] = stored(features.embedding[test])
    return out
