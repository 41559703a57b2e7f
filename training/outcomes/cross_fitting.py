"""Predictions for every row by learners that did not see its group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.arrays import Index, Matrix
from training.outcomes.learner import FittedLearner, TrainingRows
from training.outcomes.learners import LEARNERS
from training.outcomes.transfer_learner import FittedTransfer, fit_transfer
from training.splits import permuted_folds

FOLDS = 5


@dataclass(frozen=True)
class FittedLearners:
    """Every learner of the registry and the transfer head, fitted on the same rows."""

    rows: TrainingRows
    learners: dict[str, FittedLearner]
    transfer: FittedTransfer


@dataclass(frozen=True)
class HeldOut:
    """Held-out predictions: what cross-fitting gives to everything that is chosen or calibrated."""

    learners: dict[str, Matrix]  # (settings, n, K)
    transfer: Matrix  # (n, K)
    means: Matrix  # (n, K), means of the rows each fold was fitted on
    distance: Matrix  # (n,) to the training queries, see `Basis.distance`


def fit_learners(rows: TrainingRows) -> FittedLearners:
    """Fit every learner on the same rows."""
    return FittedLearners(rows, {name: learner.fit(rows) for name, learner in LEARNERS.items()}, fit_transfer(rows))


def cross_fit(rows: TrainingRows, groups: Index) -> HeldOut:
    """Fit on all folds but one, predict that one, and put the predictions together; two groups are needed at least."""
    tests, parts = [], []
    for train, test in permuted_folds(groups, FOLDS, rows.seed):
        tests.append(test)
        parts.append(_held_out(fit_learners(rows.rows(train)), rows.rows(test)))
    order = np.argsort(np.concatenate(tests))
    return HeldOut(
        {name: np.concatenate([part.learners[name] for part in parts], axis=1)[:, order] for name in LEARNERS},
        np.concatenate([part.transfer for part in parts])[order],
        np.concatenate([part.means for part in parts])[order],
        np.concatenate([part.distance for part in parts])[order],
    )


def _held_out(fitted: FittedLearners, rows: TrainingRows) -> HeldOut:
    features = rows.features
    return HeldOut(
        {name: learner.predict(features, rows.complexity) for name, learner in fitted.learners.items()},
        fitted.transfer.predict(features),
        np.broadcast_to(fitted.rows.means, rows.targets.values.shape),
        fitted.rows.basis.distance(features),
    )
