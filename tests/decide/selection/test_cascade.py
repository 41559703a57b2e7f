"""When a first answer is replaced, and which arm is asked first for it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.catalogue import model_from
from router_ml.decide.router import Router
from router_ml.decide.selection.cascade import AnswerCheck, Cascade, Ruling
from router_ml.decide.selection.policy import PRESETS, Policy, policy_from, policy_parameters
from router_ml.decide.selection.selector import Forecast, Selection, Selector
from router_ml.errors import PolicyError
from router_ml.rule import Rule
from router_ml.types import Candidate, Context, Quantiles

# z = (mean log-probability + 1) / .5; logit P(right) = logit(p_success) + 2 z
CHECK = AnswerCheck(-1.0, 0.5, 0.0, 1.0, 2.0, (0.0, 0.0), tuple(NormalDist().quantiles(10)), 0.0, 100)
SMALL = Candidate("small", 0.6, Quantiles(1.0, 1.5, 2.0), 0.0, 0.58)
LARGE = Candidate("large", 0.9, Quantiles(5.0, 8.0, 10.0), 0.0, 0.80)
POLICY = Policy("p", latency_weight_per_s=0.02, latency_budget_s=None, cascade=True)
JUDGED = Context(judged=True)
unit = st.floats(0.01, 0.99)


def rule(
    logprob: float,
    *,
    check: AnswerCheck = CHECK,
    policy: Policy = POLICY,
    context: Context = JUDGED,
    others: tuple[Candidate, ...] = (LARGE,),
    warm_s: float = 1.0,
    left_s: float = 100.0,
) -> tuple[float, Ruling]:
    return Cascade({"small": check}).rule(SMALL, logprob, others, policy, context, warm_s, left_s)


def test_the_probability_is_that_of_the_logistic_map() -> None:
    p, _ = rule(-1.25)  # z = -.5: the odds of .6 times 1/e
    assert p == pytest.approx(1.5 / math.e / (1 + 1.5 / math.e))


def test_a_second_answer_must_be_worth_its_seconds() -> None:
    # asking the large model is worth .9 - .1 = .8, so an answer that is right with more than .8 is kept
    just_under, just_over = (-1.0 + 0.25 * (math.log(odds) - math.log(1.5)) for odds in (3.9, 4.1))
    assert rule(just_under)[1].second is not None
    kept = rule(just_over)[1]
    assert kept.second is None
    assert kept.reason == "large would gain too little (0.90)"


def test_a_minimum_is_reached_whatever_it_costs() -> None:
    dear = LARGE._replace(utility=-5.0)
    assert rule(-1.5, others=(dear,))[1].second is None
    policy = dataclasses.replace(POLICY, min_p_success=0.5)
    ruling = rule(-1.5, others=(dear,), policy=policy)[1]
    assert ruling.second is not None
    assert ruling.reason == "under the minimum of 0.5"
    unreachable = dataclasses.replace(POLICY, min_p_success=0.95)
    assert rule(-1.5, others=(dear,), policy=unreachable)[1].second is None


@pytest.mark.parametrize(("left_s", "asked"), [(10.1, True), (9.9, False)])
def test_the_time_left_must_hold_its_p95(left_s: float, asked: bool) -> None:
    assert (rule(-2.0, left_s=left_s)[1].second is not None) is asked


@pytest.mark.parametrize(("budget_s", "asked"), [(11.1, True), (10.9, False)])
def test_both_calls_together_keep_within_the_latency_budget(budget_s: float, asked: bool) -> None:
    policy = dataclasses.replace(POLICY, latency_budget_s=budget_s)
    assert (rule(-2.0, policy=policy)[1].second is not None) is asked
    assert (rule(-2.0, context=Context(latency_budget_s=budget_s))[1].second is not None) is asked


def test_what_surprises_of_the_answer_is_partly_the_question() -> None:
    shared = dataclasses.replace(CHECK, shared=0.5)
    expected = shared.other(0.9, 0.6, 0.6 / math.e**2 / (0.6 / math.e**2 + 0.4))
    assert expected == pytest.approx(9 / math.e / (1 + 9 / math.e))  # half of the two log-odds
    second = rule(-1.5, check=shared)[1].second
    assert second is not None
    assert second.p_success == pytest.approx(expected, abs=1e-6)


@given(unit, unit, unit, st.floats(0, 1), st.floats(-1000, 0))
def test_probabilities_stay_within_bounds_and_rise_with_the_signal(
    p: float, other: float, right: float, shared: float, logprob: float
) -> None:
    check = dataclasses.replace(CHECK, shared=shared)
    found = [check.p_right(p, x) for x in (logprob, logprob / 2, 0.0)]
    assert found == sorted(found)
    assert all(0 < x < 1 for x in (*found, check.other(other, p, right)))


@given(st.floats(-1000, 0), unit, st.floats(-1, 1), st.floats(0, 20), st.floats(0, 20))
def test_whoever_is_asked_is_in_time_and_worth_it(
    logprob: float, p: float, worth: float, left_s: float, warm_s: float
) -> None:
    others = tuple(
        Candidate(name, p, Quantiles(s, s, s), 0.0, worth - 0.02 * s) for name, s in (("large", 3.0), ("larger", 9.0))
    )
    policy = dataclasses.replace(POLICY, latency_budget_s=15.0)
    p_right, ruling = rule(logprob, others=others, policy=policy, warm_s=warm_s, left_s=left_s)
    if ruling.second is not None:
        chosen = ruling.second.candidate
        assert chosen.latency_s.p95 <= left_s
        assert warm_s + chosen.latency_s.p95 <= 15.0
        assert ruling.second.gain == pytest.approx(chosen.utility - p_right, abs=1e-9)
        assert ruling.second.gain > 0


# -- who is asked first ------------------------------------------------------------------------------------------------

MODELS = tuple(
    model_from({"name": name, "prior": {"latency_s": 1.0, "success": 0.5}}, "test") for name in ("small", "large")
)


def select(
    p: tuple[float, float] = (0.6, 0.9),
    seconds: tuple[float, float] = (1.0, 9.0),
    *,
    cascade: Cascade | None = None,
    policy: Policy = POLICY,
    context: Context = JUDGED,
    **more: object,
) -> Selection:
    latency = [(s, 1.5 * s, 2.0 * s) for s in seconds]
    selector = Selector(MODELS, "large", cascade=cascade or Cascade({"small": CHECK}))
    return selector.select(Forecast(p, latency, [10.0] * 2, [0.0] * 2), context, policy, **more)  # type: ignore[arg-type]


def test_the_small_model_is_asked_first_where_that_pays() -> None:
    found = select()  # alone the large one is worth .9 - .18, the small one .6 - .02
    assert [c.model for c in found.ranked] == ["small", "large"]
    assert "asked first, large where the answer is probably wrong" in found.reason


def test_the_value_of_asking_first_is_the_mean_over_the_answers_to_expect() -> None:
    fit = list(select().ranked)
    small, large = fit
    expected = [max(0.0, large.utility - CHECK.p_right(0.6, -1.0 + 0.5 * z)) for z in CHECK.residuals]
    value = Cascade({"small": CHECK}).value(small, fit, POLICY, JUDGED)
    assert value == pytest.approx(small.utility + sum(expected) / len(expected))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"context": Context()}, "nobody judges the answer"),
        ({"policy": dataclasses.replace(POLICY, cascade=False)}, "the policy has no cascade"),
        ({"policy": dataclasses.replace(POLICY, max_loss=0.05)}, "a certificate decides"),
        ({"policy": dataclasses.replace(POLICY, latency_budget_s=18.5)}, "both would take too long"),
        ({"cascade": Cascade({"small": dataclasses.replace(CHECK, signal_weight=0.0)})}, "the signal tells nothing"),
        ({"rule": Rule("mine", prefer=("large",))}, "a rule prefers the other"),
        ({"p": (0.05, 0.9)}, "it is nearly always wrong"),
    ],
)
def test_else_the_order_stays(change: dict[str, object], why: str) -> None:
    assert select(**change).ranked[0].model == "large", why  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cascade", "why"),
    [
        (Cascade(), "no cascade: the bundle has no map of log-probabilities"),
        (Cascade({}, {"large": "12 outcomes with a log-probability, 50 are needed"}), "no cascade: large: 12 outcomes"),
        (Cascade({}, {"other": "x"}), "no cascade: large: it has no outcomes of its own"),
    ],
)
def test_a_bundle_without_a_map_says_so(cascade: Cascade, why: str) -> None:
    assert why in select(cascade=cascade).reason


def test_under_exploration_the_propensities_are_those_of_the_new_order() -> None:
    found = select(policy=dataclasses.replace(POLICY, exploration=0.1), draw=itertools.repeat(0.99).__next__)
    assert found.ranked[0].model == "small"
    assert found.propensity >= 0.9


# -- its files and fields ----------------------------------------------------------------------------------------------


def test_a_check_survives_its_json_form() -> None:
    assert AnswerCheck.from_config(json.loads(json.dumps(CHECK.as_config()))) == CHECK


@pytest.mark.parametrize(
    "change",
    [
        {"scale": 0.0},
        {"centre": float("nan")},
        {"usual": [1.0]},
        {"residuals": []},
        {"shared": "x"},
        {"intercept": None},
    ],
)
def test_a_damaged_check_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        AnswerCheck.from_config({**CHECK.as_config(), **change})
    with pytest.raises(KeyError):
        AnswerCheck.from_config({})


def test_a_cascade_is_off_until_a_policy_turns_it_on() -> None:
    assert not any(policy.cascade or policy.cascade_buffer for policy in PRESETS.values())
    on = policy_from({"cascade": True, "cascade_buffer": True}, "p")
    assert (on.cascade, on.cascade_buffer, policy_parameters(on)["cascade"]) == (True, True, True)
    for wrong in ("yes", 1, None):
        with pytest.raises(PolicyError, match="cascade must be true or false"):
            policy_from({"cascade": wrong}, "p")


def test_a_decision_carries_what_judges_its_answer(router_that_says) -> None:
    router: Router = router_that_says("simple")
    assert router.decide("check email").cascade is None
    decision = router.decide("check email", policy=POLICY)
    assert decision.cascade == Cascade()
    assert "no cascade: the bundle has no map" in decision.reason
    assert pickle.loads(pickle.dumps(decision)).cascade == Cascade()  # noqa: S301 - its own bytes
    assert "cascade" not in json.dumps(decision.as_dict()["ranked"])
