"""The measures against hand calculation and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from training.measuring.metrics import (
    Curve,
    aiq,
    apgr,
    auc,
    brier,
    cost_to_reach,
    cpt,
    ece,
    hull,
    latency_report,
    mean_height,
    over_and_under,
    sweep,
    sweep_choices,
)

# Two models, four queries: the weak one costs 1, the strong one 3.
SUCCESS = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
COST = np.tile([1.0, 3.0], (4, 1))


def test_hull_is_concave_and_never_falls() -> None:
    line = hull(Curve(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.2, 0.3, 0.8, 0.5])), 1.0, 4.0)
    assert line.cost.tolist() == [
        1.0,
        3.0,
        4.0,
    ]  # the second point lies under the chord, the last is worse than the third
    assert line.quality.tolist() == pytest.approx([0.2, 0.8, 0.8])
    assert mean_height(line) == pytest.approx((2 * 0.5 + 0.8) / 3)


def test_normalised_aiq_by_hand() -> None:
    # Line: (1, .25) to (3, .75), mean .5. Oracle: .25 at 1, .75 at 2 (strong only where it helps), flat to 3: .625.
    perfect = aiq(sweep(SUCCESS, COST, SUCCESS, COST), SUCCESS, COST)
    assert perfect.raw == pytest.approx(0.625)
    assert perfect.normalised == pytest.approx(1.0)
    assert perfect.static == pytest.approx(0.0)
    blind = aiq(sweep(np.tile([0.25, 0.75], (4, 1)), COST, SUCCESS, COST), SUCCESS, COST)
    assert blind.normalised == pytest.approx(0.0)


def test_aiq_without_room_is_unknown() -> None:
    same = np.ones((3, 2))
    assert np.isnan(aiq(sweep(same, COST[:3], same, COST[:3]), same, COST[:3]).normalised)


def test_unmeasured_models_are_never_chosen() -> None:
    success = np.array([[0.0, np.nan], [np.nan, 1.0]])
    swept = sweep_choices(np.array([[0.1, 0.9], [0.9, 0.1]]), COST[:2], success, COST[:2])
    assert (swept.quality == np.array([0.0, 1.0])).all()


def test_apgr_of_a_perfect_and_a_random_ranking() -> None:
    weak, strong = SUCCESS[:, 0], SUCCESS[:, 1]
    shares = np.linspace(0, 1, 11)
    # with the two gaining queries first, the recovered gap at share s is 0, 1/2 or 1, rounded to whole queries
    recovered = [[0, 0.5, 1, 1, 1][round(4 * s)] for s in shares]
    assert apgr(strong - weak, strong, weak) == pytest.approx(np.trapezoid(recovered, shares))
    rng = np.random.default_rng(0)
    gain = (rng.random(20_000) < 0.3).astype(float)
    assert apgr(rng.random(20_000), gain, np.zeros(20_000)) == pytest.approx(0.5, abs=0.01)


def test_cpt_counts_the_strong_calls_needed() -> None:
    weak, strong = SUCCESS[:, 0], SUCCESS[:, 1]
    assert cpt(strong - weak, strong, weak, 0.5) == pytest.approx(1 / 4)
    assert cpt(strong - weak, strong, weak, 0.8) == pytest.approx(2 / 4)
    assert np.isnan(cpt(weak, weak, weak, 0.5))


def test_ece_by_hand() -> None:
    p, y = np.array([0.15, 0.15, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert ece(p, y) == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


@given(st.integers(0, 10_000))
def test_auc_and_brier_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.round(rng.random(40), 1)  # with ties
    outcome = (rng.random(40) < 0.2 + 0.6 * score).astype(float)
    outcome[:2] = 0.0, 1.0
    assert auc(score, outcome) == pytest.approx(roc_auc_score(outcome, score))
    assert brier(score, outcome) == pytest.approx(brier_score_loss(outcome, score))


def test_cost_to_reach_interpolates_and_knows_its_limit() -> None:
    curve = Curve(np.array([1.0, 3.0]), np.array([0.4, 0.8]))
    assert cost_to_reach(curve, 0.6) == pytest.approx(2.0)
    assert np.isnan(cost_to_reach(curve, 0.9))


def test_latency_report_of_a_known_case() -> None:
    latency = np.array([1.0, 2.0, 4.0, 8.0])
    quantiles = np.column_stack((latency, latency * 2, latency * 3))
    exact = latency_report(quantiles, latency, 3.0)
    assert exact["mae_ratio"] == pytest.approx(0.0)
    assert exact["r2_log"] == pytest.approx(1.0)
    assert exact["coverage_p95"] == 1.0
    constant = latency_report(np.full((4, 3), 3.0), latency, 3.0)
    assert constant["mae_ratio"] == pytest.approx(1.0)
    assert constant["coverage_p90"] == 0.5


def test_over_and_under_routing_are_told_apart() -> None:
    assert over_and_under(np.array([1, 1, 1, 1]), SUCCESS, COST) == (0.25, 0.0)  # the first was easy
    assert over_and_under(np.array([0, 0, 0, 0]), SUCCESS, COST) == (0.0, 0.5)
