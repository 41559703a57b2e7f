"""Shrinkage of predictions to the models' means, and the margin over the default model.

Both are chosen by lower confidence bounds of what held-out choices gain over the best single model. The bounds are
wider where rows are few, since choosing the best of several learners overstates its gain most there.
"""

from __future__ import annotations

import numpy as np

from router_ml.decide.predictors.outcomes import NEVER, with_margin
from training.arrays import Matrix
from training.outcomes.routing_utility import RoutingUtility

FACTORS = (1.0, 0.75, 0.5, 0.25, 0.1)  # share of the differences from the models' means that remains
SIGNIFICANT_SE = 2.0  # standard errors by which a later blend must beat an earlier one
UTILITY_SE = 1.0  # standard errors subtracted from a gain in utility,
UTILITY_SMALL_SAMPLE = 100.0  # and this over the number of queries more
MARGINS = (0.0, 0.02)  # in p_success, by which another model must beat the default model
NOVEL_MARGIN = 0.1  # the same for a query unlike all training queries
MARGIN_SE, MARGIN_SMALL_SAMPLE = 0.3, 250.0  # as for utility, of the gain in success alone


def lower_bound(gain: Matrix, standard_errors: float) -> float:
    """Return the mean of gains (n,) less so many standard errors."""
    return float(gain.mean() - standard_errors * gain.std() / np.sqrt(len(gain)))


def significantly_better(new: Matrix, old: Matrix) -> bool:
    """Return whether utilities (n,) are better by more than `SIGNIFICANT_SE` standard errors."""
    gain = new - old
    return bool(gain.mean() > SIGNIFICANT_SE * gain.std() / np.sqrt(len(gain)) and gain.mean() > 0)


def best_margin(p: Matrix, means: Matrix, utility: RoutingUtility) -> float:
    """Return the margin over the default model that gains most success; `NEVER` where no gain is likely.

    A gain is counted over the best single model of all rows."""
    single = utility.best_single()
    gains = {margin: utility.success_of_best(_with_fold_margin(p, means, margin)) - single for margin in MARGINS}
    best = max(gains, key=lambda margin: float(gains[margin].mean()))
    return best if lower_bound(gains[best], MARGIN_SE + MARGIN_SMALL_SAMPLE / len(p)) > 0 else NEVER


def best_factor(
    p: Matrix, level: Matrix, means: Matrix, utility: RoutingUtility, baseline: Matrix, margin: float
) -> float:
    """Return the largest shrinkage factor whose gain over the baseline's utilities (n,) is proven; 0 if none is."""
    standard_errors = UTILITY_SE + UTILITY_SMALL_SAMPLE / len(p)
    for factor in FACTORS:
        shrunk = _with_fold_margin(level + factor * (p - level), means, margin)
        if lower_bound(utility(shrunk) - baseline, standard_errors) > 0:
            return factor
    return 0.0


def _with_fold_margin(p: Matrix, means: Matrix, margin: float) -> Matrix:
    """Apply `with_margin`, each row's default being the best single model of the rows its fold was fitted on."""
    out = p.copy()
    default = means.argmax(axis=1)
    for j in np.unique(default):
        out[default == j] = with_margin(p[default == j], int(j), margin)
    return out
