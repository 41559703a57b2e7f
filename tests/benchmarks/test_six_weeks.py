"""The simulation of six weeks: its truth, its figures, and the bars that the router must keep."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.offpolicy_worlds import World, _chances
from benchmarks.six_weeks import DAYS, PARTS_OF_DAY, PER_DAY, WORSE, SixWeeks, _longest, traffic
from router_ml.decide.selection.exploration import propensities
from router_ml.types import Candidate, Quantiles


def test_a_model_gets_worse_and_a_new_one_arrives() -> None:
    found = traffic(np.random.default_rng(0))
    medium = found.success[:, 1].reshape(DAYS, PER_DAY).mean(axis=1)
    assert medium[:WORSE].mean() - medium[WORSE : WORSE + 10].mean() > 0.05
    assert np.isinf(found.utility[0, 3])
    assert np.isfinite(found.utility[-1, 3])


def test_the_longest_time_below_is_counted_in_quarters_of_a_day() -> None:
    difference = np.zeros((DAYS * PARTS_OF_DAY, 3))
    difference[5:11] = -0.006
    difference[20:22] = -0.1
    difference[30:40] = -0.004
    assert _longest(difference.ravel()) == 6 / PARTS_OF_DAY


@pytest.mark.parametrize("gap", [None, 0.05])
def test_simulated_logs_explore_as_the_selector_does(gap: float | None) -> None:
    utilities = np.array([[0.7, 0.65, 0.72], [0.5, 0.5, 0.1]])
    order = np.argsort(-utilities, axis=1, kind="stable")
    found = _chances(utilities, order, World("w", exploration=0.1, gap=gap))
    for row, own, places in zip(found, utilities, order, strict=True):
        ranked = [Candidate("m", 0.5, Quantiles(1, 1, 1), 0.0, own[place]) for place in places]
        assert row[places] == pytest.approx(propensities(ranked, 0.1, gap))


@pytest.mark.slow
def test_the_router_keeps_its_bars_through_all_changes() -> None:
    found = SixWeeks(seed=1).run(progress=False)
    assert found["below_oracle_last_week"] < 1.0
    assert found["days_below_static"] <= 1.0
    assert found["explored_last_week"] <= 0.02 < found["explored_first_week"]
