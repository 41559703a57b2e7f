"""The order of the chain, time limits, stickiness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.catalogue import load_catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import GatewayOptions
from router_ml.serve.demand import Demand
from router_ml.serve.order import (
    attempt_timeout_s,
    chain,
    outage_wait_s,
    pin,
    plain_decision,
    restrict,
    shifted,
    stick,
    unexplored,
)
from router_ml.types import Context, Decision, Quantiles
from tests.serve.deciders import FixedDecider

NAMES = ModelNames(load_catalogue())
OPTIONS = GatewayOptions(attempt_factor=3.0, attempt_min_s=2.0, cold_load_s=60.0)
FAST, SLOW = Quantiles(2.0, 2.5, 3.0), Quantiles(10.0, 15.0, 20.0)


def test_the_last_resort_comes_last_and_only_once() -> None:
    decision = FixedDecider("llama3.2:3b-instruct", "qwen2.5:3b-instruct").decide("x")
    assert chain(decision, "qwen3", NAMES) == ("llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b")
    assert chain(decision, "llama3.2", NAMES) == ("llama3.2:3b-instruct", "qwen2.5:3b-instruct")
    assert chain(decision, None, NAMES) == ("llama3.2:3b-instruct", "qwen2.5:3b-instruct")


def test_a_warm_model_gets_three_times_its_p95() -> None:
    assert attempt_timeout_s(FAST, True, None, 120.0, [SLOW], OPTIONS) == pytest.approx(9.0)


def test_a_cold_model_gets_its_load_on_top() -> None:
    assert attempt_timeout_s(FAST, False, 10.0, 120.0, [FAST], OPTIONS) == pytest.approx(9.0 + 20.0)
    assert attempt_timeout_s(FAST, None, None, 120.0, [FAST], OPTIONS) == pytest.approx(9.0 + 60.0)


def test_after_short_answers_a_long_one_still_has_its_time() -> None:
    quick = Quantiles(0.1, 0.2, 0.25)  # what a few words take at 100 tokens/s
    default = GatewayOptions()
    assert attempt_timeout_s(quick, True, None, 120.0, [SLOW], default) == pytest.approx(10.0)
    # 1,000 tokens at 40 tokens/s
    assert attempt_timeout_s(quick, True, None, 120.0, [SLOW], default, decode_tokens_per_s=40.0) == pytest.approx(25.0)
    # the fallback's time is kept all the same: half of what is left
    assert attempt_timeout_s(quick, True, None, 20.0, [SLOW], default, decode_tokens_per_s=40.0) == pytest.approx(10.0)


def test_a_probe_after_failures_is_given_no_time_for_a_long_answer() -> None:
    limit_s = attempt_timeout_s(FAST, True, None, 119.0, [SLOW], OPTIONS, probe=True, decode_tokens_per_s=5.0)
    assert limit_s == pytest.approx(9.0)


def test_the_last_model_may_use_all_that_is_left_unless_it_is_a_probe() -> None:
    assert attempt_timeout_s(FAST, True, None, 50.0, [], OPTIONS) == 50.0
    assert attempt_timeout_s(FAST, True, None, 50.0, [], OPTIONS, probe=True) == pytest.approx(9.0)


@given(
    st.floats(0.01, 100.0),
    st.sampled_from([True, False, None]),
    st.one_of(st.none(), st.floats(0.1, 60.0)),
    st.lists(st.sampled_from([FAST, SLOW, None]), min_size=1, max_size=4),
)
def test_time_is_reserved_for_those_who_could_finish_in_it(
    remaining_s: float, resident: bool | None, load_s: float | None, later: list[Quantiles | None]
) -> None:
    timeout_s = attempt_timeout_s(SLOW, resident, load_s, remaining_s, later, OPTIONS)
    needed_s = SLOW.p95 + (load_s or 0.0 if resident is not True else 0.0)
    fastest_s = min((q.p50 for q in later if q is not None), default=0.0)
    assert remaining_s / 2 <= timeout_s <= remaining_s or timeout_s >= 3.0 * SLOW.p95
    if timeout_s < needed_s:  # the first is not cut short for the sake of another ...
        assert timeout_s == remaining_s
    elif fastest_s <= remaining_s / 2 and remaining_s >= 2 * needed_s:  # ... but shares where both could finish
        assert timeout_s < remaining_s


def test_no_time_is_reserved_for_a_fallback_that_could_not_finish_in_it() -> None:
    loading = shifted(FAST, 60.0)
    assert attempt_timeout_s(FAST, False, 4.0, 8.4, [loading], OPTIONS) == pytest.approx(8.4)  # 1.2 times 7 s
    assert attempt_timeout_s(FAST, True, None, 3.6, [FAST], OPTIONS) == pytest.approx(3.6)  # it needs 3 s itself


@pytest.mark.parametrize(
    ("down_s", "seen_up", "total_s", "left_s", "wait_s"),
    [
        (0.0, True, 30.0, 30.0, 30.0),
        (4.0, True, 30.0, 29.0, 26.0),
        (0.0, True, 120.0, 120.0, 30.0),  # never longer than half a minute
        (0.0, True, 30.0, 2.0, 2.0),  # nor than the deadline
        (60.0, True, 30.0, 30.0, 0.0),
        (0.0, False, 120.0, 120.0, 2.0),  # a host that was never there
    ],
)
def test_a_host_that_went_away_is_waited_for_while_it_may_be_restarting(
    down_s: float, seen_up: bool, total_s: float, left_s: float, wait_s: float
) -> None:
    assert outage_wait_s(down_s, seen_up, total_s, left_s) == pytest.approx(wait_s)


def test_a_policys_list_of_models_holds_for_the_last_resort_too() -> None:
    decision = FixedDecider("llama3.2:3b-instruct", "qwen2.5:3b-instruct").decide("x")
    allowed = ("llama3.2:3b-instruct",)
    assert chain(decision, "qwen3:8b", NAMES, allowed) == allowed
    assert [c.model for c in restrict(decision, allowed, NAMES).ranked] == ["llama3.2:3b-instruct"]
    only = restrict(decision, ("qwen3:8b",), NAMES)
    assert (only.model, [c.model for c in only.ranked]) == ("qwen3:8b", ["qwen3:8b"])


def test_a_name_that_a_client_makes_up_changes_nothing_but_the_reason() -> None:
    decision = FixedDecider("llama3.2:3b-instruct").decide("x")
    pinned = pin(decision, "made-up", NAMES, unknown=True)
    assert (pinned.model, pinned.ranked) == (decision.model, decision.ranked)
    assert "'made-up'" in pinned.reason


def test_a_session_stays_where_leaving_gains_little() -> None:
    decision = FixedDecider("llama3.2:3b-instruct", "qwen3:8b", utilities=[0.80, 0.77]).decide("x")
    kept = stick(decision, "qwen3", 0.05, NAMES)
    assert kept.model == "qwen3:8b"
    assert [c.model for c in kept.ranked] == ["qwen3:8b", "llama3.2:3b-instruct"]
    assert "stays with qwen3:8b" in kept.reason
    assert stick(decision, "qwen3", 0.02, NAMES) is decision  # 0.03 gained is more than the margin
    assert stick(decision, "qwen3", None, NAMES) is decision
    assert stick(decision, "unknown", 0.05, NAMES) is decision


def test_a_named_model_goes_first_and_the_rest_remain_its_fallbacks() -> None:
    decision = FixedDecider("llama3.2:3b-instruct", "qwen3:8b").decide("x")
    assert [c.model for c in pin(decision, "qwen3", NAMES).ranked] == ["qwen3:8b", "llama3.2:3b-instruct"]
    assert pin(decision, "mistral", NAMES).model == "mistral"


def test_without_a_router_the_balanced_model_goes_first() -> None:
    decision = plain_decision(load_catalogue(), "balanced", "broken")
    assert [c.model for c in decision.ranked] == ["qwen2.5:3b-instruct", "llama3.2:3b-instruct", "qwen3:8b"]
    assert decision.degraded
    assert decision.candidate.latency_s.p50 < decision.candidate.latency_s.p90 < decision.candidate.latency_s.p95


def test_the_cold_model_most_wanted_is_loaded_ahead() -> None:
    demand = Demand()
    for model in ["a"] * 10 + ["b"] * 6:
        demand.chose(model)
    assert demand.next_to_load({"a": True, "b": False}) == "b"
    assert demand.next_to_load({"a": True, "b": True}) is None
    assert demand.next_to_load({"a": True, "c": False}) is None  # nobody asks for c
    for _ in range(20):
        demand.chose("a")
    assert demand.next_to_load({"a": True, "b": False}) is None  # wanted too seldom by now


FORECAST = Forecast([0.80, 0.84, 0.90], [(1, 2, 3), (2, 3, 4), (3, 4, 4.9)], [100] * 3, [0.0] * 3)
EXPLORING = Policy("exploring", exploration=0.2, exploration_gap=None, latency_weight_per_s=0.02)


def draws() -> Iterator[tuple[float, list[float]]]:
    """Yield every case of two uniform draws, with its probability, for an exploration of .2 among three models."""
    yield 0.8, [0.5]
    for index in range(3):
        yield 0.2 / 3, [0.1, (index + 0.5) / 3]


@pytest.mark.parametrize(
    ("chosen", "models"),
    [
        (lambda decision, names: decision, 3),
        (lambda decision, names: stick(decision, names[1], 0.05, NAMES), 1),
        (lambda decision, names: stick(decision, names[0], 0.001, NAMES), 3),
        (lambda decision, names: pin(decision, names[2], NAMES), 1),
        (lambda decision, names: pin(decision, names[0], NAMES), 1),
    ],
    ids=["explored", "held", "left", "pinned to the best", "pinned to another"],
)
def test_logged_propensities_are_the_true_ones(
    chosen: Callable[[Decision, Sequence[str]], Decision], models: int
) -> None:
    """The share-weighted inverse of the logged propensity of each model is 1."""
    catalogue = load_catalogue(None)
    selector, names = Selector(catalogue.models), [model.name for model in catalogue.models]
    total: Counter[str] = Counter()
    for probability, values in draws():
        found = selector.select(FORECAST, Context(), EXPLORING, draw=iter(values).__next__)
        made = Decision(
            found.ranked[0].model, "simple", {}, found.ranked, "answer", "", "id", "p", "b", found.propensity
        )
        decision = chosen(made, names)
        total[decision.model] += probability / decision.propensity
    assert list(total.values()) == [pytest.approx(1.0)] * models


def test_a_turn_drawn_for_before_keeps_its_arm_or_takes_the_best() -> None:
    catalogue = load_catalogue(None)
    names = [model.name for model in catalogue.models]
    found = Selector(catalogue.models).select(FORECAST, Context(), EXPLORING, draw=iter([0.1, 0.5]).__next__)
    made = Decision(found.ranked[0].model, "simple", {}, found.ranked, "answer", "", "id", "p", "b", found.propensity)
    kept, best = unexplored(made, (names[0], None), NAMES), unexplored(made, ("gone", None), NAMES)
    assert (kept.model, kept.propensity) == (names[0], 1.0)
    assert (best.model, best.propensity) == (names[2], 1.0)  # .90 - .02 * 3 s is the highest utility
    assert unexplored(best, (names[0], None), NAMES) is best
