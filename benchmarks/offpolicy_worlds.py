"""Logged traffic with a known truth, for `benchmarks.offpolicy`: three arms and a router partly wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.arrays import Index, Matrix
from training.offpolicy.log import Bools, Log

ARMS = ("small", "medium", "large")
MEAN_SESSION = 5
LATENCY_S = np.array([1.0, 2.0, 4.0])
LATENCY_WEIGHT_PER_S = 0.01


@dataclass(frozen=True)
class World:
    """What is true of the traffic and of how it was logged."""

    name: str
    sessions: bool = False  # rows come in sessions that share their kind of query, their luck and their judge
    heavy_tails: bool = False  # the reward is success less the price of log-normal latencies
    missing: bool = False  # who is judged depends on the arm and on the query
    judged: int = 5_000  # expected judged answers
    exploration: float = 0.05
    gap: float | None = None  # as in a policy; None: equal parts
    disagreement: float = 0.2  # share of queries on which the challenger chooses otherwise
    gain: float = 0.0  # true difference of the challenger's value, in units of success


def logged(world: World, rng: np.random.Generator) -> tuple[Log, Index, float]:
    """Return a log, what the challenger chooses in it, and the true difference in this population."""
    n = round(world.judged / _judged_share(world))
    session = np.sort(rng.integers(0, max(n // MEAN_SESSION, 2), n)) if world.sessions else np.arange(n)
    session = np.unique(session, return_inverse=True)[1]
    x = _shared(rng, session, 4, 0.6 if world.sessions else 0.0)
    base = 0.76 + 0.08 * np.tanh(0.8 * x[:, 0] - 0.6 * x[:, 1])
    predicted = np.clip(base[:, None] + 0.03 * _shared(rng, session, 3, 0.0) + [-0.01, 0.0, 0.01], 0.05, 0.95)
    order = np.argsort(-predicted, axis=1)
    preferred, runner_up = order[:, 0], order[:, 1]
    differs = x[:, 2] > np.quantile(x[:, 2], 1 - world.disagreement)
    challenger = np.where(differs, runner_up, preferred)
    success = base[:, None] + [-0.02, 0.0, 0.02] * np.tanh(x[:, 3])[:, None]
    rows = np.arange(n)
    wanted = world.gain / world.disagreement + LATENCY_WEIGHT_PER_S * world.heavy_tails * _slower(
        challenger, preferred, differs
    )
    at_preferred = success[rows, preferred]
    success[rows[differs], runner_up[differs]] = np.clip(at_preferred + wanted, 0.0, 1.0)[differs]
    chances = _chances(predicted, order, world)
    chosen = (rng.random(n)[:, None] > chances.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    luck = _shared(rng, session, 1, 0.5 if world.sessions else 0.0)[:, 0]
    right = _uniform(luck) < success[rows, chosen]
    reward = right.astype(float)
    truth = success[rows, challenger] - success[rows, preferred]
    if world.heavy_tails:
        latency = LATENCY_S[chosen] * np.exp(1.0 * rng.standard_normal(n) - 0.5)
        reward = reward - LATENCY_WEIGHT_PER_S * latency
        truth = truth - LATENCY_WEIGHT_PER_S * (LATENCY_S[challenger] - LATENCY_S[preferred])
    judged = rng.random(n) < _judging(world, x, chosen)
    log = Log(
        ARMS, chosen, preferred, chances[rows, chosen], np.ones((n, 3), bool), np.where(judged, reward, np.nan),
        session, x, predicted, np.ones(n, bool),
    )  # fmt: skip
    return log, challenger, float(truth.mean())


def _shared(rng: np.random.Generator, session: Index, columns: int, correlation: float) -> Matrix:
    """Return standard normal columns (n, columns) whose rows correlate within a session."""
    own = rng.standard_normal((len(session), columns))
    common = rng.standard_normal((int(session.max()) + 1, columns))[session]
    mixed: Matrix = np.sqrt(1 - correlation) * own + np.sqrt(correlation) * common
    return mixed


def _uniform(normal: Matrix) -> Matrix:
    from scipy.special import ndtr

    found: Matrix = ndtr(normal)
    return found


def _slower(challenger: Index, preferred: Index, differs: Bools) -> float:
    return float((LATENCY_S[challenger] - LATENCY_S[preferred])[differs].mean())


def _chances(predicted: Matrix, order: Index, world: World) -> Matrix:
    """Return the logging policy's probabilities (n, 3): `selection.exploration.propensities` for many rows at once."""
    n, arms = predicted.shape
    rows = np.arange(n)
    if world.gap is None:
        chances = np.full((n, arms), world.exploration / arms)
    else:
        best = predicted[rows, order[:, 0]]
        weight = 1 / (1 + (best[:, None] - predicted) / world.gap)
        weight[rows, order[:, 0]] = 0.0
        total = weight.sum(axis=1, keepdims=True)
        chances = weight * np.minimum(world.exploration / np.maximum(total, 1.0), 1 / (1 + total))
    chances[rows, order[:, 0]] = 0.0
    chances[rows, order[:, 0]] = 1 - chances.sum(axis=1)
    return chances


def _judging(world: World, x: Matrix, chosen: Index) -> Matrix:
    if not world.missing:
        return np.ones(len(x))
    found: Matrix = 1 / (1 + np.exp(-(np.array([-1.8, -1.0, -0.2])[chosen] + 0.8 * x[:, 0] + 0.5 * x[:, 2])))
    return found


def _judged_share(world: World) -> float:
    return 0.325 if world.missing else 1.0
