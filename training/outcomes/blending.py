"""Blends of learners: their settings, their predictions, and latency predicted by way of output tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.arrays import Matrix
from training.outcomes.cross_fitting import HeldOut
from training.outcomes.learner import Setting
from training.outcomes.learners import QUANTITY_BLEND, Blend
from training.outcomes.table import MIN_ROWS
from training.outcomes.targets import Targets

Settings = dict[str, Setting]


def best_settings(held_out: HeldOut, targets: Targets, success_blend: Blend) -> Settings:
    """Return each learner's setting of least held-out squared error within a blend.

    A learner is judged mixed with the largest other learner of the blend: alone it would choose to be too smooth."""

    def best(name: str, columns: slice, blend: Blend) -> int:
        truth, candidates = targets.values[:, columns], held_out.learners[name][:, :, columns]
        others = {other: share for other, share in blend.items() if other != name}
        if not truth.shape[1] or len(candidates) == 1 or name not in blend:
            return 0
        share, companion = blend[name], np.zeros(1)
        if others:
            companion = held_out.learners[max(others, key=others.__getitem__)][0][:, columns]
        variance = np.nanvar(truth, axis=0) + 1e-9
        errors = [np.nanmean((share * one + (1 - share) * companion - truth) ** 2 / variance) for one in candidates]
        return int(np.argmin(errors))

    success, quantities = slice(0, targets.n_models), slice(targets.n_models, None)
    return {
        name: Setting(best(name, success, success_blend), best(name, quantities, QUANTITY_BLEND))
        for name in held_out.learners
    }


def blended_success(held_out: HeldOut, settings: Settings, blend: Blend, n_models: int) -> Matrix:
    """Return held-out success (n, M), not yet calibrated."""
    parts = (share * held_out.learners[name][settings[name].success][:, :n_models] for name, share in blend.items())
    return np.asarray(sum(parts))


def blended_quantities(held_out: HeldOut, settings: Settings, n_models: int) -> Matrix:
    """Return held-out log quantities (n, K - M)."""
    shares = QUANTITY_BLEND.items()
    parts = (share * held_out.learners[name][settings[name].quantities][:, n_models:] for name, share in shares)
    return np.asarray(sum(parts))


class LinearMix(NamedTuple):
    """A linear map of the targets' predictions (K, K) and a constant (K,)."""

    matrix: Matrix
    constant: Matrix

    def __call__(self, predicted: Matrix) -> Matrix:
        """Return mixed predictions (n, K)."""
        return predicted @ self.matrix + self.constant


def latency_from_tokens(targets: Targets, predicted: Matrix) -> LinearMix:
    """Return the map that predicts a model's latency from its predicted output tokens where that is more exact.

    With tokens, log latency = a + b * log tokens. Direct, by tokens, or the mean of both: chosen for each model by
    the mean absolute error of the held-out predictions (n, K)."""
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
    return LinearMix(matrix, constant)
