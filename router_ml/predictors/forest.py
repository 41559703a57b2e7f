"""A forest of small regression trees as arrays, walked without branching.

Every tree has at most 64 leaves, numbered from left to right. A node whose test fails rules out all leaves of its left
branch; the leaf reached is the leftmost one that no failed test rules out (QuickScorer: Lucchese et al., SIGIR 2015).
So all tests of all trees are one comparison, and finding the leaves one bitwise reduction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.predictors.heads import Floats

MAX_LEAVES = 64
ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_CHUNK = 128  # rows walked at once: their tests stay in the cache
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_SHIFT = np.uint64(58)
_POSITION = np.empty(MAX_LEAVES, dtype=np.intp)
for _bit in range(MAX_LEAVES):
    _POSITION[((int(_DE_BRUIJN) << _bit) & int(ALL)) >> 58] = _bit


@dataclass(frozen=True, slots=True)
class Forest:
    """Sum over trees of the value of the leaf an input falls into."""

    feature: NDArray[np.intp]  # (nodes * trees,), node-major: the tests of one depth stand together
    threshold: Floats  # (nodes * trees,); a test fails where the input is greater
    keeps: NDArray[np.uint64]  # (nodes * trees,) leaves still possible after a failed test
    values: Floats  # (trees * 64, outputs)
    first: NDArray[np.intp]  # (trees,) row in `values` of each tree's first leaf

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Forest:
        """From `feature`, `threshold` and `keeps` (nodes, trees) and `values` (trees, 64, outputs)."""
        trees, leaves, outputs = arrays["values"].shape
        if leaves != MAX_LEAVES or not arrays["feature"].shape == arrays["threshold"].shape == arrays["keeps"].shape:
            raise ValueError("the arrays of the forest do not fit together")
        return cls(
            np.ascontiguousarray(arrays["feature"].ravel().astype(np.intp)),
            np.ascontiguousarray(arrays["threshold"].ravel().astype(np.float32)),
            np.ascontiguousarray(arrays["keeps"].ravel().astype(np.uint64)),
            np.ascontiguousarray(arrays["values"].reshape(trees * leaves, outputs).astype(np.float32)),
            np.arange(trees, dtype=np.intp) * MAX_LEAVES,
        )

    def __call__(self, x: Floats) -> Floats:
        """Sums of shape (n, outputs) for inputs (n, features)."""
        if len(x) == 1:
            return self._walk_one(x[0])[None]
        parts = [self._walk(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)]
        return np.concatenate(parts) if parts else np.zeros((0, self.values.shape[1]), np.float32)

    def _walk_one(self, x: Floats) -> Floats:
        failed = x.take(self.feature) > self.threshold
        possible = np.bitwise_and.reduce(np.where(failed, self.keeps, ALL).reshape(-1, len(self.first)), axis=0)
        result: Floats = np.add.reduce(self.values.take(self._rows(possible), axis=0), axis=0)
        return result

    def _walk(self, x: Floats) -> Floats:
        failed = x.take(self.feature, axis=1) > self.threshold
        kept = np.where(failed, self.keeps, ALL).reshape(len(x), -1, len(self.first))
        possible = np.bitwise_and.reduce(kept, axis=1)
        result: Floats = np.add.reduce(self.values.take(self._rows(possible), axis=0), axis=1)
        return result

    def _rows(self, possible: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Row of the leftmost possible leaf: the lowest set bit, found by a de Bruijn sequence."""
        lowest = possible & (~possible + np.uint64(1))
        return _POSITION.take((lowest * _DE_BRUIJN) >> _SHIFT) + self.first
