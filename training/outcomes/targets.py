"""The columns that outcome learners predict: success of each model, then the log of each quantity known of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from router_ml.decide.predictors.outcomes import QUANTITIES
from training.arrays import Index, Matrix
from training.outcomes.table import MIN_COST_USD, MIN_LATENCY_S, MIN_ROWS, OutcomeTable

_SMALLEST = {"cost_usd": MIN_COST_USD, "latency_s": MIN_LATENCY_S}


@dataclass(frozen=True)
class Targets:
    """Targets (n, K), NaN where unknown. The first `n_models` columns are successes."""

    values: Matrix
    n_models: int
    columns: dict[str, list[int]]  # per quantity and model: the place among that quantity's columns, or -1

    @property
    def success(self) -> Matrix:
        """Success (n, M) of each model."""
        return self.values[:, : self.n_models]

    def column(self, quantity: str, model: int) -> int:
        """Return the column of a quantity of a model, or -1 if it is unknown."""
        if self.columns[quantity][model] < 0:
            return -1
        before = QUANTITIES[: QUANTITIES.index(quantity)]
        earlier = sum(place >= 0 for name in before for place in self.columns[name])
        return self.n_models + earlier + self.columns[quantity][model]

    def rows(self, index: Index) -> Targets:
        """Return some of the rows."""
        return replace(self, values=self.values[index])

    def means(self) -> Matrix:
        """Return column means (K,); success counts one success and one failure more, so it is never 0 or 1."""
        known = ~np.isnan(self.values)
        total, count = np.where(known, self.values, 0.0).sum(axis=0), known.sum(axis=0).astype(float)
        total[: self.n_models] += 1.0
        count[: self.n_models] += 2.0
        return np.asarray(total / np.maximum(count, 1.0))

    def filled(self, means: Matrix) -> Matrix:
        """Return the values with each column that has no known row set to its mean."""
        empty = np.isnan(self.values).all(axis=0)
        return np.where(empty, means, self.values) if empty.any() else self.values


def targets_of(table: OutcomeTable) -> Targets:
    """Return the targets of a table; a quantity with fewer than `MIN_ROWS` known values of a model is left out."""
    parts = [table.success]
    columns: dict[str, list[int]] = {}
    for name in QUANTITIES:
        values = getattr(table, name)
        known = (~np.isnan(values)).sum(axis=0) >= MIN_ROWS
        columns[name] = np.where(known, np.cumsum(known) - 1, -1).tolist()
        parts.append(np.log(np.maximum(values[:, known], _SMALLEST.get(name, 1.0))))
    return Targets(np.hstack(parts), len(table.models), columns)
