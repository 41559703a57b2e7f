"""Undoes, as far as an affine map can, what quantising the encoder did to the logits.

The map is folded into the head, so that serving computes nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
RIDGE = 10.0  # rows' worth of belief that nothing needs correcting


@dataclass(frozen=True)
class Correction:
    """exact logits = matrix @ rough logits + offset, nearly."""

    matrix: Array  # (k, k)
    offset: Array  # (k,)

    def __call__(self, rough: Array) -> Array:
        """Corrected logits (n, k)."""
        corrected: Array = rough @ self.matrix.T + self.offset
        return corrected

    def folded(self, weights: Array, bias: Array) -> tuple[Array, Array]:
        """Weights (k, dim) and bias (k,) that give corrected logits at once."""
        return self.matrix @ weights, self.matrix @ bias + self.offset


def fit_correction(rough: Array, exact: Array, ridge: float = RIDGE) -> Correction:
    """The map from the logits (n, k) of a quantised encoder to those of the exact one, by least squares with a penalty
    on every step away from the identity (ridge regression of the differences)."""
    n, k = rough.shape
    inputs = np.concatenate([rough, np.ones((n, 1))], axis=1).astype(np.float64)
    penalised = inputs.T @ inputs + ridge * np.eye(k + 1)
    step = np.linalg.solve(penalised, inputs.T @ (exact - rough).astype(np.float64))
    matrix = np.eye(k) + step[:k].T
    return Correction(matrix.astype(np.float32), step[k].astype(np.float32))
