"""What doubly robust estimates need to know besides the propensities: expected rewards, and who gets judged.

Both are cross-fitted (Chernozhukov et al. 2018, arXiv:1608.00060): each session is predicted by models that did not see
it, so that their errors are independent of its rewards.
"""

from __future__ import annotations

import numpy as np

from training.arrays import Index, Matrix
from training.offpolicy.log import Log

FOLDS = 5
PENALTY = 10.0  # of the ridge regression, on standardised features
LEAST_JUDGED = 0.01  # estimated probabilities of being judged are not taken for smaller
_STEPS = 6  # of Newton's method


def expected_rewards(log: Log, seed: int = 0) -> Matrix:
    """Return the expected reward (n, K) of each arm in each row: ridge regression on the judged answers."""
    x, folds = _standardised(log.features), _folds(log.session, seed)
    z = _design(x, log.predicted, log.chosen)
    judged = log.judged
    reward = np.where(judged, log.reward, 0.0)
    by_arm = [_design(x, log.predicted, np.full(len(log), arm)) for arm in range(len(log.arms))]
    found = np.empty((len(log), len(log.arms)))
    grams, sides = [], []
    for fold in range(FOLDS):
        held = judged & (folds == fold)
        grams.append(z[held].T @ z[held])
        sides.append(z[held].T @ reward[held])
    penalty = PENALTY * np.eye(z.shape[1])
    penalty[0, 0] = 1e-6  # the mean is not shrunk
    for fold in range(FOLDS):
        weights = np.linalg.solve(sum(grams) - grams[fold] + penalty, sum(sides) - sides[fold])
        rows = folds == fold
        for arm, design in enumerate(by_arm):
            found[rows, arm] = design[rows] @ weights
    return found


def judging(log: Log, seed: int = 0) -> Matrix:
    """Return the probability (n,) that the answer of the chosen arm is judged: logistic regression."""
    judged = log.judged.astype(float)
    if judged.all():
        return np.ones(len(log))
    z, folds = _design(_standardised(log.features), log.predicted, log.chosen), _folds(log.session, seed)
    found = np.empty(len(log))
    start = np.zeros(z.shape[1])
    share = float(np.clip(judged.mean(), 1e-6, 1 - 1e-6))
    start[0] = np.log(share / (1 - share))
    for fold in range(FOLDS):
        rows = folds == fold
        start = _logistic(z[~rows], judged[~rows], start)
        found[rows] = 1 / (1 + np.exp(-z[rows] @ start))
    return np.clip(found, LEAST_JUDGED, 1.0)


def _logistic(z: Matrix, y: Matrix, weights: Matrix) -> Matrix:
    penalty = np.eye(z.shape[1])
    penalty[0, 0] = 1e-6
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ weights, -30, 30)))
        gradient = z.T @ (y - p) - penalty @ weights
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + penalty, gradient)
        weights = weights + step
        if np.abs(step).max() < 1e-3:
            break
    return weights


def _folds(session: Index, seed: int) -> Index:
    dealt = np.random.default_rng(seed).permutation(int(session.max(initial=0)) + 1) % FOLDS
    return dealt[session].astype(np.intp)


def _standardised(features: Matrix) -> Matrix:
    spread = features.std(axis=0)
    found: Matrix = (features - features.mean(axis=0)) / np.where(spread > 1e-9, spread, 1.0)
    return found


def _design(x: Matrix, predicted: Matrix, arm: Index) -> Matrix:
    """Return columns (n, 1 + d + 1 + K + K d): all arms together, then each arm's deviation from that."""
    rows = np.arange(len(x))
    own = np.zeros((len(x), predicted.shape[1]))
    own[rows, arm] = 1.0
    each = (own[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return np.column_stack((np.ones(len(x)), x, predicted[rows, arm] - 0.5, own, each))
