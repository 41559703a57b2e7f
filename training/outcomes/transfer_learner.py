"""The head for queries unlike the training queries: surface features alone, strongly regularised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from router_ml.decide.features.extractor import Features
from training.arrays import Matrix
from training.outcomes.basis import Basis
from training.outcomes.learner import TrainingRows
from training.outcomes.ridge_learner import Affine, fit_ridge

SUCCESS_PENALTY = 10_000.0  # each feature counts almost for itself, which is what carries over to new tasks
QUANTITY_PENALTY = 1_000.0
MAX_SCALE = 4.0


@dataclass(frozen=True)
class FittedTransfer:
    """An affine map on the surface features; not part of a blend, since it serves novel queries only."""

    basis: Basis
    affine: Affine
    centre: Matrix  # (K,) mean prediction on the rows it was fitted on

    def predict(self, features: Features) -> Matrix:
        """Return predictions (n, K)."""
        return self.affine(self.basis.transfer_inputs(features))

    def rescaled(self, scale: float, n_models: int) -> FittedTransfer:
        """Return the head with its predictions of success scaled about their mean."""
        weights, bias = self.affine.weights.copy(), self.affine.bias.copy()
        weights[:, :n_models] *= scale
        bias[:n_models] = self.centre[:n_models] + scale * (bias[:n_models] - self.centre[:n_models])
        return replace(self, affine=Affine(weights, bias))


def fit_transfer(rows: TrainingRows) -> FittedTransfer:
    """Fit ridge regressions of all targets on the clipped surface features."""
    inputs, values = rows.basis.transfer_inputs(rows.features), rows.targets.filled(rows.means)
    n_models = rows.targets.n_models
    affine = fit_ridge(inputs, values[:, :n_models], SUCCESS_PENALTY)
    if values.shape[1] > n_models:
        quantities = fit_ridge(inputs, values[:, n_models:], QUANTITY_PENALTY)
        affine = Affine(np.hstack((affine.weights, quantities.weights)), np.concatenate((affine.bias, quantities.bias)))
    return FittedTransfer(rows.basis, affine, affine(inputs).mean(axis=0))


def shrinkage_correction(predicted: Matrix, success: Matrix) -> float:
    """Return the scale that undoes the head's shrinkage, between 1 and `MAX_SCALE`.

    It is the least-squares slope of success on the held-out predictions (n, M), both centred per model."""
    known = ~np.isnan(success)
    count = np.maximum(known.sum(axis=0), 1)
    x = np.where(known, predicted - np.where(known, predicted, 0).sum(axis=0) / count, 0.0)
    return float(np.clip((x * np.nan_to_num(success)).sum() / max(float((x * x).sum()), 1e-9), 1.0, MAX_SCALE))
