"""Losses of cheaper choices beside the best single arm, on held-out rows: what serving certifies a bound with."""

from __future__ import annotations

from typing import Any

import numpy as np

from router_ml.decide.selection.guarantee import LOSSES
from training.arrays import Index, Matrix

STEPS = 40  # margins, at equal shares of the rows that a cheaper arm serves


def guarantee_table(p: Matrix, success: Matrix, cost: Matrix, groups: Index, reference: int) -> dict[str, Any] | None:
    """Return margins of p_success, the losses of each as counts of `LOSSES`, the share of rows that a cheaper arm
    serves, and the expected cost beside that of the reference arm; None where no arm is cheaper.

    `p`, `success` (NaN: unknown) and the expected `cost` are (n, M), `p` held out by group; `groups` is (n,). Rows of
    one group are no independent evidence: their mean counts as one loss."""
    known = ~np.isnan(success[:, reference])
    p, success, cost, groups = p[known], success[known], cost[known], groups[known]
    gap = np.where(cost < cost[:, [reference]], p[:, [reference]] - p, np.inf)
    moves_at = gap.min(axis=1)
    moves_at = moves_at[np.isfinite(moves_at)]
    if not len(moves_at):
        return None
    margins = np.unique(np.quantile(moves_at, np.arange(1, STEPS + 1) / STEPS))
    rows, table = np.arange(len(p)), []
    for margin in margins:
        within = np.where(gap <= margin, cost, np.inf)
        chosen = np.where(np.isfinite(within).any(axis=1), within.argmin(axis=1), reference)
        loss = success[:, reference] - success[rows, chosen]
        paired = ~np.isnan(loss)
        counts = _counts(loss[paired], groups[paired])
        relative = float(cost[rows, chosen].mean() / cost[:, reference].mean())
        table.append((counts, float((chosen != reference).mean()), relative))
    return {
        "margins": margins.tolist(),
        "counts": [counts for counts, _, _ in table],
        "moved": [round(moved, 4) for _, moved, _ in table],
        "relative_cost": [round(relative, 4) for _, _, relative in table],
    }


def _counts(loss: Matrix, groups: Index) -> list[int]:
    """Return how many groups have a mean loss of each of `LOSSES`, rounded up."""
    _, place, size = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(place, loss) / size if len(loss) else loss
    bins = np.searchsorted(LOSSES + 1e-9, means)
    return [int(count) for count in np.bincount(bins, minlength=len(LOSSES))]
