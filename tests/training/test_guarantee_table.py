"""The losses that a fit counts for the bound of a policy."""

from __future__ import annotations

import numpy as np

from training.outcomes.guarantee_table import guarantee_table

COST = np.tile([1.0, 4.0], (4, 1))
GAP = np.array([-0.1, 0.0, 0.2, 0.4])  # of the cheap model's prediction below that of the expensive one
P = np.column_stack((0.6 - GAP, np.full(4, 0.6)))
SUCCESS = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 1.0]])


def test_each_margin_counts_the_losses_of_the_rows_it_moves() -> None:
    table = guarantee_table(P, SUCCESS, COST, np.arange(4), reference=1)
    assert table is not None
    last = np.array(table["counts"][-1])
    assert (last[0], last[10], last[15], last[20]) == (1, 1, 1, 1)  # losses -1, 0, 0.5 and 1
    first = np.array(table["counts"][0])
    assert (first[0], first[10], first.sum()) == (1, 3, 4)
    assert (table["moved"][0], table["moved"][-1]) == (0.25, 1.0)
    assert table["relative_cost"][-1] == 0.25


def test_rows_of_one_group_are_one_loss() -> None:
    table = guarantee_table(P, SUCCESS, COST, np.array([0, 0, 1, 1]), reference=1)
    assert table is not None
    last = np.array(table["counts"][-1])
    assert last.sum() == 2
    assert (last[5], last[18]) == (1, 1)  # means -0.5 and 0.75, rounded up to 0.8


def test_a_best_model_that_is_the_cheapest_has_no_table() -> None:
    assert guarantee_table(P, SUCCESS, COST, np.arange(4), reference=0) is None
