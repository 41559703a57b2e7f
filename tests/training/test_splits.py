"""Splits keep groups whole and never move when rows are added."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.types import Query
from training.splits import TEST_SHARE, group_of, grouped_folds, is_test, unit_interval

_GROUPS = st.lists(st.sampled_from([f"g{i}" for i in range(12)]), min_size=1, max_size=40)


def test_a_known_position() -> None:
    """`printf 'test|abc' | sha256sum` begins with 191797dd368f2a8f."""
    assert unit_interval("abc", "test") == 0x191797DD368F2A8F / 2**64
    assert unit_interval("abc", "a") != unit_interval("abc", "b")


@given(_GROUPS, st.integers(2, 5), st.integers(0, 3))
def test_groups_stay_whole_and_every_row_is_held_out_once(groups: list[str], folds: int, seed: int) -> None:
    held_out: list[int] = []
    for train, held in grouped_folds(groups, folds, seed):
        assert not {groups[i] for i in train} & {groups[i] for i in held}
        assert sorted([*train, *held]) == list(range(len(groups)))
        held_out += held.tolist()
    assert sorted(held_out) == list(range(len(groups)))


@given(_GROUPS, st.integers(2, 5))
def test_folds_are_of_about_equal_size(groups: list[str], folds: int) -> None:
    sizes = [len(held) for _, held in grouped_folds(groups, folds)]
    largest = max(groups.count(name) for name in groups)
    assert max(sizes) - min(sizes) <= largest


@given(_GROUPS)
def test_folds_do_not_depend_on_the_order_of_rows(groups: list[str]) -> None:
    def fold_of(rows: list[str]) -> dict[str, int]:
        return {rows[i]: k for k, (_, held) in enumerate(grouped_folds(rows, 3)) for i in held}

    assert fold_of(groups) == fold_of(groups[::-1])


def test_the_test_split_is_about_a_tenth_and_depends_on_the_group_alone() -> None:
    sides = {f"g{i}": is_test(f"g{i}") for i in range(20_000)}
    assert np.mean(list(sides.values())) == pytest.approx(TEST_SHARE, abs=0.01)
    assert all(is_test(name) == side for name, side in sides.items())
    assert all(is_test(name, 0.2) for name, side in sides.items() if side)  # a larger share only adds


def test_positions_are_uniform() -> None:
    values = np.array([unit_interval(f"user-{i}") for i in range(20_000)])
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 43.8  # the .999 quantile with 19 degrees of freedom


def test_a_query_without_a_group_is_its_own() -> None:
    assert group_of(Query("q1", "x", group="g")) == "g"
    assert group_of(Query("q1", "x")) == group_of(Query("q1", "y")) != group_of(Query("q2", "x"))
