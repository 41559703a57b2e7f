"""What exploration is said to have cost."""

from __future__ import annotations

import random

import pytest

from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.events.event import DecisionEvent, OutcomeEvent, decision_event
from router_ml.events.exploration import exploration_cost
from router_ml.types import Candidate, Context, Decision, Quantiles
from tests.decide.selection.test_exploration import MODELS


def _candidate(model: str, utility: float, p50: float) -> Candidate:
    return Candidate(model, 0.5, Quantiles(p50, p50, p50), 0.0, utility)


BEST, OTHER = _candidate("best", 0.8, 1.0), _candidate("other", 0.7, 4.0)


def _event(*candidates: Candidate, propensity: float, pinned: bool = False) -> DecisionEvent:
    return DecisionEvent("d", candidates[0].model, "simple", "p", "b", propensity, candidates=candidates, pinned=pinned)


def test_cost_is_the_utility_and_the_seconds_given_up_per_thousand() -> None:
    """By hand: 1 of 4 decisions explored, .1 of utility and 3 s worse: 25 and 750 per 1,000."""
    events = [
        _event(BEST, OTHER, propensity=0.95),
        _event(OTHER, BEST, propensity=0.05),
        _event(OTHER, BEST, propensity=0.95),  # the default model, held for an unfamiliar query
        _event(OTHER, BEST, propensity=1.0),  # held by its session
        _event(OTHER, BEST, propensity=0.05, pinned=True),
        OutcomeEvent("d", "best", 1.0, 1.0),
    ]
    found = exploration_cost(events)
    assert (found.decisions, found.explored, found.share) == (4, 1, 0.25)
    assert found.utility_lost_per_1000 == pytest.approx(25)
    assert found.added_s_per_1000 == pytest.approx(750)


def test_nothing_recorded_costs_nothing() -> None:
    assert exploration_cost([]).utility_lost_per_1000 == 0


def test_the_share_of_a_real_selector_is_found_again() -> None:
    forecast = Forecast([0.9, 0.89, 0.7, 0.5], [(1.0, 2.0, 3.0)] * 4, [100.0] * 4, [0.0] * 4)
    selector, draw, explored, events = Selector(MODELS), random.Random(3).random, 0, []
    for _ in range(2000):
        found = selector.select(forecast, Context(), Policy("p", exploration=0.2), draw=draw)
        explored += "explored" in found.reason
        made = Decision(
            found.ranked[0].model, "simple", {}, found.ranked, "answer", "", "d", "p", "b", found.propensity
        )
        events.append(decision_event(made))
    assert exploration_cost(events).explored == explored > 200
