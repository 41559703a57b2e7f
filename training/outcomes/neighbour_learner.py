"""The k nearest training queries: their mean success, stored in the bundle as keys and outcomes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.neighbours import Neighbours
from training.arrays import Matrix, Singles
from training.outcomes.basis import Basis
from training.outcomes.learner import Export, Setting, TrainingRows

NEIGHBOURS = 60
ROWS_PER_NEIGHBOUR = 8
STORED_ROWS = 32_768  # bounds the size of a bundle


def neighbour_count(rows: int) -> int:
    """Return k for so many training rows."""
    return max(1, min(NEIGHBOURS, rows // ROWS_PER_NEIGHBOUR))


class NearestNeighbours:
    """Mean success of the nearest queries; it predicts no quantities."""

    def fit(self, rows: TrainingRows) -> FittedNeighbours:
        """Store the rows' keys and successes."""
        keys = rows.basis.neighbour_keys(rows.features).astype(np.float32)
        return FittedNeighbours(rows.basis, keys, rows.targets.success, rows.targets.values.shape[1])


@dataclass(frozen=True)
class FittedNeighbours:
    """Keys (n, q) and successes (n, M) of the training rows."""

    basis: Basis
    keys: Singles
    success: Matrix
    n_targets: int

    def predict(self, features: Features, complexity: Matrix) -> Matrix:
        """Return predictions (1, n, K), NaN for the quantities."""
        keys = self.basis.neighbour_keys(features).astype(np.float32)
        stored = Neighbours(self.keys, self.success.astype(np.float32), neighbour_count(len(self.keys)))
        out = np.full((1, len(keys), self.n_targets), np.nan)
        out[0, :, : self.success.shape[1]] = stored(keys)
        return out

    def export(self, share: Matrix, setting: Setting) -> Export:
        """Return the newest rows; an empty export where the share is 0."""
        n_models, newest = self.success.shape[1], slice(max(0, len(self.keys) - STORED_ROWS), None)
        if not share[:n_models].any():
            return Export()
        return Export(
            neighbours={
                "rotation": self.basis.rotation,
                "keys": self.keys[newest],
                "outcomes": self.success[newest],
                "share": share[:n_models],
            }
        )
