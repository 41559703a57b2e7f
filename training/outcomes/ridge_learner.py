"""Ridge regression of many outcomes at once, each on the rows where it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from router_ml.decide.features.extractor import Features
from training.arrays import Matrix
from training.outcomes.basis import Basis
from training.outcomes.learner import Export, Setting, TrainingRows

PENALTIES = (100.0, 300.0, 1000.0)
PENALTY = 300.0  # where nothing is tuned


class Affine(NamedTuple):
    """The map `x @ weights + bias`."""

    weights: Matrix  # (inputs, outputs)
    bias: Matrix  # (outputs,)

    def __call__(self, x: Matrix) -> Matrix:
        """Return predictions (n, outputs)."""
        return x @ self.weights + self.bias


class Ridge:
    """A ridge regression for each penalty on the scaled main directions, the table and the label probabilities."""

    def fit(self, rows: TrainingRows) -> FittedRidge:
        """Fit every candidate penalty."""
        values = rows.targets.filled(rows.means)
        maps = [fit_ridge(rows.inputs, values, penalty) for penalty in penalties(rows.tune)]
        return FittedRidge(rows.basis, tuple(maps), rows.targets.n_models)


@dataclass(frozen=True)
class FittedRidge:
    """One affine map per penalty."""

    basis: Basis
    maps: tuple[Affine, ...]
    n_models: int

    def predict(self, features: Features, complexity: Matrix) -> Matrix:
        """Return predictions (penalties, n, K)."""
        inputs = self.basis.inputs(features, complexity)
        return np.stack([affine(inputs) for affine in self.maps])

    def export(self, share: Matrix, setting: Setting) -> Export:
        """Return one affine map: success by one penalty, quantities by another."""
        success, quantities, n = self.maps[setting.success], self.maps[setting.quantities], self.n_models
        weights = np.hstack((success.weights[:, :n], quantities.weights[:, n:]))
        return Export(weights * share, np.concatenate((success.bias[:n], quantities.bias[n:])) * share)


def penalties(tune: bool) -> tuple[float, ...]:
    """Return the candidate penalties, in the order of the learner's settings."""
    return PENALTIES if tune else (PENALTY,)


def fit_ridge(x: Matrix, targets: Matrix, penalty: float) -> Affine:
    """Fit least squares with an L2 penalty on the weights (Hoerl and Kennard 1970) and an unpenalised intercept.

    A target is NaN where it is unknown; targets known on the same rows share one factorisation. The solution equals
    scikit-learn's `Ridge(alpha=penalty)` on each target's rows."""
    known = ~np.isnan(targets)
    weights, bias = np.zeros((x.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for p in range(patterns.shape[1]):
        rows, columns = patterns[:, p], np.flatnonzero(which.ravel() == p)
        if rows.any():
            solution = _solve(x[rows], targets[np.ix_(rows, columns)], penalty)
            weights[:, columns], bias[columns] = solution
    return Affine(weights, bias)


def _solve(x: Matrix, y: Matrix, penalty: float) -> Affine:
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x_centred, y_centred = x - x_mean, y - y_mean
    if len(x) < x.shape[1]:  # fewer rows than features: the same solution from the smaller system
        dual = np.linalg.solve(x_centred @ x_centred.T + penalty * np.eye(len(x)), y_centred)
        weights = x_centred.T @ dual
    else:
        weights = np.linalg.solve(x_centred.T @ x_centred + penalty * np.eye(x.shape[1]), x_centred.T @ y_centred)
    return Affine(weights, y_mean - x_mean @ weights)
