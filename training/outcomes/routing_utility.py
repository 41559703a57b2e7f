"""The value of choices on held-out rows: success less the price of time, at several prices.

Choices can be compared where several models were tried on a query. Traffic has one outcome a query: there every choice
among what was tried is the same, so predictions are valued by their squared error instead, and it is left to the
off-policy gate to say what their choices are worth.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.predictors.outcomes import QUANTITIES
from training.arrays import Matrix
from training.measuring.metrics import aiq, auc, brier, choose, ece, sweep
from training.outcomes.table import OutcomeTable
from training.outcomes.targets import Targets

PRICES = (0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5)  # of cost, in units of the models' range of quality over that of cost
SMALLEST_RANGE = 0.05  # of quality, for that unit
PAIRED_SHARE = 0.2  # of the rows: so many with two models or more are needed to compare choices


class RoutingUtility(NamedTuple):
    """What choices cost and give, on rows with at least one known success. Matrices are (n, M).

    Where rows are not `paired`, a value is less the squared error of what is predicted of the models tried."""

    success: Matrix  # 0 if unknown
    cost: Matrix  # measured; the model's mean where unknown
    expected_cost: Matrix  # held-out prediction
    measured: NDArray[np.bool_]
    unit: float  # quality per cost at a price of 1; 0 if all models cost the same
    paired: bool = True  # several models were tried on enough queries

    def __call__(self, p: Matrix) -> Matrix:
        """Return each query's success minus price times cost of the model chosen by `p`, averaged over the prices."""
        if not self.paired:
            return self._closeness(p)
        rows = np.arange(len(p))
        total = np.zeros(len(p))
        for price in PRICES:
            weight = price * self.unit
            chosen = choose(p - weight * self.expected_cost, self.measured)
            total += self.success[rows, chosen] - weight * self.cost[rows, chosen]
        return total / len(PRICES)

    def success_of_best(self, p: Matrix) -> Matrix:
        """Return each query's success (n,) with the model most likely to succeed."""
        if not self.paired:
            return self._closeness(p)
        return np.asarray(self.success[np.arange(len(p)), choose(p, self.measured)])

    def best_single(self) -> Matrix:
        """Return each query's success (n,) with the model that succeeds most often over all rows."""
        rates = np.nanmean(np.where(self.measured, self.success, np.nan), axis=0)
        if not self.paired:
            return self._closeness(np.broadcast_to(rates, self.success.shape))
        return np.asarray(self.success[:, rates.argmax()])

    def _closeness(self, p: Matrix) -> Matrix:
        errors = np.where(self.measured, (p - self.success) ** 2, 0.0)
        return np.asarray(-errors.sum(axis=1) / self.measured.sum(axis=1))

    def figures(self, p: Matrix, baseline: Matrix) -> dict[str, float]:
        """Return the figures of held-out predictions (n, M) beside the utilities (n,) of a baseline."""
        truth, clipped = np.where(self.measured, self.success, np.nan), np.clip(p, 0.0, 1.0)
        gain = self(p) - baseline
        aucs = [value for j in range(p.shape[1]) if np.isfinite(value := auc(p[:, j], truth[:, j]))]
        figures = {
            "brier": brier(clipped, truth),
            "ece": float(np.nanmean([ece(clipped[:, j], truth[:, j]) for j in range(p.shape[1])])),
            "auc": float(np.mean(aucs)) if aucs else float("nan"),
        }
        name = "utility" if self.paired else "closeness"
        figures |= {f"{name}_gain": float(gain.mean()), f"{name}_gain_se": float(gain.std() / np.sqrt(len(gain)))}
        if self.paired:
            accuracy = self.success_of_best(p)
            figures |= {"utility": float(self(p).mean()), "accuracy": float(accuracy.mean())}
            figures["accuracy_gain"] = float((accuracy - self.best_single()).mean())
        if self.unit and self.paired:
            area = aiq(sweep(p, self.expected_cost, truth, self.cost), truth, self.cost)
            figures |= {"aiq": area.raw, "aiq_normalised": area.normalised}
        return {name: value for name, value in figures.items() if np.isfinite(value)}


def routing_utility(table: OutcomeTable, targets: Targets, quantities: Matrix) -> RoutingUtility:
    """Return the utility of choices on a table; `quantities` (n, K - M) are held-out log predictions."""
    name, cost = table.cost_axis
    known = ~np.isnan(cost)
    means = np.where(known, cost, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    means = np.where(known.any(axis=0), means, means[known.any(axis=0)].mean() if known.any() else 0.0)
    expected = np.broadcast_to(means, cost.shape).copy()
    for j in range(len(means)):
        column = targets.column(name, j) if name in QUANTITIES else -1
        if column >= 0:
            predicted = np.exp(quantities[:, column - targets.n_models])
            expected[:, j] = predicted * means[j] / predicted.mean()
    rates = np.nanmean(table.success, axis=0)
    cost_range = float(means.max() - means.min())
    unit = max(float(rates.max() - rates.min()), SMALLEST_RANGE) / cost_range if cost_range > 0 else 0.0
    measured = ~np.isnan(table.success)
    paired = bool((measured.sum(axis=1) > 1).mean() >= PAIRED_SHARE)
    return RoutingUtility(np.nan_to_num(table.success), np.where(known, cost, means), expected, measured, unit, paired)
