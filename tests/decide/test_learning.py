"""A router counts judged answers at once, and a model that nobody measured does not win by an optimistic prior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from router_ml.decide.selection.policy import Policy

FAST, BALANCED, ACCURATE = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
PATIENT = Policy("patient", latency_weight_per_s=0.0, latency_budget_s=None)
Maker = Callable[..., Any]


def sources(decision: Any) -> dict[str, str]:
    return {candidate.model: candidate.source for candidate in decision.ranked}


def test_every_candidate_has_a_source_and_an_interval_around_its_chance(router_that_says: Maker) -> None:
    decision = router_that_says("moderate").decide("x")
    assert set(sources(decision).values()) == {"prior"}
    for candidate in decision.ranked:
        low, high = candidate.p_interval
        assert 0 < low < candidate.p_success < high < 1


def test_outcomes_turn_a_prior_into_a_learned_chance(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    before = router.decide("x", policy=PATIENT)
    router.learn([(before, BALANCED, 0.0)] * 12 + [(before, FAST, 1.0)] * 12 + [(before, "unheard of", 1.0)])
    after = router.decide("x", policy=PATIENT)
    assert sources(after) == {FAST: "learned", BALANCED: "learned", ACCURATE: "prior"}
    assert router.learned == {FAST, BALANCED}
    chance = {candidate.model: candidate.p_success for candidate in after.ranked}
    assert chance[FAST] > 0.7 > 0.5 > chance[BALANCED]


def test_an_unmeasured_model_counts_by_the_lower_end_of_its_interval(router_that_says: Maker) -> None:
    """By its prior the accurate model is better than the one that was right in 38 of 40 cases; nobody measured it."""
    router = router_that_says("complex")
    first = router.decide("x", policy=PATIENT)
    assert first.model == ACCURATE
    router.learn([(first, FAST, float(i % 20 > 0)) for i in range(40)])
    after = router.decide("x", policy=PATIENT)
    assert after.model == FAST
    unmeasured = next(c for c in after.ranked if c.model == ACCURATE)
    assert unmeasured.utility == pytest.approx(unmeasured.p_interval[0])
    assert after.candidate.utility == pytest.approx(after.candidate.p_success)


def test_abilities_are_handed_over_to_another_router(router_that_says: Maker) -> None:
    one, other = router_that_says("simple"), router_that_says("simple")
    one.learn([(one.decide("x"), FAST, 0.0)] * 10)
    other.abilities = one.abilities
    assert other.decide("x").ranked[0].p_success == one.decide("x").ranked[0].p_success
    assert other.learned == {FAST}
