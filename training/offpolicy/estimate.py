"""Values of a policy on logged decisions, and the difference of two with an interval that holds under dependence.

- IPS: each judged reward weighted by 1 / (propensity * probability of being judged) where the policy agrees with what
  was chosen (Horvitz & Thompson 1952).
- SNIPS: the same, divided by the sum of the weights (Swaminathan & Joachims 2015).
- DR: expected rewards of a model, corrected by the weighted errors of that model (Dudik, Langford & Li 2011,
  arXiv:1103.4601), cross-fitted (Chernozhukov et al. 2018). Right where the propensities are, and where either who gets
  judged or the expected rewards are modelled right.
- The difference of two policies is estimated directly: a row in which both choose the same adds nothing, so its noise
  is gone.

Standard errors sum over sessions (Liang & Zeger 1986). A few rare rows carry most of the weight, so the quantile is
Student's with degrees of freedom after Satterthwaite (1946), from the kurtosis of the sessions' sums.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from training.arrays import Index, Matrix
from training.offpolicy.log import Log


class Interval(NamedTuple):
    """A mean with its 95 % interval (`low`, `high`)."""

    value: float
    error: float  # standard error
    low: float
    high: float
    at_least: float  # with 99 % confidence, one-sided


class Values(NamedTuple):
    """What a policy is worth per decision, by three estimators."""

    ips: float
    snips: float
    dr: Interval
    matching: float  # mean over the judged rows in which it agrees with what was chosen: biased, for comparison
    effective: float  # Kish's effective sample size of the weights


def weights(log: Log, target: Index, judged: Matrix) -> Matrix:
    """Return the weight (n,) of each judged row for a policy that chooses `target`; 0 where it chooses otherwise."""
    agrees = (log.chosen == target) & log.judged
    found: Matrix = np.where(agrees, 1.0 / (log.propensity * judged), 0.0)
    return found


def values(log: Log, target: Index, expected: Matrix, judged: Matrix) -> Values:
    """Return what a policy is worth that chooses the arms `target` (n,)."""
    weight, reward = weights(log, target, judged), np.nan_to_num(log.reward)
    total = float(weight.sum())
    agrees = weight > 0
    return Values(
        float((weight * reward).mean()),
        float((weight * reward).sum() / total) if total else float("nan"),
        clustered_mean(_robust(log, target, weight, expected), log.session),
        float(reward[agrees].mean()) if agrees.any() else float("nan"),
        total**2 / float((weight**2).sum()) if total else 0.0,
    )


def difference(log: Log, target: Index, base: Index, expected: Matrix, judged: Matrix) -> Interval:
    """Return by how much a policy that chooses `target` (n,) is worth more than one that chooses `base`."""
    parts = [_robust(log, arms, weights(log, arms, judged), expected) for arms in (target, base)]
    return clustered_mean(parts[0] - parts[1], log.session)


def _robust(log: Log, target: Index, weight: Matrix, expected: Matrix) -> Matrix:
    rows = np.arange(len(log))
    residual = np.nan_to_num(log.reward) - expected[rows, log.chosen]
    found: Matrix = expected[rows, target] + weight * residual
    return found


def clustered_mean(value: Matrix, session: Index) -> Interval:
    """Return the mean of the values (n,) with its intervals; values of one session may depend on each other."""
    n = len(value)
    mean = float(value.mean())
    sums = np.bincount(np.unique(session, return_inverse=True)[1], weights=value - mean)
    sessions = len(sums)
    squares = float((sums**2).sum())
    if sessions < 2 or squares <= 1e-24:
        return (
            Interval(mean, 0.0, mean, mean, mean) if sessions > 1 else Interval(mean, np.inf, -np.inf, np.inf, -np.inf)
        )
    error = float(np.sqrt(squares * sessions / (sessions - 1)) / n)
    spread = float((sums**4).sum()) - squares**2 / sessions
    freedom = min(max(2 * squares**2 / spread if spread > 0 else sessions - 1.0, 1.0), sessions - 1.0)
    reach, far = (float(stdtrit(freedom, level)) * error for level in (0.975, 0.99))
    return Interval(mean, error, mean - reach, mean + reach, mean - far)
