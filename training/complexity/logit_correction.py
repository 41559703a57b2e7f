"""Correct the logits of a quantised encoder by an affine map, which is folded into the head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.arrays import Singles

RIDGE = 10.0  # penalty, in rows, on every step away from the identity


@dataclass(frozen=True)
class Correction:
    """The map `exact logits = matrix @ rough logits + offset`, approximately."""

    matrix: Singles  # (k, k)
    offset: Singles  # (k,)

    def __call__(self, rough: Singles) -> Singles:
        """Return corrected logits (n, k)."""
        corrected: Singles = rough @ self.matrix.T + self.offset
        return corrected

    def folded(self, weights: Singles, bias: Singles) -> tuple[Singles, Singles]:
        """Return weights (k, dim) and bias (k,) of a head that gives corrected logits at once."""
        return self.matrix @ weights, self.matrix @ bias + self.offset


def fit_correction(rough: Singles, exact: Singles, ridge: float = RIDGE) -> Correction:
    """Fit the map from the logits (n, k) of a quantised encoder to those of the exact one.

    Least squares with a penalty on every step away from the identity, that is, ridge regression of the differences."""
    n, k = rough.shape
    inputs = np.concatenate([rough, np.ones((n, 1))], axis=1).astype(np.float64)
    penalised = inputs.T @ inputs + ridge * np.eye(k + 1)
    step = np.linalg.solve(penalised, inputs.T @ (exact - rough).astype(np.float64))
    matrix = np.eye(k) + step[:k].T
    return Correction(matrix.astype(np.float32), step[k].astype(np.float32))
