"""Figures of a router and of its predictions. Pure functions of arrays; rows are queries, columns are models.

A *curve* is what a router reaches when its weight on cost is swept: (mean cost, mean quality) pairs. Cost means
seconds or dollars, whichever the caller gives. Unmeasured outcomes are NaN and are never chosen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import mean_squared_error, roc_auc_score

from training.arrays import Floats, Index, Matrix

SWEEP_STEPS = 161
APGR_THRESHOLDS = 11  # as RouteLLM's evaluation draws them
ECE_BINS = 10


class Curve(NamedTuple):
    """The points of a sweep, cheapest first."""

    cost: Matrix
    quality: Matrix


class Aiq(NamedTuple):
    """Average improvement in quality (RouterBench, arXiv 2403.12031), and how much of the possible gain it is."""

    raw: float  # mean height of the hull between the cheapest and the most expensive model
    normalised: float  # (router - line) / (oracle - line); NaN where no gain is possible
    static: float  # the same for the best mix of single models, which needs no learning


def choose(score: Floats, measured: NDArray[np.bool_]) -> Index:
    """Return the index (n,) of the measured model with the highest score in each row; the first of equals."""
    chosen: Index = np.where(measured, score, -np.inf).argmax(axis=1)
    return chosen


class Sweep(NamedTuple):
    """Measured cost and quality of each query at each weight on cost; a resample needs no new choices."""

    cost: Matrix  # (weights, n)
    quality: Matrix  # (weights, n)

    def curve(self, weights: Floats | None = None) -> Curve:
        """Return means over the queries, weighted by `weights` (n,)."""
        w = np.ones(self.cost.shape[1]) if weights is None else np.asarray(weights, np.float64)
        cost, quality = self.cost @ w / w.sum(), self.quality @ w / w.sum()
        order = np.lexsort((quality, cost))
        return Curve(cost[order], quality[order])


def sweep_choices(p_success: Floats, predicted_cost: Floats, success: Floats, cost: Floats) -> Sweep:
    """Route by `p_success - weight * predicted_cost` for weights from 0 to so much that cost alone decides.

    `predicted_cost` is (n, M) or (M,). Every query must have a measured model."""
    predicted = np.broadcast_to(np.asarray(predicted_cost, np.float64), success.shape)
    measured = ~(np.isnan(success) | np.isnan(cost))
    p = np.asarray(p_success, np.float64)
    rows = np.arange(len(success))
    chosen = np.stack([choose(p - weight * predicted, measured) for weight in _weights(predicted[measured])])
    return Sweep(np.asarray(cost[rows, chosen], np.float64), np.asarray(success[rows, chosen], np.float64))


def sweep(p_success: Floats, predicted_cost: Floats, success: Floats, cost: Floats) -> Curve:
    """Return the curve of `sweep_choices`; queries without a measured model are left out."""
    keep = ~(np.isnan(success) | np.isnan(cost)).all(axis=1)
    predicted = np.broadcast_to(np.asarray(predicted_cost, np.float64), success.shape)
    return sweep_choices(np.asarray(p_success)[keep], predicted[keep], success[keep], cost[keep]).curve()


def _weights(predicted: Floats) -> Matrix:
    spread = float(np.nanstd(predicted)) or float(np.nanmean(predicted)) or 1.0
    return np.concatenate(([0.0], np.geomspace(1e-4, 1e4, SWEEP_STEPS) / spread))


def singles(success: Floats, cost: Floats) -> Curve:
    """Return mean cost and quality of always taking one model, in the order of the columns (not sorted)."""
    return Curve(np.nanmean(cost, axis=0), np.nanmean(success, axis=0))


def hull(curve: Curve, low: float, high: float) -> Curve:
    """Return the non-decreasing concave hull of a curve between two costs.

    Mixing two points at random reaches every point between them, so the hull is attainable. Left of the cheapest
    point the quality is that point's own; right of the best point it stays."""
    points = sorted(zip(curve.cost.tolist(), curve.quality.tolist(), strict=True))
    upper: list[tuple[float, float]] = []
    for point in points:
        if upper and point[1] <= upper[-1][1]:
            continue
        if upper and point[0] == upper[-1][0]:
            upper.pop()
        while len(upper) >= 2 and _turns_up(upper[-2], upper[-1], point):
            upper.pop()
        upper.append(point)
    x, y = np.array(upper).T
    inner = (x > low) & (x < high)
    cost = np.concatenate(([low], x[inner], [high]))
    return Curve(cost, np.interp(cost, x, y))


def _turns_up(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) >= (b[1] - a[1]) * (c[0] - a[0])


def mean_height(curve: Curve) -> float:
    """Return the area under a curve divided by the width of its cost range."""
    width = float(curve.cost[-1] - curve.cost[0])
    return float(np.trapezoid(curve.quality, curve.cost)) / width if width > 0 else float(curve.quality.max())


def aiq(curve: Curve, success: Floats, cost: Floats) -> Aiq:
    """Return `aiq_of` with the single models and the oracle taken from the outcomes."""
    return aiq_of(curve, singles(success, cost), sweep(success, cost, success, cost))


def aiq_of(curve: Curve, single: Curve, oracle: Curve) -> Aiq:
    """Return the area of the router's hull between the cheapest and the most expensive model, raw and normalised.

    The line joins those two models; the oracle knows every outcome. The cheapest model belongs to every router's hull,
    since any router can always take it."""
    cheapest, costliest = int(single.cost.argmin()), int(single.cost.argmax())
    low, high = float(single.cost[cheapest]), float(single.cost[costliest])
    with_cheapest = Curve(np.append(curve.cost, low), np.append(curve.quality, single.quality[cheapest]))
    raw = mean_height(hull(with_cheapest, low, high))
    static = mean_height(hull(single, low, high))
    line = float(single.quality[cheapest] + single.quality[costliest]) / 2
    room = mean_height(hull(oracle, low, high)) - line
    if room <= 0 or high <= low:
        return Aiq(raw, float("nan"), float("nan"))
    return Aiq(raw, (raw - line) / room, (static - line) / room)


def cost_to_reach(curve: Curve, quality: float) -> float:
    """Return the least mean cost at which the hull of a curve reaches a quality; NaN where it never does."""
    whole = hull(curve, float(curve.cost.min()), float(curve.cost.max()))
    if whole.quality[-1] < quality:
        return float("nan")
    return float(np.interp(quality, whole.quality, whole.cost))


def apgr(score: Floats, strong: Floats, weak: Floats) -> float:
    """Return the average performance gap recovered (RouteLLM, arXiv 2406.18665): 0 as the weak model, 1 as the strong.

    `score` ranks the queries, the highest go to the strong model first. NaN where the two models are equally good."""
    shares = np.linspace(0.0, 1.0, APGR_THRESHOLDS)
    recovered = _recovered(score, strong, weak, shares)
    return float(np.trapezoid(recovered, shares))


def cpt(score: Floats, strong: Floats, weak: Floats, gap_share: float) -> float:
    """Return the call-performance threshold (RouteLLM): the share of strong calls that recovers a share of the gap."""
    shares = np.linspace(0.0, 1.0, len(score) + 1)
    recovered = _recovered(score, strong, weak, shares)
    if np.isnan(recovered).any():
        return float("nan")
    return float(shares[int((recovered >= gap_share - 1e-12).argmax())])


def _recovered(score: Floats, strong: Floats, weak: Floats, shares: Floats) -> Matrix:
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    gain = np.concatenate(([0.0], np.cumsum((strong - weak)[order])))
    gap = gain[-1]
    if abs(gap) < 1e-12:
        return np.full(len(shares), np.nan)
    recovered: Matrix = gain[np.round(np.asarray(shares) * len(order)).astype(int)] / gap
    return recovered


def ece(p: Floats, outcome: Floats, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al. 2017, arXiv 1706.04599, eq. 5)."""
    p, outcome = _known_pairs(p, outcome)
    if not len(p):
        return float("nan")
    which = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(which, outcome - p, minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def brier(p: Floats, outcome: Floats) -> float:
    """Return the mean squared error of a probability; an outcome may lie between 0 and 1."""
    p, outcome = _known_pairs(p, outcome)
    return float(mean_squared_error(outcome, p)) if len(p) else float("nan")


def reliability(p: Floats, outcome: Floats, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """Return mean prediction and mean outcome of each non-empty bin, for a reliability plot."""
    p, outcome = _known_pairs(p, outcome)
    which = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"predicted": float(p[which == b].mean()), "observed": float(outcome[which == b].mean()), "n": float(n)}
        for b, n in enumerate(np.bincount(which, minlength=bins))
        if n
    ]


def _known_pairs(p: Floats, outcome: Floats) -> tuple[Matrix, Matrix]:
    flat, known = np.asarray(p, np.float64).ravel(), np.asarray(outcome, np.float64).ravel()
    keep = ~(np.isnan(known) | np.isnan(flat))
    return flat[keep], known[keep]


def auc(score: Floats, outcome: Floats) -> float:
    """Return the area under the ROC curve; outcomes above one half count as success. NaN where all are alike."""
    score, outcome = _known_pairs(score, outcome)
    success = outcome > 0.5
    return float(roc_auc_score(success, score)) if 0 < success.sum() < len(success) else float("nan")


def latency_report(quantiles_s: Floats, latency_s: Floats, median_s: Floats | float) -> dict[str, float]:
    """Return figures of latency predicted as p50, p90 and p95, `quantiles_s` (n, 3), beside a constant `median_s`.

    mae_ratio: mean absolute error of p50 over that of the constant median; r2_log: variance of log latency that p50
    explains; bias_p50: share of latencies under p50; coverage_p90, coverage_p95."""
    keep = ~np.isnan(latency_s) & (latency_s > 0)
    q, true = np.asarray(quantiles_s, np.float64)[keep], np.asarray(latency_s, np.float64)[keep]
    if not len(true):
        return {}
    constant = np.broadcast_to(median_s, latency_s.shape)[keep]
    error = float(np.abs(q[:, 0] - true).mean())
    log = np.log(true)
    spread = float(((log - log.mean()) ** 2).sum())
    return {
        "n": float(len(true)),
        "mae_s": error,
        "mae_ratio": error / float(np.abs(constant - true).mean() or np.nan),
        "r2_log": 1.0 - float(((np.log(np.maximum(q[:, 0], 1e-6)) - log) ** 2).sum()) / spread
        if spread
        else float("nan"),
        "bias_p50": float((true <= q[:, 0]).mean()),
        "coverage_p90": float((true <= q[:, 1]).mean()),
        "coverage_p95": float((true <= q[:, 2]).mean()),
    }


def over_and_under(chosen: Index, success: Floats, cost: Floats) -> tuple[float, float]:
    """Return the shares of queries routed too high and too low.

    Too high: a model cheaper on average would have been right as well. Too low: the choice failed where a more
    expensive one would have been right. A model is right where its success is above one half."""
    right = np.nan_to_num(success, nan=0.0) > 0.5
    mean_cost = np.nanmean(cost, axis=0)
    rows = np.arange(len(chosen))
    cheaper = mean_cost[None, :] < mean_cost[chosen][:, None]
    costlier = mean_cost[None, :] > mean_cost[chosen][:, None]
    fine = right[rows, chosen]
    over = fine & (right & cheaper).any(axis=1)
    under = ~fine & (right & costlier).any(axis=1)
    return float(over.mean()), float(under.mean())
