"""Splits that keep groups whole; a row's side depends on its group, not on the other rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from router_ml.types import Query
from training.arrays import Index, Labels

TEST_SHARE = 0.10


def group_of(query: Query) -> str:
    """Return the group of a query; a query without one is its own group."""
    return query.group or f"id:{query.id}"


def group_numbers(queries: Sequence[Query]) -> Index:
    """Return a number (n,) per query, equal for the queries of one group."""
    names = [query.id if query.group is None else f"group:{query.group}" for query in queries]
    numbers: Index = np.unique(names, return_inverse=True)[1].astype(np.intp)
    return numbers


def unit_interval(key: str, salt: str = "") -> float:
    """Return a number in [0, 1) that depends on the key and the salt alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{key}".encode()).digest()[:8], "big") / 2**64


def is_test(group: str, share: float = TEST_SHARE) -> bool:
    """Return whether a group belongs to the test split, decided by its hash so that it never changes sides."""
    return unit_interval(group, "test") < share


def grouped_folds(groups: Sequence[str], folds: int, seed: int = 0) -> Iterator[tuple[Labels, Labels]]:
    """Yield row indices (train, held out) of each fold: whole groups, folds of about equal size.

    The assignment depends on the groups' names alone, not on the order of the rows (`GroupKFold` orders by size)."""
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


def permuted_folds(groups: Index, folds: int, seed: int = 0) -> Iterator[tuple[Index, Index]]:
    """Yield row indices (train, test) of each fold that has both, groups being numbered from 0.

    Groups are dealt out in random order; outcome fits and their baselines share these folds."""
    fold = (np.random.default_rng(seed).permutation(int(groups.max()) + 1) % folds)[groups]
    for f in range(folds):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        if len(train) and len(test):
            yield train, test
