"""The mean outcome of the nearest stored queries. New outcomes can be taken in without a fit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.predictors.heads import Floats

BRUTE_FORCE_ROWS = 6_000  # up to here every row is compared
PROBED_ROWS = 4_000  # about so many are compared above it
SHRINKAGE = 2.0  # outcomes the mean of a model counts for among the neighbours


class Neighbours:
    """kNN over stored keys. `outcomes` is (N, M) with NaN where a model was not tried.

    Many rows are stored in cells around sampled centres, and only the cells next to a query are searched (an inverted
    file, as in Jegou et al. 2011)."""

    def __init__(self, keys: Floats, outcomes: Floats, k: int) -> None:
        known = ~np.isnan(outcomes)
        self._mean = np.where(known, outcomes, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        self._k = min(k, len(keys))
        self._centres: Floats | None = None
        if len(keys) > BRUTE_FORCE_ROWS:
            keys, outcomes = self._into_cells(np.asarray(keys, np.float32), outcomes)
            known = ~np.isnan(outcomes)
        self._keys = np.ascontiguousarray(keys, dtype=np.float32)
        self._half_square = 0.5 * np.einsum("ij,ij->i", self._keys, self._keys)
        self._known = None if known.all() else known.astype(np.float32)
        self._outcomes = np.where(known, outcomes, 0).astype(np.float32)

    def _into_cells(self, keys: Floats, outcomes: Floats) -> tuple[Floats, Floats]:
        n_cells = int(np.sqrt(len(keys)))
        centres = keys[np.linspace(0, len(keys) - 1, n_cells).astype(int)]
        half = 0.5 * np.einsum("ij,ij->i", centres, centres)
        cell = np.concatenate([(part @ centres.T - half).argmax(axis=1) for part in _parts(keys)])
        order = np.argsort(cell, kind="stable")
        bounds = np.searchsorted(cell[order], np.arange(n_cells + 1))
        self._centres, self._centre_half = centres, half
        self._bounds = bounds.tolist()
        self._probes = max(1, round(PROBED_ROWS / len(keys) * n_cells))
        return keys[order], outcomes[order]

    def __call__(self, queries: Floats) -> Floats:
        """Return means of shape (n, M) for keys (n, d)."""
        if self._centres is None:
            return np.concatenate([self._search(part) for part in _parts(queries)])
        return np.stack([self._probe(query) for query in queries])

    def _search(self, queries: Floats) -> Floats:
        near = queries @ self._keys.T - self._half_square
        if self._k < len(self._keys):
            index = np.argpartition(near, len(self._keys) - self._k, axis=1)[:, -self._k :]
        else:
            index = np.broadcast_to(np.arange(len(self._keys)), near.shape)
        total = self._outcomes.take(index, axis=0).sum(axis=1)
        count = self._k if self._known is None else self._known.take(index, axis=0).sum(axis=1)
        return self._shrunk(total, count)

    def _probe(self, query: Floats) -> Floats:
        assert self._centres is not None
        near = self._centres @ query - self._centre_half
        cells = np.argpartition(near, len(near) - self._probes)[-self._probes :]
        spans = [(self._bounds[cell], self._bounds[cell + 1]) for cell in cells.tolist()]
        keys = np.concatenate([self._keys[low:high] for low, high in spans])
        rows: NDArray[np.intp] = np.concatenate([np.arange(low, high) for low, high in spans])
        scores = keys @ query - self._half_square[rows]
        if len(rows) > self._k:
            rows = rows[np.argpartition(scores, len(rows) - self._k)[-self._k :]]
        total = self._outcomes[rows].sum(axis=0)
        return self._shrunk(total, len(rows) if self._known is None else self._known[rows].sum(axis=0))

    def _shrunk(self, total: Floats, count: Floats | int) -> Floats:
        result: Floats = ((total + SHRINKAGE * self._mean) / (count + SHRINKAGE)).astype(np.float32)
        return result


def _parts(rows: Floats, size: int = 512) -> list[Floats]:
    return [rows[i : i + size] for i in range(0, len(rows), size)] or [rows]
