"""Exploration: whom it goes to, how often, what it can cost, and that the logged propensity is the true one."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.catalogue import model_from
from router_ml.decide.selection.exploration import drawn, propensities, share_after
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selection, Selector
from router_ml.types import Candidate, Context, Quantiles

MODELS = tuple(
    model_from({"name": name, "prior": {"latency_s": 1.0, "success": 0.5}}, "test") for name in ("a", "b", "c", "d")
)
QUICK = (1.0, 1.5, 2.0)
SLOW = (8.0, 9.0, 10.0)  # over the budget of 5 s


def _candidates(*utilities: float) -> list[Candidate]:
    return [Candidate(str(i), 0.5, Quantiles(*QUICK), 0.0, utility) for i, utility in enumerate(utilities)]


_UTILITIES = st.lists(st.floats(-3, 3), min_size=2, max_size=6).map(lambda values: sorted(values, reverse=True))


@given(_UTILITIES, st.floats(0.001, 1), st.none() | st.floats(1e-3, 1))
def test_propensities_are_a_distribution_that_costs_no_more_than_it_may(
    utilities: list[float], share: float, gap: float | None
) -> None:
    chances = propensities(_candidates(*utilities), share, gap)
    assert sum(chances) == pytest.approx(1.0)
    assert min(chances) > 0
    assert sum(chances[1:]) <= share + 1e-12
    assert max(chances) == pytest.approx(chances[0])
    if gap is not None:
        loss = sum(p * (utilities[0] - u) for p, u in zip(chances, utilities, strict=True))
        assert loss <= share * gap * (len(utilities) - 1) + 1e-12
        assert chances[1:] == sorted(chances[1:], reverse=True)


def test_a_candidate_that_loses_the_gap_is_tried_half_as_often_as_an_equal_one() -> None:
    """By hand: weights 1, 1/2 and 1/5 for losses of 0, .02 and .08 share 17 % as 10 %, 5 % and 2 %."""
    assert propensities(_candidates(0.9, 0.9, 0.88, 0.82), 0.17, 0.02) == pytest.approx([0.83, 0.10, 0.05, 0.02])


def test_without_a_gap_all_get_equal_parts_the_first_included() -> None:
    assert propensities(_candidates(0.9, 0.5, 0.1, 0.0), 0.4, None) == pytest.approx([0.7, 0.1, 0.1, 0.1])


@pytest.mark.parametrize("gap", [None, 0.02, 0.1])
def test_each_is_drawn_as_often_as_its_propensity_says(gap: float | None) -> None:
    chances = propensities(_candidates(0.9, 0.89, 0.8, 0.5), 0.3, gap)
    rng, n = random.Random(7), 200_000
    counts = Counter(drawn(chances, 0.3, rng.random) for _ in range(n))
    for index, chance in enumerate(chances):
        assert counts[index] / n == pytest.approx(chance, abs=5 * math.sqrt(chance / n))


def _select(seed: int, policy: Policy, outcomes: float = 0.0) -> Selection:
    forecast = Forecast([0.90, 0.89, 0.85, 0.99], [QUICK, QUICK, QUICK, SLOW], [math.nan] * 4, [0.0] * 4)
    return Selector(MODELS, outcomes=outcomes).select(forecast, Context(), policy, draw=random.Random(seed).random)


def test_the_logged_propensity_is_recomputed_from_the_seed_and_none_is_outside_the_limits() -> None:
    """By hand: losses of .01 and .05 weigh 2/3 and 2/7; they add up to less than one, so each gets .2 of that."""
    chances = {"a": 1 - 0.2 * (2 / 3 + 2 / 7), "b": 0.2 * 2 / 3, "c": 0.2 * 2 / 7}
    seen = Counter()
    for seed in range(3000):
        selection = _select(seed, Policy("curious", exploration=0.2, exploration_gap=0.02))
        chosen = selection.ranked[0].model
        rng = random.Random(seed)
        expected = "a"
        if rng.random() < 0.2:
            point = 0.2 * rng.random() - (0.2 - chances["b"] - chances["c"])
            expected = "a" if point < 0 else "b" if point < chances["b"] else "c"
        assert chosen == expected
        assert selection.propensity == pytest.approx(chances[chosen])
        assert ("explored" in selection.reason) == (chosen != "a")
        seen[chosen] += 1
    assert seen["d"] == 0
    for model, chance in chances.items():
        assert seen[model] / 3000 == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize(("outcomes", "share"), [(0, 0.10), (1000, 0.05), (2000, 0.025), (9000, 0.02)])
def test_the_share_halves_with_the_outcomes_learned_from_down_to_the_floor(outcomes: float, share: float) -> None:
    assert share_after(0.10, 0.02, 1000, outcomes) == pytest.approx(share)
    assert share_after(0.10, 0.02, None, outcomes) == 0.10
    policy = Policy("fading", exploration=0.10, exploration_gap=0.02, exploration_half_life_outcomes=1000)
    first = 1 - share * (2 / 3 + 2 / 7)
    assert first in [pytest.approx(_select(seed, policy, outcomes).propensity) for seed in range(5)]


def test_a_share_below_the_floor_stays_as_it_is() -> None:
    assert share_after(0.01, 0.02, 1000, 5000) == 0.01
