"""How much of what was learned of queries is served: as much of it as held-out rows prove.

The more rows, the smaller the standard error, so the learning curve has no step: few rows leave each model's level.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.arrays import Matrix
from training.outcomes.routing_utility import RoutingUtility

SIGNIFICANT_SE = 2.0  # standard errors by which a later blend must beat an earlier one
FACTOR_SE = 2.0  # standard errors up to which nothing is proven
NOVEL_MARGIN = 0.1  # in p_success, by which another model must beat the default one for a query unlike all others


def significantly_better(new: Matrix, old: Matrix) -> bool:
    """Return whether utilities (n,) are better by more than `SIGNIFICANT_SE` standard errors."""
    gain = new - old
    return bool(gain.mean() > SIGNIFICANT_SE * gain.std() / np.sqrt(len(gain)) and gain.mean() > 0)


def proven_factor(p: Matrix, level: Matrix, utility: RoutingUtility) -> float:
    """Return the share (0..1) of the differences between held-out predictions `p` (n, M) and levels that remains.

    It is the least-squares slope of what the levels leave unexplained on those differences, shrunk as by James and
    Stein (1961): not at all where it is many standard errors above 0, to nothing at `FACTOR_SE`. The standard error
    counts the models' outcomes of one query as one (Liang and Zeger 1986)."""
    known = utility.measured
    x, y = (_centred(part - level, known) for part in (p, utility.success))
    total = float((x * x).sum())
    if total < 1e-9:
        return 0.0
    slope = float((x * y).sum()) / total
    error = float(np.sqrt((((x * (y - slope * x)).sum(axis=1)) ** 2).sum())) / total
    if slope <= FACTOR_SE * error:
        return 0.0
    return float(min(slope * (1.0 - (FACTOR_SE * error / slope) ** 2), 1.0))


def _centred(values: Matrix, known: NDArray[np.bool_]) -> Matrix:
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.asarray(np.where(known, values - mean, 0.0))
