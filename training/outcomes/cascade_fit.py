"""The map from the log-probability of an arm's answers to the probability that they are right.

A logistic regression on the held-out success predicted from the question and the mean log-probability. It is kept only
where its log loss, on rows held out by group, is proven to be lower than that of the prediction alone (95 %).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from router_ml.decide.selection.cascade import AnswerCheck
from training.arrays import Index, Matrix
from training.outcomes.cross_fitting import FOLDS
from training.splits import permuted_folds

MIN_OUTCOMES = 50  # of an arm, with a known success and a log-probability
MIN_OF_A_KIND = 8  # right answers, and wrong ones
PROVEN_SE = 1.645  # standard errors that the gain in log loss must exceed, 95 % one-sided
_MOST_OUTCOMES = 100_000  # where more are needed, the signal is said to tell nothing
_RESIDUALS = 9
_PENALTY = 1.0  # of the squared weights, in log loss: a prior of standard deviation 1
_STEPS, _SMALLEST_STEP = 50, 1e-8
_SHARED, _SHARED_SD = 0.5, 0.5  # of the surprise that is the question's, before paired outcomes are seen
_SHARES = np.linspace(0.0, 1.5, 61)
_EPSILON = 1e-3


class Rows(NamedTuple):
    """The outcomes of one arm that have a log-probability."""

    p: Matrix  # (n,) predicted from the question, held out
    signal: Matrix  # (n,) mean log-probabilities
    success: Matrix  # (n,)
    groups: Index  # (n,)

    def some(self, index: Index) -> Rows:
        """Return some of the rows."""
        return Rows(self.p[index], self.signal[index], self.success[index], self.groups[index])


class _Map(NamedTuple):
    centre: float
    scale: float
    weights: Matrix  # (3,): 1, logit p, z

    def __call__(self, rows: Rows) -> Matrix:
        return _sigmoid(_design(rows, self.centre, self.scale) @ self.weights)


def cascade_config(p: Matrix, success: Matrix, logprob: Matrix, groups: Index, seed: int) -> dict[str, Any] | None:
    """Return the checks of all arms, None for one that has none, and why it has none; None without log-probabilities.

    `p` (held out), `success` and `logprob` (NaN: unknown) are (n, M), `groups` is (n,)."""
    if np.isnan(logprob).all():
        return None
    checks: list[dict[str, Any] | None] = []
    lacking: list[str] = []
    for arm in range(p.shape[1]):
        known = np.flatnonzero(~np.isnan(success[:, arm]) & ~np.isnan(logprob[:, arm]))
        numbers = np.unique(groups[known], return_inverse=True)[1].astype(np.intp)
        rows = Rows(p[known, arm], logprob[known, arm], success[known, arm], numbers)
        why = _too_few(rows)
        held_out = None if why else _held_out(rows, seed)
        if held_out is not None:
            why = _unproven(rows, held_out)
        lacking.append(why)
        if why or held_out is None:
            checks.append(None)
            continue
        others = [np.delete(matrix[known], arm, axis=1) for matrix in (p, success)]
        shared = _shared(rows, held_out[1], *others)
        checks.append(_check(rows, shared).as_config())
    return {"checks": checks, "lacking": lacking}


def _too_few(rows: Rows) -> str:
    n, right = len(rows.p), int((rows.success >= 0.5).sum())
    if n < MIN_OUTCOMES:
        return f"{n} outcomes with a log-probability, {MIN_OUTCOMES} are needed"
    if min(right, n - right) < MIN_OF_A_KIND:
        kind = "wrong" if right > n - right else "right"
        return f"{min(right, n - right)} {kind} answers with a log-probability, {MIN_OF_A_KIND} are needed"
    return "" if rows.groups.any() else "all outcomes with a log-probability are of one group"


def _held_out(rows: Rows, seed: int) -> tuple[Matrix, Matrix]:
    """Return, for every row, what maps without and with the signal say that were fitted on other groups."""
    alone, both = np.empty(len(rows.p)), np.empty(len(rows.p))
    for train, test in permuted_folds(rows.groups, FOLDS, seed):
        own, other = rows.some(train), rows.some(test)
        both[test] = _fit(own)(other)
        alone[test] = _fit(own._replace(signal=np.zeros(len(train))))(other._replace(signal=np.zeros(len(test))))
    return alone, both


def _unproven(rows: Rows, held_out: tuple[Matrix, Matrix]) -> str:
    """Return why the signal is not used, with how many outcomes would prove it; "" where it is."""
    alone, both = (_loss(found, rows.success) for found in held_out)
    as_predicted = _loss(rows.p, rows.success)
    gain = _by_group(min(alone, as_predicted, key=lambda loss: float(loss.mean())) - both, rows.groups)
    mean, error = float(gain.mean()), float(gain.std(ddof=1)) / math.sqrt(len(gain))
    if mean > PROVEN_SE * error:
        return "" if _fit(rows).weights[2] > 0 else "unlikely answers are right more often"
    needed = len(rows.p) * (PROVEN_SE * error / mean) ** 2 if mean > 0 else math.inf
    if needed > _MOST_OUTCOMES:
        return f"log-probabilities do not tell its right answers from wrong ones ({len(rows.p)} outcomes)"
    return f"log-probabilities are not proven to tell; about {math.ceil(needed) - len(rows.p)} more outcomes are needed"


def _check(rows: Rows, shared: float) -> AnswerCheck:
    found, x = _fit(rows), _logit(rows.p)
    z = (rows.signal - found.centre) / found.scale
    slope = float(np.polyfit(x, z, 1)[0]) if x.std() > _EPSILON else 0.0
    start = float(z.mean() - slope * x.mean())
    shares = (np.arange(_RESIDUALS) + 0.5) / _RESIDUALS
    residuals = np.quantile(z - start - slope * x, shares)
    intercept, p_weight, signal_weight = (round(float(weight), 6) for weight in found.weights)
    return AnswerCheck(
        centre=found.centre,
        scale=found.scale,
        intercept=intercept,
        p_weight=p_weight,
        signal_weight=signal_weight,
        usual=(round(start, 6), round(slope, 6)),
        residuals=tuple(round(float(value), 6) for value in residuals),
        shared=shared,
        outcomes=len(rows.p),
    )


def _shared(rows: Rows, p_right: Matrix, p: Matrix, success: Matrix) -> float:
    """Return the likeliest share of an answer's surprise that holds for other arms; `p` and `success` are theirs.

    Few pairs leave it near one half (a Gaussian prior)."""
    surprise = (_logit(p_right) - _logit(rows.p))[:, None]
    known = ~np.isnan(success)
    start, target = _logit(p)[known], success[known]
    moved = np.broadcast_to(surprise, p.shape)[known]
    losses = [
        float(_loss(_sigmoid(start + share * moved), target).sum()) + (share - _SHARED) ** 2 / (2 * _SHARED_SD**2)
        for share in _SHARES
    ]
    return round(float(_SHARES[int(np.argmin(losses))]), 4)


def _fit(rows: Rows) -> _Map:
    """Fit a logistic regression by Newton steps, the weights held near p_success as it was predicted."""
    centre, scale = float(rows.signal.mean()), float(rows.signal.std()) or 1.0
    x, start = _design(rows, centre, scale), np.array([0.0, 1.0, 0.0])
    weights = start.copy()
    for _ in range(_STEPS):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - rows.success) + _PENALTY * (weights - start)
        curvature = (x.T * np.maximum(p * (1.0 - p), 1e-6)) @ x + _PENALTY * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    return _Map(centre, scale, weights)


def _design(rows: Rows, centre: float, scale: float) -> Matrix:
    return np.column_stack((np.ones(len(rows.p)), _logit(rows.p), (rows.signal - centre) / scale))


def _by_group(values: Matrix, groups: Index) -> Matrix:
    """Return the mean of each group: its rows are no independent evidence."""
    return np.asarray(np.bincount(groups, values) / np.bincount(groups))


def _loss(p: Matrix, success: Matrix) -> Matrix:
    p = np.clip(p, _EPSILON, 1.0 - _EPSILON)
    return np.asarray(-(success * np.log(p) + (1.0 - success) * np.log1p(-p)))


def _logit(p: Matrix) -> Matrix:
    p = np.clip(p, _EPSILON, 1.0 - _EPSILON)
    return np.asarray(np.log(p / (1.0 - p)))


def _sigmoid(x: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -50.0, 50.0))))
