"""Folds fitted learners, their blend, calibration and corrections into the arrays of a bundle."""

from __future__ import annotations

import numpy as np

from training.arrays import Arrays, Matrix
from training.outcomes.blending import LinearMix, Settings
from training.outcomes.cross_fitting import FittedLearners
from training.outcomes.learner import Export
from training.outcomes.learners import QUANTITY_BLEND, Blend


def export_heads(
    fitted: FittedLearners, settings: Settings, blend: Blend, mix: LinearMix, transfer_offset: Matrix
) -> Arrays:
    """Return one matrix, one forest, one transfer matrix and, where the blend has them, stored neighbours.

    `mix` maps the blended predictions (K,) of all targets to what is served."""
    targets, basis = fitted.rows.targets, fitted.rows.basis
    n_models, n_targets = targets.n_models, targets.values.shape[1]
    parts = [
        learner.export(_share(name, blend, n_models, n_targets), settings[name])
        for name, learner in fitted.learners.items()
    ]
    weights = _sum([part.weights for part in parts], (fitted.rows.inputs.shape[1], n_targets))
    bias = _sum([part.bias for part in parts], (n_targets,))
    heads, keys = basis.folded(weights @ mix.matrix, mix(bias)), basis.folded_keys()
    return {
        "weights": np.hstack((heads[0], keys[0])).astype(np.float32),
        "bias": np.concatenate((heads[1], keys[1])).astype(np.float32),
        "table_centre": basis.table_mean.astype(np.float32),
        "table_scale": basis.table_scale.astype(np.float32),
        "joint_scale": basis.joint_scale.astype(np.float32),
        "centroids": basis.centroids.astype(np.float32),
        "transfer_weights": fitted.transfer.affine.weights.astype(np.float32),
        "transfer_bias": (fitted.transfer.affine.bias + transfer_offset).astype(np.float32),
        **_forest(parts, mix),
        **_neighbours(parts, np.diag(mix.matrix)[:n_models]),
    }


def _share(name: str, blend: Blend, n_models: int, n_targets: int) -> Matrix:
    """Return a learner's share (K,) of each target."""
    return np.where(np.arange(n_targets) < n_models, blend.get(name, 0.0), QUANTITY_BLEND.get(name, 0.0))


def _sum(parts: list[Matrix | None], shape: tuple[int, ...]) -> Matrix:
    return np.asarray(sum((part for part in parts if part is not None), np.zeros(shape)))


def _forest(parts: list[Export], mix: LinearMix) -> Arrays:
    forests = [part.forest for part in parts if part.forest is not None]
    if not forests:
        return {}
    joined = {name: np.concatenate([one[name] for one in forests], axis=1) for name in forests[0] if name != "values"}
    return {
        "forest_feature": joined["feature"].astype(np.int16),
        "forest_threshold": joined["threshold"],
        "forest_keeps": joined["keeps"],
        "forest_values": (np.concatenate([one["values"] for one in forests]) @ mix.matrix).astype(np.float32),
    }


def _neighbours(parts: list[Export], slope: Matrix) -> Arrays:
    """Return the first learner's stored rows: serving has one set of them."""
    stored = next((part.neighbours for part in parts if part.neighbours is not None), None)
    if stored is None or not slope.any():
        return {}
    return {
        "neighbour_rotation": stored["rotation"].astype(np.float32),
        "neighbour_keys": stored["keys"].astype(np.float16),
        "neighbour_outcomes": stored["outcomes"].astype(np.float16),
        "neighbour_weights": (stored["share"] * slope).astype(np.float32),
    }
