"""A forest of small regression trees as arrays, evaluated without branching.

Every tree has at most 32 leaves, numbered from left to right. A node whose test fails rules out all leaves of its left
branch; the leaf reached is the leftmost one that no failed test rules out (QuickScorer: Lucchese et al., SIGIR 2015).
So all tests of all trees are one comparison. Eight tests of a tree at a time are looked up in a table of the leaves
they leave possible, and what all of them leave is one bitwise reduction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.predictors.heads import Floats

MAX_LEAVES = 32
ALL = np.uint32(0xFFFFFFFF)
_AT_ONCE = 8  # tests that make one byte
_FRACTION_BITS = np.array(52)  # of a double: what stands above them is the exponent
_EXPONENT_OF_ONE = 1023


class Forest:
    """Sum over trees of the value of the leaf an input falls into. Thread-safe."""

    def __init__(
        self, feature: NDArray[np.intp], threshold: Floats, keeps: NDArray[np.uint32], values: Floats, trees: int
    ) -> None:
        """Take tests of shape (bytes, trees, 8), values (trees * 32, outputs)."""
        self._feature, self._threshold = feature.ravel(), threshold.ravel()
        self._possible = _possible(keeps)
        self._entry = np.arange(keeps.size // _AT_ONCE, dtype=np.intp) << _AT_ONCE  # where each byte's part begins
        self._values = values
        self._first = np.arange(trees, dtype=np.intp) * MAX_LEAVES - _EXPONENT_OF_ONE
        self._ones = np.ones(trees, np.float32)

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Forest:
        """Build a forest from `feature`, `threshold` and `keeps` (nodes, trees) and `values` (trees, 32, outputs).

        Raises ValueError if they do not fit together."""
        trees, leaves, outputs = arrays["values"].shape
        feature, threshold, keeps = (arrays[name] for name in ("feature", "threshold", "keeps"))
        if leaves != MAX_LEAVES or not feature.shape == threshold.shape == keeps.shape or feature.shape[1] != trees:
            raise ValueError("the arrays of the forest do not fit together")
        used = np.flatnonzero((keeps != ALL).any(axis=1))
        n_bytes = max(1, -(-len(used) // _AT_ONCE))

        def in_bytes(tests: NDArray[Any], idle: Any, kind: Any) -> NDArray[Any]:
            whole = np.full((n_bytes * _AT_ONCE, trees), idle, kind)
            whole[: len(used)] = tests[used]
            return np.ascontiguousarray(whole.reshape(n_bytes, _AT_ONCE, trees).transpose(0, 2, 1))

        return cls(
            in_bytes(feature, 0, np.intp),
            in_bytes(threshold, np.inf, np.float32),
            in_bytes(keeps, ALL, np.uint32),
            np.ascontiguousarray(arrays["values"].reshape(trees * leaves, outputs), dtype=np.float32),
            trees,
        )

    def __call__(self, x: Floats) -> Floats:
        """Return sums of shape (n, outputs) for inputs (n, features)."""
        sums = np.empty((len(x), self._values.shape[1]), np.float32)
        for i, row in enumerate(x):
            sums[i] = self.sum(row)
        return sums

    def sum(self, x: Floats) -> Floats:
        """Return sums (outputs,) for one input (features,). A feature index beyond its end wraps around."""
        failed = x.take(self._feature, mode="wrap") > self._threshold
        possible = self._possible.take(self._entry + np.packbits(failed), mode="wrap")
        possible = np.bitwise_and.reduce(possible.reshape(-1, len(self._first)), axis=0)
        lowest = (possible & np.negative(possible)).astype(np.float64)  # a power of two: its exponent is its place
        leaf = np.right_shift(lowest.view(np.int64), _FRACTION_BITS) + self._first
        result: Floats = self._ones.dot(self._values.take(leaf, axis=0, mode="wrap"))
        return result


def _possible(keeps: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the leaves that each byte of failed tests leaves possible, given those of each test (bytes, trees, 8)."""
    table = np.full((keeps.size // _AT_ONCE, 1 << _AT_ONCE), ALL, np.uint32)
    for bit in range(_AT_ONCE):  # the first test of a byte is its highest bit
        low = 1 << bit
        table[:, low : 2 * low] = table[:, :low] & keeps.reshape(-1, _AT_ONCE)[:, _AT_ONCE - 1 - bit, None]
    return table.ravel()
