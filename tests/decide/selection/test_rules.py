"""The rules the default policy must follow with the packaged catalogue, and what limits and policies change."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.catalogue import Catalogue, load_catalogue, model_from
from router_ml.decide.selection import limits
from router_ml.decide.selection.policy import PRESETS, Policy, policy_from, resolve_policy
from router_ml.errors import PolicyError
from router_ml.types import LABELS, Label, MachineState, ModelState

FAST, BALANCED, ACCURATE = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
Maker = Callable[..., Any]


@pytest.mark.parametrize(
    ("label", "model"), [("simple", FAST), ("moderate", BALANCED), ("complex", BALANCED), ("ambiguous", BALANCED)]
)
def test_the_four_rules(router_that_says: Maker, label: Label, model: str) -> None:
    decision = router_that_says(label).decide("anything")
    assert (decision.model, decision.complexity, decision.action) == (model, label, "answer")
    assert decision.propensity == 1.0
    assert not decision.degraded


def test_means_over_the_labels_are_those_of_the_known_models() -> None:
    """2.1 s and .85, 2.8 s and .88, 12.5 s and .92: what the assistant this router was built for measured."""
    for name, latency_s, success in ((FAST, 2.1, 0.85), (BALANCED, 2.8, 0.88), (ACCURATE, 12.5, 0.92)):
        prior = load_catalogue()[name].prior
        assert sum(prior.latency_s.values()) / 4 == pytest.approx(latency_s, abs=0.051)
        assert sum(prior.success.values()) / 4 == pytest.approx(success, abs=0.0051)


def test_moderate_goes_to_the_fast_one_while_the_balanced_one_performs_badly(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    bad = MachineState({BALANCED: ModelState(recent_success=0.4, recent_calls=30)})
    assert router.decide("anything", machine=bad).model == FAST
    slow = MachineState({BALANCED: ModelState(queue_s=8.0)})
    assert router.decide("anything", machine=slow).model == FAST
    few = MachineState({BALANCED: ModelState(recent_success=0.0, recent_calls=0)})
    assert router.decide("anything", machine=few).model == BALANCED
    good = MachineState({BALANCED: ModelState(recent_success=0.99, recent_calls=500)})
    decision = router.decide("anything", machine=good)
    prior = load_catalogue()[BALANCED].prior.success
    mean = sum(share * prior[label] for label, share in decision.complexity_probabilities.items())
    assert decision.candidate.p_success == pytest.approx(mean, abs=1e-5)


def test_complex_escalates_where_time_is_cheap_and_the_budget_allows(router_that_says: Maker) -> None:
    router = router_that_says("complex")
    assert router.decide("anything", policy="accurate").model == ACCURATE
    unhurried = router.decide("anything", policy=Policy("patient", latency_budget_s=None))
    assert (unhurried.model, unhurried.think) == (ACCURATE, False)
    patient = Policy("worth it", latency_weight_per_s=0.002, latency_budget_s=None)
    thorough = router.decide("anything", policy=patient)
    assert (thorough.model, thorough.think) == (ACCURATE, True)
    assert router.decide("anything", {"latency_budget_s": 6}, policy="accurate").model == BALANCED


def test_ambiguous_is_asked_back_only_where_the_policy_says_so(router_that_says: Maker) -> None:
    asking = Policy("asking", on_ambiguous="clarify", clarify_at=0.6)
    sure, unsure = router_that_says("ambiguous", 0.7), router_that_says("ambiguous", 0.5)
    assert sure.decide("it").action == "answer"
    decision = sure.decide("it", policy=asking)
    assert (decision.action, decision.model) == ("clarify", BALANCED)
    assert decision.reason.startswith("clarifying question")
    assert unsure.decide("it", policy=asking).action == "answer"
    assert router_that_says("complex", 0.9).decide("it", policy=asking).action == "answer"


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("policy", PRESETS)
def test_every_preset_answers_every_label(router_that_says: Maker, label: Label, policy: str) -> None:
    decision = router_that_says(label).decide("anything", policy=policy)
    assert decision.policy == policy
    assert {c.model for c in decision.ranked} == {FAST, BALANCED, ACCURATE}
    fast_first = decision.ranked[0].latency_s.p50 <= decision.ranked[-1].latency_s.p50
    assert fast_first or policy == "accurate"


def test_utility_is_what_the_policy_says_it_is(router_that_says: Maker) -> None:
    policy = Policy("sum", success_weight=2.0, latency_weight_per_s=0.1, latency_budget_s=None)
    for candidate in router_that_says("moderate").decide("x", policy=policy).ranked:
        assert candidate.utility == pytest.approx(2.0 * candidate.p_success - 0.1 * candidate.latency_s.p50, abs=1e-6)


def test_a_budget_holds_at_the_95th_percentile(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    p95 = {c.model: c.latency_s.p95 for c in router.decide("x").ranked}
    inside = router.decide("x", {"latency_budget_s": p95[BALANCED] + 0.01})
    outside = router.decide("x", {"latency_budget_s": p95[BALANCED] - 0.01})
    assert (inside.model, outside.model) == (BALANCED, FAST)
    over = next(c for c in outside.ranked if c.model == BALANCED)
    assert not over.admissible
    assert "over the budget" in over.reasons[0]


def test_the_shorter_of_two_budgets_wins(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    strict = Policy("strict", latency_budget_s=1.0)
    assert "budget of 1 s" in router.decide("x", {"latency_budget_s": 60}, policy=strict).reason
    assert "budget of 1 s" in router.decide("x", {"latency_budget_s": 1}, policy="balanced").reason


def test_nothing_within_the_budget_gives_the_fastest_and_says_so(router_that_says: Maker) -> None:
    decision = router_that_says("complex").decide("x", {"latency_budget_s": 0.01})
    assert decision.model == FAST
    assert "over the budget of 0.01 s" in decision.reason
    assert not any(c.admissible for c in decision.ranked)
    assert len(decision.ranked) == 4  # one model both ways


def test_nothing_likely_enough_gives_the_likeliest(router_that_says: Maker) -> None:
    policy = Policy("picky", min_p_success=0.99, latency_budget_s=None)
    decision = router_that_says("complex").decide("x", policy=policy)
    assert decision.model == ACCURATE
    assert "under the minimum of 0.99" in decision.reason


def test_a_minimum_of_success_leaves_out_the_weaker_ones(router_that_says: Maker) -> None:
    policy = Policy("picky", min_p_success=0.9, latency_budget_s=None)
    assert router_that_says("moderate").decide("x", policy=policy).model == BALANCED
    policy = Policy("pickier", min_p_success=0.92, latency_budget_s=None)
    assert router_that_says("moderate").decide("x", policy=policy).model == ACCURATE


def _two(**second: Any) -> Catalogue:
    prior = {"latency_s": 1.0, "success": 0.9}
    first = {"name": "plain", "capabilities": ["tools"], "prior": prior}
    return Catalogue(
        (model_from(first, "t"), model_from({"name": "other", "prior": {**prior, "success": 0.5}, **second}, "t"))
    )


def test_money_counts_and_limits(router_that_says: Maker) -> None:
    costly = {"price_output_usd_per_mtok": 1000.0, "prior": {"latency_s": 1.0, "success": 0.99, "output_tokens": 100}}
    router = router_that_says("simple", catalogue=_two(**costly))
    decision = router.decide("x")  # .99 - 10 * .1 usd < .9
    assert decision.model == "plain"
    assert next(c for c in decision.ranked if c.model == "other").cost_usd == pytest.approx(0.1)
    free = Policy("rich", cost_weight_per_usd=0.0)
    assert router.decide("x", policy=free).model == "other"
    assert router.decide("x", policy=Policy("poor", cost_weight_per_usd=0.0, max_cost_usd=0.05)).model == "plain"


def test_images_need_a_model_that_sees(router_that_says: Maker) -> None:
    router = router_that_says("simple", catalogue=_two(capabilities=["vision"]))
    decision = router.decide("what is this", {"attachment": "photo.jpg"})
    assert decision.model == "other"
    assert decision.excluded == {"plain": "cannot see images"}
    seen_before = {"history": [{"role": "user", "content": "look", "images": ["aGk="]}, "assistant: a cat"]}
    assert router.decide("what colour is it", seen_before).excluded == {"plain": "cannot see images"}
    assert router.decide("read it", {"attachment": "report.pdf"}).model == "plain"


def test_tools_need_a_model_that_calls_them(router_that_says: Maker) -> None:
    router = router_that_says("simple", catalogue=_two(capabilities=[]))
    assert router.decide("x", {"n_tools": 1}).excluded == {"other": "cannot call tools"}
    assert router.decide("x").excluded == {}


def test_a_long_prompt_needs_a_wide_window(router_that_says: Maker) -> None:
    decision = router_that_says("moderate").decide("x", {"prompt_tokens": 100_000})
    assert decision.model == FAST
    assert set(decision.excluded) == {BALANCED, ACCURATE}
    assert "exceeds its window of 32768" in decision.excluded[BALANCED]


def test_a_prompt_longer_than_every_window_goes_to_the_widest(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    decision = router.decide("x", {"prompt_tokens": 500_000}, policy="accurate")
    assert [c.model for c in decision.ranked] == [FAST]  # 131,072 tokens; the others have 32,768 and 40,960
    assert set(decision.excluded) == {BALANCED, ACCURATE}
    assert "the prompt of 500000 tokens exceeds every window, 131072 is the widest" in decision.reason
    away = MachineState({FAST: ModelState(available=False)})
    cut = router.decide("x", {"prompt_tokens": 500_000}, machine=away)
    assert {(c.model, c.think) for c in cut.ranked} == {(ACCURATE, False), (ACCURATE, True)}


def test_unavailable_models_are_left_out_with_their_reason(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    machine = MachineState(
        {BALANCED: ModelState(available=False, reason="circuit open"), FAST: ModelState(available=False)}
    )
    decision = router.decide("x", {"latency_budget_s": 60}, policy="accurate", machine=machine)
    assert decision.model == ACCURATE
    assert decision.excluded == {BALANCED: "circuit open", FAST: "not available"}


def test_all_excluded_still_decides_and_says_so(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    nobody = MachineState({name: ModelState(available=False) for name in (FAST, BALANCED, ACCURATE)})
    decision = router.decide("x", machine=nobody)
    assert decision.model in (FAST, BALANCED, ACCURATE)
    assert "no model can serve this as it is" in decision.reason
    assert set(decision.excluded) == {FAST, BALANCED, ACCURATE}
    assert "no model can serve" in router.decide("x", {"attachment": "a.png"}).reason


def test_only_the_models_of_the_policy(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    only = Policy("only", models=(ACCURATE,), latency_budget_s=None)
    assert router.decide("x", policy=only).model == ACCURATE
    by_alias = Policy("alias", models=("llama3.2",))
    assert router.decide("x", policy=by_alias).model == FAST
    unknown = router.decide("x", policy=Policy("unknown", models=("gpt-17", "gpt-18")))
    assert [c.model for c in unknown.ranked] == ["gpt-17", "gpt-18"]  # a host may have what the catalogue does not
    assert "the policy's models are not in the catalogue" in unknown.reason
    assert set(unknown.excluded) == {FAST, BALANCED, ACCURATE}
    blind = router.decide("x", {"attachment": "a.png"}, policy=Policy("blind", models=(FAST,)))
    assert [c.model for c in blind.ranked] == [FAST]  # nothing leads past the policy's models
    assert "no model can serve this as it is" in blind.reason


def test_a_registered_limit_holds_in_selector_policy_files_and_validation(
    router_that_says: Maker, tmp_path: Path
) -> None:
    slow = "typically takes too long"
    limits.register(limits.Limit("max_p50_s", lambda c, most_s: slow if c.latency_s.p50 > most_s else None))
    try:
        path = tmp_path / "quick.toml"
        path.write_text("max_p50_s = 2.5\n")
        router = router_that_says("complex")
        left_out = [c for c in router.decide("x", policy=path).ranked if not c.admissible]
        assert [c.reasons[0] for c in left_out if c.model == BALANCED] == [slow]
        assert left_out == [c for c in left_out if c.latency_s.p50 > 2.5 or c.model == ACCURATE]
        same = Policy("quick", limits={"max_p50_s": 2.5})
        assert (same, hash(same)) == (resolve_policy(path), hash(resolve_policy(path)))
        assert copy.deepcopy(same) == same
        for wrong in (-1, "soon", True):
            with pytest.raises(PolicyError, match="max_p50_s must be a number, 0 or more"):
                policy_from({"max_p50_s": wrong}, "mine")
        lifted = policy_from({"max_p50_s": "none", "latency_budget_s": "none", "min_p_success": "none"}, "mine")
        assert all(c.admissible for c in router.decide("x", policy=lifted).ranked)
    finally:
        del limits.LIMITS["max_p50_s"]
    with pytest.raises(PolicyError, match="unknown key 'max_p50_s'"):
        policy_from({"max_p50_s": 1}, "mine")


def test_numbers_of_numpy_are_numbers_of_a_policy() -> None:
    policy = Policy("np", latency_budget_s=np.float32(2.0), min_p_success=np.float64(0.5), max_cost_usd=np.int64(1))
    assert policy == Policy("np", latency_budget_s=2.0, min_p_success=0.5, max_cost_usd=1)
    assert type(policy.latency_budget_s) is float


@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "success_weight = " + "9" * 5000,
                                  "success_weight = 1" + "0" * 400, "success_weight = inf", "name = [1]"])  # fmt: skip
def test_an_odd_policy_file_is_a_policy_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(PolicyError):
        resolve_policy(tmp_path / "odd.toml")


def test_warm_beats_cold(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    machine = MachineState({
        FAST: ModelState(resident=True),
        BALANCED: ModelState(resident=False, load_s=6.0),
    })  # fmt: skip
    decision = router.decide("x", machine=machine)
    assert decision.model == FAST
    assert "warm" in decision.reason
    cold = next(c for c in decision.ranked if c.model == BALANCED)
    assert "cold: 6.0 s to load" in cold.reasons
    assert cold.latency_s.p50 == pytest.approx(6.0 + 2.7 * math.exp(-0.02), abs=0.01)


def test_live_rates_stand_in_for_predicted_latency(router_that_says: Maker) -> None:
    """70 tokens at 7 a second are 10 s, and 700 prompt tokens at 350 a second 2 s."""
    machine = MachineState({BALANCED: ModelState(decode_tokens_per_s=7.0, prompt_tokens_per_s=350.0, queue_s=1.0)})
    ranked = router_that_says("moderate").decide("x", {"prompt_tokens": 700}, machine=machine).ranked
    slow = next(c for c in ranked if c.model == BALANCED)
    assert slow.latency_s.p50 == pytest.approx(13.0, rel=0.01)  # the label is almost sure
    assert slow.latency_s.p50 < slow.latency_s.p90 < slow.latency_s.p95


def test_a_load_is_shared_by_the_requests_expected_while_the_model_stays(router_that_says: Maker) -> None:
    router = router_that_says("moderate", share=1.0)
    for requests, model in ((1.0, FAST), (50.0, BALANCED)):
        cold = ModelState(resident=False, load_s=12.0, requests_per_load=requests)
        decision = router.decide("x", machine=MachineState({FAST: ModelState(resident=True), BALANCED: cold}))
        assert decision.model == model
        candidate = next(c for c in decision.ranked if c.model == BALANCED)
        warm_s = 2.7 * math.exp(-0.02)
        assert candidate.utility == pytest.approx(0.91 - 0.02 * (warm_s + 12.0 / requests), abs=1e-6)
        assert (candidate.load_s, candidate.admissible) == (12.0, True)  # though it takes longer than the 5 s
        assert decision.if_warm == BALANCED


def test_the_wait_for_a_load_has_a_limit_of_its_own(router_that_says: Maker) -> None:
    router = router_that_says("moderate")
    cold = ModelState(resident=False, load_s=12.0, requests_per_load=50.0)
    machine = MachineState({FAST: ModelState(resident=True), BALANCED: cold})
    for policy, context in ((Policy("quick", load_wait_s=10.0), None), ("balanced", {"latency_budget_s": 4.5})):
        decision = router.decide("x", context, policy=policy, machine=machine)
        left_out = next(c for c in decision.ranked if c.model == BALANCED)
        assert decision.model == FAST
        assert left_out.reasons[0].startswith("loading takes 12.0 s, over the limit of")
        assert decision.if_warm == BALANCED  # what preloading goes by
    every = MachineState(dict.fromkeys((FAST, BALANCED, ACCURATE), ModelState(resident=False, load_s=100.0)))
    assert router.decide("x", machine=every).model == FAST


def test_where_the_latency_comes_from_is_said(router_that_says: Maker) -> None:
    machine = MachineState({
        FAST: ModelState(decode_tokens_per_s=50.0),
        BALANCED: ModelState(answer_s=4.0),
        ACCURATE: ModelState(resident=True),
    })  # fmt: skip
    ranked = router_that_says("moderate", share=1.0).decide("x", machine=machine).ranked
    found = {c.model: (c.latency_source, round(c.latency_s.p50, 3)) for c in ranked}
    prior = ("prior", round(12.0 * math.exp(-0.02), 3))
    assert found == {FAST: ("measured", 1.4), BALANCED: ("measured", 4.0), ACCURATE: prior}


def test_a_long_prompt_takes_time_to_be_read(router_that_says: Maker) -> None:
    """The priors of llama3.2:3b imply 112 tokens a second (80 more take .8 s, less noise): 2,240 of a prompt."""
    router = router_that_says("simple", share=1.0)
    for text, context in (("sum it up", {"prompt_tokens": 100_000}), ("word " * 80_000, None)):
        llama = next(c for c in router.decide(text, context, policy="accurate").ranked if c.model == FAST)
        assert llama.latency_s.p50 == pytest.approx(1.7 + 98_000 / 2_240, rel=0.01)
    short = [c.latency_s.p50 for c in router.decide("sum it up").ranked]
    assert [c.latency_s.p50 for c in router.decide("sum it up", {"prompt_tokens": 1_500}).ranked] == short
    machine = MachineState({FAST: ModelState(decode_tokens_per_s=40.0)})  # no prompt was measured yet
    ranked = router.decide("x", {"prompt_tokens": 8_000}, machine=machine).ranked
    assert next(c for c in ranked if c.model == FAST).latency_s.p50 == pytest.approx(1.0 + 10.0)


def test_reasons_are_short_and_name_the_alternative(router_that_says: Maker) -> None:
    reason = router_that_says("moderate", 1.0).decide("x").reason
    # 12.0 s in the mean is a p95 of 12.0 * exp(-.2**2 / 2 + 1.645 * .2) = 16.3 s
    barred = "p95 16.3 s is over the budget of 5 s"
    assert reason == f"p_success .91 at 2.6 s; qwen3:8b with thinking would add .03 for 9.1 s more, but {barred}"
    patient = router_that_says("moderate", 1.0).decide("x", policy=Policy("patient", latency_budget_s=None)).reason
    assert patient == "p_success .91 at 2.6 s; qwen3:8b with thinking would add .03 for 9.1 s more"


@pytest.mark.parametrize("wrong", ["nope", "", "Balanced", None, 5, {"name": "x"}, "missing.toml", Path("/nowhere")])
def test_an_unknown_policy_is_a_policy_error(router_that_says: Maker, wrong: Any) -> None:
    with pytest.raises(PolicyError) as caught:
        router_that_says("simple").decide("x", policy=wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"latency_weight_per_s": -1},
        {"success_weight": math.nan},
        {"min_p_success": 1.5},
        {"exploration": "often"},
        {"exploration": True},
        {"exploration_gap": 0},
        {"exploration_half_life_outcomes": "soon"},
        {"max_cost_usd": -0.1},
        {"latency_budget_s": math.nan},
        {"on_ambiguous": "shrug"},
        {"speed": 1},
        {"preset": "slow"},
        {"preset": ["fast"]},
        {"models": "qwen3:8b"},
        {"models": []},
        {"models": [1]},
        {"name": 5},
    ],
)
def test_a_policy_that_contradicts_itself(values: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        policy_from(values, "mine")


def test_a_policy_file_starts_from_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "fast"\nlatency_budget_s = "none"\nmodels = ["qwen3:8b"]\non_ambiguous = "clarify"\n')
    policy = resolve_policy(str(path))
    assert policy == resolve_policy(path)
    assert (policy.name, policy.latency_weight_per_s, policy.latency_budget_s) == ("mine", 0.1, None)
    assert (policy.models, policy.on_ambiguous) == (("qwen3:8b",), "clarify")


@pytest.mark.parametrize(
    "text", [b"preset = ", b"\xff", b"latency_budget_s = -1", b"[fast]\na = 1", b"exploration = 2"]
)
def test_a_bad_policy_file_names_itself(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(PolicyError, match="bad"):
        resolve_policy(path)


def test_a_policy_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    import os

    path = tmp_path / "mine.toml"
    path.write_text("exploration = 0.1\n")
    assert resolve_policy(path).exploration == 0.1
    path.write_text("exploration = 0.2\n")
    os.utime(path, ns=(1, 1))
    assert resolve_policy(path).exploration == 0.2


@pytest.mark.parametrize("wrong", [None, 5, ["max_p50_s"], math.nan, {1: 2, "x": 3}, itertools.repeat("x")], ids=str)
def test_limits_that_are_no_mapping_of_known_limits_are_a_policy_error(wrong: Any) -> None:
    with pytest.raises(PolicyError, match=r"limits must be a mapping|unknown key"):
        Policy("own", limits=wrong)
