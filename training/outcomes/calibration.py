"""Linear recalibration of predicted success on held-out rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from training.arrays import Matrix

MAX_SLOPE = 1.5


class Calibration(NamedTuple):
    """Per model: `p = intercept + slope * raw`."""

    slope: Matrix  # (M,)
    intercept: Matrix  # (M,)

    def __call__(self, raw: Matrix) -> Matrix:
        """Return calibrated success (n, M)."""
        return self.intercept + self.slope * raw


def fit_calibration(raw: Matrix, success: Matrix) -> Calibration:
    """Fit a level for each model and one slope for all of them, by least squares on held-out predictions (n, M).

    A slope of its own for each model would turn the noise in the slopes into differences between models."""
    known = ~np.isnan(success)
    count = np.maximum(known.sum(axis=0), 1)
    x_mean = np.where(known, raw, 0).sum(axis=0) / count
    y_mean = np.where(known, success, 0).sum(axis=0) / count
    x, y = np.where(known, raw - x_mean, 0.0), np.where(known, success - y_mean, 0.0)
    common = float((x * y).sum() / max(float((x * x).sum()), 1e-9))
    slope = np.full(raw.shape[1], np.clip(common, 0.0, MAX_SLOPE))
    return Calibration(slope, y_mean - slope * x_mean)
