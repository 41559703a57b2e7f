"""Sequential tests: they may be evaluated after every request and still keep their error rate.

Two families. *Asymptotic confidence sequences* for means of values without a bound (log latency, cost); *e-processes*
that hold exactly for shares (wrong answers, missed objectives, the split itself). An e-process starts at 1 and, where
there is nothing to find, the chance that it ever reaches 1/alpha is at most alpha (Ville's inequality).

Sources: Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences",
Annals of Statistics 2021 (the normal mixtures); Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, arXiv 2103.06476,
equation 9 (the asymptotic form); Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
JRSS B 2024 (the bets).
"""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

# Bets as fractions of the largest that cannot lose everything. Small ones find small differences slowly, large ones
# find large differences at once; their average is as good as the best of them up to a factor of their number.
BETS: Floats = np.array([0.015, 0.03, 0.06, 0.1, 0.15, 0.22, 0.35, 0.55, 0.85])
BETS.flags.writeable = False


def one_sided_rho(v_opt: float, alpha: float) -> float:
    """Return the mixture parameter that makes the one-sided boundary tightest at intrinsic time `v_opt`.

    Howard et al.: the two-sided parameter at twice the error rate."""
    level = 2 * math.log(1 / (2 * alpha))
    return v_opt / (level + math.log(1 + level))


@functools.lru_cache(maxsize=65_536)
def one_sided_boundary(v: float, alpha: float, rho: float) -> float:
    """Return the one-sided normal mixture boundary at `v`, where the mixture martingale reaches 1/alpha."""
    scale, threshold = math.sqrt(v + rho), math.log(1 / alpha)
    constant = 0.5 * math.log(4 * rho / (v + rho))
    low, high = 0.0, 1.0
    while _log_mixture(high, constant) < threshold:
        high *= 2
    for _ in range(80):
        centre = (low + high) / 2
        low, high = (centre, high) if _log_mixture(centre, constant) < threshold else (low, centre)
    return high * scale


def _log_mixture(z: float, constant: float) -> float:
    return constant + z * z / 2 + math.log(0.5 * math.erfc(-z / math.sqrt(2)))


def width_in_errors(n: int, alpha: float, planned: int) -> float:
    """Return the half-width of a one-sided asymptotic confidence sequence after `n` units.

    In standard errors of the estimate; it is tightest at `planned` units. Equation 9 of arXiv 2103.06476, with the
    one-sided mixture in place of the two-sided one."""
    return one_sided_boundary(float(n), alpha, one_sided_rho(float(planned), alpha)) / math.sqrt(n)


def log_growth(value: Floats, null: float | Floats, lowest: float | Floats) -> Floats:
    """Return the log growth of every bet against "the mean of `value` is at most `null`", for values >= `lowest`.

    Exact for any values in that range, whatever their distribution. The result has one more axis, one entry a bet;
    summed over observations it is the log e-value of each bet. `null` and `lowest` may depend on the past only."""
    stake = BETS / (np.asarray(null) - np.asarray(lowest))[..., np.newaxis]
    growth: Floats = np.log1p(stake * (np.asarray(value) - null)[..., np.newaxis])
    return growth


def log_e(log_values: Floats) -> Floats:
    """Return the log of the mean over the last axis of e-values given by their logs."""
    top = log_values.max(axis=-1)
    spread = np.exp(log_values - top[..., np.newaxis]).mean(axis=-1)
    return np.asarray(top + np.log(spread), dtype=np.float64)


def mean_log_e(first: float, second: float) -> float:
    """Return the log of the mean of two e-values, given their logs. The mean is an e-value, however they depend."""
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high)) - math.log(2)


def harm_growth(difference: Floats, tolerance: float) -> Floats:
    """Return the log growth against "the challenger's mean is at most the control's plus `tolerance`".

    `difference` is the challenger's value minus the control's in one pair of units, each value from 0 to 1. Pairs keep
    the test exact where the arms are observed unequally often (answers judged in one arm more than in the other)."""
    return log_growth(difference, tolerance, -1.0)


def benefit_growth(difference: Floats, margin: float) -> Floats:
    """Return the log growth against "the challenger's mean is the control's plus `margin` or more"."""
    return log_growth(-difference, -margin, -1.0)


def log_beta(a: float, b: float) -> float:
    """Return the log of the beta function."""
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


SPLIT_PRIOR = 60.0


def split_log_e(challengers: int, units: int, prior: float = SPLIT_PRIOR) -> float:
    """Return the log e-value against a fair split, of the beta-binomial mixture with prior Beta(a, a) on the share.

    E = B(a + k, a + n - k) / B(a, a) * 2**n is exactly 1 on average under a fair coin (Howard et al., section 3)."""
    k, n = challengers, units
    return log_beta(prior + k, prior + n - k) - log_beta(prior, prior) + n * math.log(2)


def fair_split_log_e(challengers: int, units: int, tolerance: float) -> float:
    """Return the log e-value against "the challenger's share is off one half by `tolerance` or more".

    The likelihood ratio of a fair coin to the nearer edge of the tolerance (Wald's sequential test): the alternative is
    one point, so no mixture is needed, and beyond the edge the ratio is only smaller."""
    k, n = challengers, units
    above = k * math.log(0.5 / (0.5 + tolerance)) + (n - k) * math.log(0.5 / (0.5 - tolerance))
    below = k * math.log(0.5 / (0.5 - tolerance)) + (n - k) * math.log(0.5 / (0.5 + tolerance))
    return min(above, below)
