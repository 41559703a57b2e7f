"""Ridge regression of many outcomes at once, each on the rows where it was measured."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Matrix: TypeAlias = NDArray[np.float64]


class Affine(NamedTuple):
    """`x @ weights + bias`."""

    weights: Matrix  # (inputs, outputs)
    bias: Matrix  # (outputs,)

    def __call__(self, x: Matrix) -> Matrix:
        return x @ self.weights + self.bias


def fit_ridge(x: Matrix, targets: Matrix, penalty: float) -> Affine:
    """Least squares with an L2 penalty on the weights (Hoerl and Kennard 1970), an unpenalised intercept.

    A target is NaN where it is unknown; targets known on the same rows share one factorisation. The same answer as
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
    centred, wanted = x - x_mean, y - y_mean
    if len(x) < x.shape[1]:  # fewer rows than features: the same solution from the smaller system
        dual = np.linalg.solve(centred @ centred.T + penalty * np.eye(len(x)), wanted)
        weights = centred.T @ dual
    else:
        weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ wanted)
    return Affine(weights, y_mean - x_mean @ weights)
