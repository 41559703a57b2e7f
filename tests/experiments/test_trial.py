"""Assignment, units and verdicts as a person would check them by hand."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.errors import ExperimentError
from router_ml.experiments.assignment import arm_of, assign, fraction, held_out
from router_ml.experiments.evidence import Evidence, Moments, evidence_from
from router_ml.experiments.experiment import (
    Arm,
    Experiment,
    Limits,
    RampStep,
    Variant,
    canonical,
    experiment_from,
    experiment_row,
)
from router_ml.experiments.statistics import mean_log_e
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import Judged, Observation, UnitRequest
from router_ml.experiments.verdict import recompute

EXPERIMENT = Experiment("e1", Variant("old"), Variant("new", policy="fast"), started_s=1000.0, unit="request")
SESSIONS = replace(EXPERIMENT, unit="session", unit_requests=3, unit_idle_s=60.0, judgement_s=100.0)
UNITS = [f"session-{i}" for i in range(20_000)]


def request(
    number: int, arm: Arm, failure: float | None = 0.0, latency_s: float = 2.0, unit: str | None = None
) -> UnitRequest:
    return UnitRequest(f"d{number}", unit or f"u{number}", arm, 1000.0 + number, failure, latency_s, 0.02, 0.0)


def observed(trial: Trial, kind: type[Observation] | type[Judged], now_s: float = 1e9) -> list[Any]:
    """Return what the units of a trial contribute, in the order of time."""
    trial.analyse(now_s)
    steps = sorted(step for steps in trial.timeline._steps.values() for step in steps)
    return [step.what for step in steps if isinstance(step.what, kind)]


def test_the_hash_is_sha256_of_salt_and_unit() -> None:
    # sha256(b"salt\\0unit") begins with these eight bytes (coreutils sha256sum).
    assert fraction("salt", "unit") == int("ed2eb29f333d2793", 16) / 2**64


def test_arms_are_half_and_half_and_independent_of_taking_part() -> None:
    experiment = replace(EXPERIMENT, ramp=(RampStep(0.0, 0.1),))
    given_out = [assign(experiment, unit, 1000.0) for unit in UNITS]
    taking_part = [a for a in given_out if a is not None]
    challengers = sum(a.arm == "challenger" for a in taking_part)
    # Four standard deviations of a binomial.
    assert abs(len(taking_part) - 2000) < 4 * math.sqrt(20_000 * 0.1 * 0.9)
    assert abs(challengers - len(taking_part) / 2) < 4 * math.sqrt(len(taking_part) / 4)


def test_a_rising_coverage_adds_units_and_moves_none() -> None:
    experiment = replace(EXPERIMENT, ramp=(RampStep(0.0, 0.05), RampStep(60.0, 0.5), RampStep(120.0, 1.0)))
    early, middle, late = ({u: a.arm for u in UNITS if (a := assign(experiment, u, t))} for t in (1000, 1060, 1120))
    assert early.items() < middle.items() < late.items()
    assert len(late) == len(UNITS)


def test_nobody_takes_part_before_the_start_and_the_holdout_never_does() -> None:
    assert assign(EXPERIMENT, "u", 999.0) is None
    experiment = replace(EXPERIMENT, holdout=0.2)
    other = replace(experiment, id="e2")
    out = {u for u in UNITS if assign(experiment, u, 1000.0) is None}
    assert out == {u for u in UNITS if assign(other, u, 1000.0) is None} == {u for u in UNITS if held_out(u, 0.2)}
    assert abs(len(out) - 4000) < 4 * math.sqrt(20_000 * 0.2 * 0.8)


def test_two_experiments_split_independently() -> None:
    other = replace(EXPERIMENT, id="e2")
    same = sum(arm_of(EXPERIMENT, u) == arm_of(other, u) for u in UNITS)
    assert abs(same - 10_000) < 4 * math.sqrt(5000)


def test_in_shadow_everybody_is_served_the_control() -> None:
    given_out = [assign(replace(EXPERIMENT, mode="shadow"), u, 1000.0) for u in UNITS[:200]]
    assert {(a.arm, a.variant.name, a.shadow.name) for a in given_out if a and a.shadow} == {("control", "old", "new")}
    assert None not in given_out


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "no spaces"},
        {"challenger": Variant("old")},
        {"ramp": (RampStep(0.0, 0.5), RampStep(10.0, 0.1))},
        {"ramp": (RampStep(10.0, 0.5), RampStep(0.0, 0.6))},
        {"holdout": 1.0},
        {"limits": Limits(alpha_rollback=0.9)},
        {"limits": Limits(latency_tolerance_ratio=1.2)},
        {"limits": Limits(min_units=5)},
    ],
    ids=str,
)
def test_an_experiment_that_cannot_be_run_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ExperimentError):
        replace(EXPERIMENT, **wrong)


def test_an_experiment_survives_its_file_form() -> None:
    text = canonical(experiment_row(EXPERIMENT))
    assert experiment_from(json.loads(text)) == EXPERIMENT
    for version in (9, "9", None, [9]):
        with pytest.raises(ExperimentError, match="has format"):
            experiment_from(json.loads(text) | {"format": version})


@pytest.mark.parametrize(
    "wrong",
    [
        {"started_s": "yesterday"},
        {"started_s": math.nan},
        {"salt": 5},
        {"owner": ["me"]},
        {"holdout": "0"},
        {"unit_idle_s": math.nan},
        {"control": {"name": 7}},
        {"challenger": {"name": "new", "model": ["qwen3:8b"]}},
        {"ramp": [{"after_s": "0", "coverage": 1.0}]},
        {"ramp": 5},
        {"limits": {"system_slow_s": "60"}},
        {"limits": {"min_units": math.nan}},
        {"limits": []},
        {"mode": []},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_kind_is_refused_when_the_file_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(ExperimentError):
        experiment_from(experiment_row(EXPERIMENT) | wrong)


def test_a_session_is_one_observation_with_the_means_of_its_first_requests() -> None:
    trial = Trial(SESSIONS)
    for number, failure, latency_s in ((1, 1.0, 1.0), (2, 0.0, 10.0), (2, 0.0, 10.0), (3, 0.0, 100.0), (4, 1.0, 1.0)):
        trial.add(request(number, "control", failure, latency_s, "s"))
    (seen,) = observed(trial, Observation)
    assert (seen.requests, seen.no_answer, seen.slo_miss) == (3, 0.0, pytest.approx(2 / 3))
    assert seen.log_latency == pytest.approx(math.log(10.0))
    assert [judged.failure for judged in observed(trial, Judged)] == [pytest.approx(1 / 3)]


def counts(trial: Trial, now_s: float) -> tuple[int, int]:
    """Return how many units are complete, and how many were judged, at a time."""
    trial.analyse(now_s)
    return trial.evidence.n, trial.evidence.total("judged")


def test_a_unit_counts_once_it_is_idle_and_its_quality_once_its_judgement_window_has_passed() -> None:
    trial = Trial(SESSIONS)
    trial.add(request(0, "control", 0.0, unit="s"))
    assert counts(trial, 1059.9) == (0, 0)
    assert counts(trial, 1060.0) == (1, 0)
    assert counts(trial, 1159.9) == (1, 0)
    assert counts(trial, 1160.0) == (1, 1)
    assert counts(trial, 1059.9) == (0, 0)  # what counts depends on the time alone


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([(900.0, True, 1.0)], 1.0),  # before the outcome
        ([(1159.0, True, 1.0)], 1.0),  # as the window ends
        ([(1161.0, True, 1.0)], None),  # too late
        ([(1010.0, True, 1.0), (1020.0, True, 0.0)], 0.0),  # the later one
        ([(1010.0, True, 0.0), (1020.0, False, 1.0)], 0.0),  # a person's word stands over what is inferred
        ([(1010.0, False, 1.0)], 1.0),
    ],
    ids=["before", "last moment", "too late", "changed", "explicit over inferred", "inferred"],
)
def test_feedback_counts_while_the_window_is_open(
    given: list[tuple[float, bool, float]], expected: float | None
) -> None:
    for late in (False, True):  # whether the request becomes known last
        trial = Trial(SESSIONS)
        if not late:
            trial.add(request(0, "control", None, unit="s"))
        for index, (at_s, explicit, failure) in enumerate(given):
            trial.judge_request("d0", failure, at_s=at_s, explicit=explicit, event_id=f"f{index}")
        if late:
            trial.add(request(0, "control", None, unit="s"))
        assert [judged.failure for judged in observed(trial, Judged)] == [expected]


def test_an_answer_nobody_judged_is_not_right_and_what_was_known_at_once_gives_way_to_a_person() -> None:
    trial = Trial(SESSIONS)
    trial.add_all([request(0, "control", None, unit="s"), request(1, "control", 0.0, unit="s")])
    trial.judge_request("d1", 1.0, at_s=1030.0)
    assert [judged.failure for judged in observed(trial, Judged)] == [1.0]


def test_a_clarifying_question_is_no_latency_and_costs_nothing() -> None:
    trial = Trial(SESSIONS)
    asked = UnitRequest("d0", "s", "control", 1000.0, None, 0.003, None, 0.0, clarified=True)
    trial.add_all([asked, replace(request(1, "control", 0.0, 8.0, "s"), cost_usd=0.5)])
    (seen,) = observed(trial, Observation)
    assert (seen.clarified, seen.cost_usd) == (0.5, 0.5)
    assert seen.log_latency == pytest.approx(math.log(8.0))


def test_a_session_that_changes_arm_counts_until_then_and_is_reported() -> None:
    trial = Trial(SESSIONS)
    trial.add_all([request(0, "control", 0.0, 1.0, "s"), request(5, "challenger", 1.0, 99.0, "s")])
    (seen,) = observed(trial, Observation)
    assert (seen.requests, seen.changed_arm, seen.log_latency) == (1, True, 0.0)
    verdict = trial.analyse(5000.0)
    assert verdict.changed_arm == 1
    assert any("1 of 1 units were served by both arms" in reason for reason in verdict.reasons)


def test_of_two_outcomes_with_one_decision_id_the_earlier_counts() -> None:
    first, second = request(0, "control", 0.0, unit="s"), request(5, "control", 1.0, unit="t")
    for order in ((first, second), (second, first)):
        trial = Trial(SESSIONS)
        trial.add_all([replace(r, decision_id="d") for r in order])
        assert [judged.failure for judged in observed(trial, Judged)] == [0.0]


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_evidence_depends_on_the_events_alone_not_on_when_they_became_known(draw: random.Random) -> None:
    """Sessions that come back after a pause, feedback out of order, analyses at any time, and a restart."""
    events: list[tuple[str, Any]] = []
    for number in range(60):
        unit, at_s = f"s{draw.randrange(12)}", draw.uniform(1000.0, 3000.0)
        arm: Arm = "challenger" if int(unit[1:]) % 2 else "control"
        failure = draw.choice([None, 0.0, 1.0])
        events.append(("request", UnitRequest(f"d{number}", unit, arm, at_s, failure, draw.uniform(0.5, 9.0))))
        if draw.random() < 0.5:
            score, late_s = float(draw.random() < 0.5), draw.uniform(-50, 300)
            events.append(("judgement", (f"d{number}", score, at_s + late_s, draw.random() < 0.5, f"f{number}")))

    def take(trial: Trial, event: tuple[str, Any]) -> None:
        if event[0] == "request":
            trial.add(event[1])
        else:
            name, failure, at_s, explicit, event_id = event[1]
            trial.judge_request(name, failure, at_s=at_s, explicit=explicit, event_id=event_id)

    live, restarted = Trial(SESSIONS), Trial(SESSIONS)
    for event in draw.sample(events, len(events)):
        take(live, event)
        if draw.random() < 0.3:
            live.analyse(draw.uniform(1000.0, 4000.0))
    for event in events:
        take(restarted, event)
        take(restarted, event)  # from the store and from memory
    assert live.record(3500.0) == restarted.record(3500.0)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40))
def test_moments_agree_with_their_definition(values: list[float]) -> None:
    moments = Moments()
    for value in values:
        moments.add(value)
    assert moments.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert moments.variance == pytest.approx(np.var(values, ddof=1), abs=1e-7)


def filled(
    n: int, failing: float = 0.0, slower: float = 1.0, seed: int = 1, experiment: Experiment = EXPERIMENT
) -> Trial:
    """A trial whose challenger fails more often or answers more slowly."""
    generator = np.random.default_rng(seed)
    trial = Trial(experiment)
    for i in range(n):
        arm: Arm = "challenger" if generator.random() < 0.5 else "control"
        harm = arm == "challenger"
        failure = float(generator.random() < 0.1 + failing * harm)
        latency_s = math.exp(generator.normal(0.9, 0.5)) * (slower if harm else 1.0)
        trial.add(request(i, arm, failure, latency_s))
    return trial


@pytest.mark.parametrize(
    ("trial", "kind", "words"),
    [
        (filled(30), "HOLD", "units per arm"),
        (filled(1500, failing=0.3), "ROLLBACK", "failure rate among judged answers"),
        (filled(1500, slower=2.0), "ROLLBACK", "latency +"),
        (filled(9000), "SHIP", "no guardrail is worse"),
    ],
    ids=["young", "failing", "slow", "as good"],
)
def test_verdicts_say_in_words_what_they_rest_on(trial: Trial, kind: str, words: str) -> None:
    verdict = trial.analyse(20_000.0)
    assert verdict.kind == kind
    assert words in " ".join((verdict.summary, *verdict.reasons))


def test_a_disaster_is_rolled_back_before_any_session_is_over() -> None:
    trial = Trial(replace(EXPERIMENT, unit="session", unit_requests=100))
    for i in range(100):
        trial.add(request(i, "challenger" if i % 2 else "control", float(i % 2)))
    verdict = trial.analyse(1100.0)
    assert trial.evidence.n == 0
    assert verdict.kind == "ROLLBACK"
    assert "(0.0% to 100.0%)" in verdict.reasons[0]


def test_the_mean_of_two_e_values() -> None:
    assert math.exp(mean_log_e(math.log(3.0), math.log(5.0))) == pytest.approx(4.0)
    assert mean_log_e(7.0, 7.0) == pytest.approx(7.0)


def test_an_unfair_split_makes_everything_invalid_even_a_harm() -> None:
    trial = Trial(EXPERIMENT)
    for i in range(1000):
        trial.add(request(i, "challenger" if i % 3 else "control", float(i % 3 > 0)))
    assert trial.analyse(20_000.0).kind == "INVALID"


def test_a_system_that_breaks_for_both_arms_is_stopped() -> None:
    trial = Trial(EXPERIMENT)
    for i in range(200):
        trial.add(request(i, "challenger" if i % 2 else "control", 1.0 if i % 10 else 0.0))
    verdict = trial.analyse(20_000.0)
    assert verdict.kind == "ROLLBACK"
    assert "whole system" in verdict.reasons[0]


def test_a_tolerated_difference_is_not_rolled_back() -> None:
    limits = Limits(latency_tolerance_ratio=2.0, latency_margin_ratio=3.0, slo_s=None)
    trial = filled(1500, slower=1.5, experiment=replace(EXPERIMENT, limits=limits))
    assert trial.analyse(20_000.0).kind == "HOLD"
    assert (
        filled(1500, slower=1.5, experiment=replace(EXPERIMENT, limits=Limits(slo_s=None))).analyse(2e4).kind
        == "ROLLBACK"
    )


def test_nothing_is_shipped_before_its_time() -> None:
    trial = filled(9000, experiment=replace(EXPERIMENT, limits=Limits(min_duration_s=86_400.0)))
    assert trial.analyse(20_000.0).kind == "HOLD"
    assert trial.analyse(1000.0 + 86_400.0).kind == "SHIP"


def test_a_record_is_computed_again_byte_for_byte() -> None:
    trial = filled(1500, failing=0.1)
    record = trial.record(20_000.0)
    assert recompute(record) == record
    assert json.loads(record)["verdict"]["kind"] == "ROLLBACK"
    forged = json.loads(record)
    forged["verdict"]["kind"] = "SHIP"
    assert recompute(canonical(forged)) == record != canonical(forged)


def test_evidence_goes_on_after_its_json_form_as_if_nothing_had_happened() -> None:
    trial = filled(400)
    steps = sorted(step for steps in trial.timeline._steps.values() for step in steps)
    whole, resumed = Evidence(EXPERIMENT.limits), Evidence(EXPERIMENT.limits)
    for index, step in enumerate(steps):
        if index == 700:
            resumed = evidence_from(json.loads(json.dumps(resumed.as_dict())), EXPERIMENT.limits)
        whole.add(step)
        resumed.add(step)
    assert resumed.as_dict() == whole.as_dict()
    trial.analyse(20_000.0)
    assert trial.evidence.as_dict() == whole.as_dict()


def test_a_record_of_the_first_format_still_loads() -> None:
    """Its evidence had first requests, "wealth" and "middle", and no judgement windows."""
    record = (Path(__file__).parent / "record_format_1.json").read_text(encoding="utf-8")
    row, again = json.loads(record), json.loads(recompute(record))
    assert (row["format"], again["format"]) == (1, 2)
    assert row["verdict"]["kind"] == again["verdict"]["kind"] == "ROLLBACK"
    assert again["verdict"]["units"] == row["verdict"]["units"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"experiment": {}}'])
def test_what_is_no_record_is_a_typed_error(text: str) -> None:
    with pytest.raises(ExperimentError):
        recompute(text)


def test_empty_evidence_holds() -> None:
    verdict = Trial(EXPERIMENT).analyse(1000.0)
    assert (verdict.kind, Evidence(Limits()).n) == ("HOLD", 0)
    assert recompute(Trial(EXPERIMENT).record(1000.0))
