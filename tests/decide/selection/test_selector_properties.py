"""What holds for every choice whatever the predictions, limits and state of the machine."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.arm import arm_key
from router_ml.catalogue import catalogue_from, model_from
from router_ml.decide.selection.limits import demands, unable
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selection, Selector
from router_ml.types import Context, MachineState, ModelState, Think

MODELS = tuple(
    model_from({"name": name, "prior": {"latency_s": 1.0, "success": 0.5}, **extra}, "test")
    for name, extra in (
        ("a", {"capabilities": []}),
        ("b", {"capabilities": ["tools"], "context_window_tokens": 4000}),
        ("c", {"capabilities": ["tools", "vision"]}),
        ("d", {}),
    )
)
_UNKNOWN = st.just(math.nan)
_SHARE = st.floats(0, 1)
_SECONDS = st.floats(0, 100)


@st.composite
def _forecasts(draw: Any) -> Forecast:
    latency = []
    for _ in MODELS:
        p50 = draw(_SECONDS | _UNKNOWN)
        latency.append((p50, p50 * 1.5, p50 * 2))
    return Forecast(
        [draw(_SHARE) for _ in MODELS],
        latency,
        [draw(st.floats(1, 1000) | _UNKNOWN) for _ in MODELS],
        [draw(st.floats(0, 1)) for _ in MODELS],
    )


_POLICIES = st.builds(
    Policy,
    st.just("any"),
    success_weight=st.floats(0, 10),
    latency_weight_per_s=st.floats(0, 1),
    cost_weight_per_usd=st.floats(0, 100),
    latency_budget_s=st.none() | st.floats(0, 100),
    min_p_success=_SHARE,
    max_cost_usd=st.none() | _SHARE,
    exploration=st.just(0.0) | st.floats(0.001, 1),
    exploration_gap=st.none() | st.floats(0.001, 1),
    models=st.none()
    | st.lists(st.sampled_from("abcdz"), min_size=1, max_size=3).filter(lambda names: set(names) != {"z"}).map(tuple),
)
_CONTEXTS = st.builds(
    Context,
    n_tools=st.integers(0, 2),
    attachment_kind=st.sampled_from(["", "image", "audio"]),
    prompt_tokens=st.none() | st.integers(0, 9000),
    latency_budget_s=st.none() | st.floats(0.01, 100),
)
_STATES = st.builds(
    ModelState,
    available=st.booleans(),
    resident=st.none() | st.booleans(),
    queue_s=st.floats(0, 50),
    load_s=st.none() | st.floats(0, 50),
    prompt_tokens_per_s=st.none() | st.floats(0, 5000),
    decode_tokens_per_s=st.none() | st.floats(0, 500),
    recent_success=st.none() | _SHARE,
    recent_calls=st.integers(0, 1000),
)
_MACHINES = st.none() | st.dictionaries(st.sampled_from("abcdz"), _STATES).map(MachineState)
_DRAWS = st.floats(0, 1, exclude_max=True)


def _select(
    forecast: Forecast, context: Context, policy: Policy, machine: MachineState | None, draw: float | None = None
) -> Selection:
    return Selector(MODELS).select(
        forecast, context, policy, machine=machine, draw=None if draw is None else (lambda: draw)
    )


@given(_forecasts(), _CONTEXTS, _POLICIES, _MACHINES, _DRAWS)
def test_ranked_and_excluded_hold_every_model_once(
    forecast: Forecast, context: Context, policy: Policy, machine: MachineState | None, draw: float
) -> None:
    selection = _select(forecast, context, policy, machine, draw)
    ranked = [candidate.model for candidate in selection.ranked]
    assert len(set(ranked)) == len(ranked) > 0
    if len(selection.excluded) < len(MODELS):
        assert sorted([*ranked, *selection.excluded]) == ["a", "b", "c", "d"]
    else:
        assert sorted(ranked) == [model.name for model in MODELS if policy.allows(model)]
    assert selection.reason
    assert 0 < selection.propensity <= 1


@given(_forecasts(), _CONTEXTS, _POLICIES, _MACHINES)
def test_the_chain_falls_in_utility_and_the_limits_hold(
    forecast: Forecast, context: Context, policy: Policy, machine: MachineState | None
) -> None:
    selection = _select(forecast, context, policy, machine)
    inside = [c for c in selection.ranked if c.admissible]
    outside = [c for c in selection.ranked if not c.admissible]
    assert [c.utility for c in inside] == sorted((c.utility for c in inside), reverse=True)
    if inside:
        assert selection.ranked[: len(inside)] == tuple(inside)
        assert [c.utility for c in outside] == sorted((c.utility for c in outside), reverse=True)
        assert not selection.relaxed
    budgets = [b for b in (policy.latency_budget_s, context.latency_budget_s) if b is not None]
    for candidate in inside:
        assert not any(candidate.warm_p95_s > budget for budget in budgets)
        waits = [w for w in (policy.load_wait_s, context.latency_budget_s) if w is not None]
        assert not any(candidate.load_s > wait for wait in waits)
        assert candidate.p_success >= policy.min_p_success
        assert policy.max_cost_usd is None or candidate.cost_usd <= policy.max_cost_usd
    for candidate in outside:
        assert candidate.reasons


@given(_forecasts(), _CONTEXTS, _POLICIES, _MACHINES)
def test_live_figures_never_flatter_and_quantiles_never_cross(
    forecast: Forecast, context: Context, policy: Policy, machine: MachineState | None
) -> None:
    predicted = dict(zip("abcd", forecast.p_success, strict=True))
    for candidate in _select(forecast, context, policy, machine).ranked:
        assert candidate.p_success <= predicted[candidate.model]
        p50, p90, p95 = candidate.latency_s
        assert math.isnan(p50) or 0 <= p50 <= p90 <= p95


def test_an_explored_choice_keeps_the_best_as_its_fallback() -> None:
    forecast = Forecast([0.9, 0.8, 0.7, 0.6], [(1.0, 1.5, 2.0)] * 4, [math.nan] * 4, [0.0] * 4)
    policy = Policy("curious", exploration=1.0, exploration_gap=None, latency_budget_s=None)
    numbers = iter([0.0, 0.6])
    selection = Selector(MODELS).select(forecast, Context(), policy, draw=lambda: next(numbers))
    assert [c.model for c in selection.ranked] == ["c", "a", "b", "d"]
    assert "explored" in selection.reason
    assert selection.propensity == pytest.approx(0.25)


def test_without_exploration_nothing_is_drawn() -> None:
    def never() -> float:
        raise AssertionError("a draw without exploration")

    forecast = Forecast([0.9] * 4, [(1.0, 1.5, 2.0)] * 4, [math.nan] * 4, [0.0] * 4)
    assert Selector(MODELS).select(forecast, Context(), Policy("plain"), draw=never).propensity == 1.0


@pytest.mark.parametrize(("novelty", "model"), [(0.0, "a"), (0.3, "a"), (1.0, "b")])
def test_an_unfamiliar_query_stays_with_the_default_unless_the_gain_is_clear(novelty: float, model: str) -> None:
    forecast = Forecast([0.83, 0.80, 0.1, 0.1], [(1.0, 1.5, 2.0)] * 4, [math.nan] * 4, [0.0] * 4)
    selection = Selector(MODELS, "b").select(forecast, Context(), Policy("p", default_margin=0.05), novelty=novelty)
    assert selection.ranked[0].model == model
    assert ("default model stays" in selection.reason) == (model == "b")


def test_unknown_latencies_break_no_limit_and_are_not_shown() -> None:
    forecast = Forecast([0.9, 0.8, 0.1, 0.1], [(math.nan,) * 3] * 4, [math.nan] * 4, [math.nan] * 4)
    selection = Selector(MODELS).select(forecast, Context(), Policy("p", latency_budget_s=1.0))
    assert selection.ranked[0].model == "a"
    assert selection.reason == "p_success .90"


_THINKERS = catalogue_from(
    [
        {"name": "t", "prior": {"latency_s": 9.0, "success": 0.9}, "arm": [{"think": True}, {"think": False}]},
        {"name": "g", "prior": {"latency_s": 9.0, "success": 0.9}, "arm": [{"think": e} for e in ("low", "high")]},
        {"name": "plain", "prior": {"latency_s": 9.0, "success": 0.9}},
    ],
    "test",
)


@pytest.mark.parametrize(
    ("think", "left"),
    [
        (None, {"t+think", "t+nothink", "g+low", "g+high", "plain"}),
        (True, {"t+think", "g+low", "g+high", "plain"}),
        (False, {"t+nothink", "g+low", "g+high", "plain"}),  # g has no way not to think
        ("high", {"t+think", "g+high", "plain"}),
    ],
)
def test_a_request_that_says_how_to_ask_leaves_the_arms_asked_so(think: Think | None, left: set[str]) -> None:
    n = len(_THINKERS.arms)
    forecast = Forecast([0.9] * n, [(1.0, 2.0, 3.0)] * n, [math.nan] * n, [0.0] * n)
    selection = Selector(_THINKERS.arms).select(forecast, Context(think=think), Policy("p"))
    assert {arm_key(c.model, c.think) for c in selection.ranked} == left
    assert set(selection.excluded) == {arm.key for arm in _THINKERS.arms} - left


def test_the_models_of_a_policy_and_the_machine_go_by_the_models_name() -> None:
    n = len(_THINKERS.arms)
    forecast = Forecast([0.9] * n, [(1.0, 2.0, 3.0)] * n, [900.0, 40.0, math.nan, math.nan, math.nan], [0.0] * n)
    machine = MachineState({"t": ModelState(decode_tokens_per_s=100.0, queue_s=1.0)})
    policy = Policy("p", models=("t",), latency_budget_s=None)
    ranked = Selector(_THINKERS.arms).select(forecast, Context(), policy, machine=machine).ranked
    assert [(c.model, c.think) for c in ranked] == [("t", False), ("t", True)]
    assert [c.latency_s.p50 for c in ranked] == pytest.approx([1.4, 10.0])  # one rate, each arm's own tokens


@given(_CONTEXTS, st.booleans(), _MACHINES)
def test_a_request_of_which_no_model_is_asked_whether_it_is_able_is_in_no_models_way(
    context: Context, has_images: bool, machine: MachineState | None
) -> None:
    context = replace(context, has_images=has_images)
    if not demands(context, machine):
        assert [unable(model, context, machine) for model in MODELS] == [None] * len(MODELS)
