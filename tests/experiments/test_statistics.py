"""The boundaries have the values of their sources, and no test raises more false alarms than it may."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.experiments.statistics import (
    BETS,
    Floats,
    benefit_growth,
    harm_growth,
    log_e,
    log_growth,
    one_sided_boundary,
    one_sided_rho,
    split_log_e,
    width_in_errors,
)


def test_normal_mixtures_have_the_values_of_the_reference_implementation() -> None:
    # Printed by the authors' package `confseq`: v = 100, alpha = .05, v_opt = 100, alpha_opt = .05.
    assert one_sided_boundary(100, 0.05, one_sided_rho(100, 0.05)) == pytest.approx(27.66071, abs=1e-5)


def test_a_sequence_is_wider_than_a_single_test_and_tightest_where_planned() -> None:
    widths = {n: width_in_errors(n, 0.025, 1000) for n in (20, 200, 1000, 5000, 100_000)}
    assert min(widths, key=widths.__getitem__) == 1000
    assert all(width > 1.96 for width in widths.values())


def test_ten_of_ten_with_a_flat_prior_has_the_hand_calculated_value() -> None:
    # B(11, 1) / B(1, 1) * 2**10 = 1024 / 11.
    assert math.exp(split_log_e(10, 10, prior=1.0)) == pytest.approx(1024 / 11)
    assert split_log_e(0, 0) == 0.0


@given(st.integers(1, 12), st.floats(0.3, 80))
def test_the_split_test_is_one_on_average_under_a_fair_coin(n: int, prior: float) -> None:
    mean = sum(math.comb(n, k) / 2**n * math.exp(split_log_e(k, n, prior)) for k in range(n + 1))
    assert mean == pytest.approx(1.0)


@pytest.mark.parametrize(("mean", "null"), [(0.1, 0.1), (0.3, 0.3), (0.02, 0.05), (0.5, 0.7)])
def test_a_bet_on_a_share_gains_nothing_on_average_where_the_null_holds(mean: float, null: float) -> None:
    grown = np.exp(log_growth(np.array([0.0, 1.0]), null, 0.0))
    average = (1 - mean) * grown[0] + mean * grown[1]
    assert np.all(average <= 1 + 1e-12)
    assert np.all(grown > 0)


@given(st.floats(0.01, 0.9), st.floats(0.0, 0.09), st.floats(0.0, 0.2))
def test_comparing_arms_gains_nothing_on_average_where_the_null_holds(
    control: float, drop: float, slack: float
) -> None:
    """Every outcome of one pair of units is enumerated, each with its arm's own chance."""

    def average(p_control: float, p_challenger: float, growth: Callable[..., Floats], shift: float) -> Floats:
        total = np.zeros(len(BETS))
        for x, y in itertools.product((0.0, 1.0), repeat=2):
            weight = (p_control if x else 1 - p_control) * (p_challenger if y else 1 - p_challenger)
            total += weight * np.exp(growth(np.array(y - x), shift))
        return total

    assert np.all(average(control, max(control - slack, 0), harm_growth, drop) <= 1 + 1e-12)
    assert np.all(average(control, control + drop, harm_growth, drop) <= 1 + 1e-12)
    assert np.all(average(control, control + drop, benefit_growth, drop) <= 1 + 1e-12)


def test_the_e_value_is_the_mean_over_the_bets() -> None:
    values = np.arange(1.0, len(BETS) + 1)
    assert float(np.exp(log_e(np.log(values)))) == pytest.approx(values.mean())


def test_a_harm_of_five_points_is_found_and_no_harm_is_not() -> None:
    generator = np.random.default_rng(5)

    def reached(p_control: float, p_challenger: float) -> float:
        x, y = (generator.random((200, 3000)) < p for p in (p_control, p_challenger))
        path = log_e(np.cumsum(harm_growth(y.astype(float) - x, 0.0), axis=1))
        return float((path.max(axis=1) >= math.log(1 / 0.05)).mean())

    assert reached(0.10, 0.15) > 0.98
    # 200 runs at a true rate of .05 exceed .11 with probability 1e-4.
    assert reached(0.10, 0.10) < 0.11
