"""Splits that never tear a group apart and never move when rows are added."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from router_ml.types import Query

TEST_SHARE = 0.10

Rows: TypeAlias = NDArray[np.int64]


def group_of(query: Query) -> str:
    """The group of a query; a query without one is its own group."""
    return query.group or f"id:{query.id}"


def unit_interval(key: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the key and nothing else."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{key}".encode()).digest()[:8], "big") / 2**64


def is_test(group: str, share: float = TEST_SHARE) -> bool:
    """Whether a group belongs to the test split: decided by its hash, so it never changes sides."""
    return unit_interval(group, "test") < share


def grouped_folds(
    groups: Sequence[str], folds: int, seed: int = 0
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Row indices (train, held out) of each fold; whole groups, of about equal size."""
    names = sorted(set(groups), key=lambda g: unit_interval(g, f"fold{seed}"))
    sizes = dict.fromkeys(names, 0)
    for group in groups:
        sizes[group] += 1
    load = [0] * folds
    fold_of: dict[str, int] = {}
    for name in sorted(names, key=lambda g: -sizes[g]):  # stable: equal sizes keep their random order
        fold = load.index(min(load))
        fold_of[name] = fold
        load[fold] += sizes[name]
    assigned = np.array([fold_of[group] for group in groups])
    for fold in range(folds):
        yield np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
