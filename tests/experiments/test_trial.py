"""Assignment, units and verdicts as a person would check them by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
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
from router_ml.experiments.unit import UnitRequest, Units
from router_ml.experiments.verdict import recompute

EXPERIMENT = Experiment("e1", Variant("old"), Variant("new", policy="fast"), started_s=1000.0, unit="request")
UNITS = [f"session-{i}" for i in range(20_000)]


def request(
    number: int, arm: Arm, failure: float = 0.0, latency_s: float = 2.0, unit: str | None = None
) -> UnitRequest:
    return UnitRequest(f"d{number}", unit or f"u{number}", arm, 1000.0 + number, failure, latency_s, 0.02, 0.0)


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
    with pytest.raises(ExperimentError, match="format 9"):
        experiment_from(json.loads(text) | {"format": 9})


def test_a_session_is_one_observation_with_the_means_of_its_first_requests() -> None:
    units = Units(replace(EXPERIMENT, unit="session", unit_requests=3))
    assert units.add(request(1, "control", 1.0, 1.0, "s")) is None
    assert units.add(request(2, "control", 0.0, 10.0, "s")) is None
    assert units.add(request(2, "control", 0.0, 10.0, "s")) is None  # told twice
    seen = units.add(request(3, "control", 0.0, 100.0, "s"))
    assert seen is not None
    assert (seen.requests, seen.failure, seen.slo_miss) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert seen.log_latency == pytest.approx(math.log(10.0))
    assert units.add(request(4, "control", 1.0, 1.0, "s")) is None
    assert len(units) == 0


def test_a_quiet_session_is_observed_as_it_is_and_feedback_changes_it_before() -> None:
    units = Units(replace(EXPERIMENT, unit="session", unit_idle_s=60.0))
    units.add(request(1, "control", 0.0, unit="s"))
    units.judge("d1", 1.0)
    units.judge("unknown", 1.0)
    assert list(units.expire(1060.9)) == []
    assert [seen.failure for seen in units.expire(1061.0)] == [1.0]


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
        (filled(1500, failing=0.3), "ROLLBACK", "failure rate"),
        (filled(1500, slower=2.0), "ROLLBACK", "latency +"),
        (filled(9000), "SHIP", "no guardrail is worse"),
    ],
    ids=["young", "failing", "slow", "as good"],
)
def test_verdicts_say_in_words_what_they_rest_on(trial: Trial, kind: str, words: str) -> None:
    verdict = trial.look(20_000.0)
    assert verdict.kind == kind
    assert words in " ".join((verdict.summary, *verdict.reasons))


def test_a_disaster_is_rolled_back_before_any_session_is_over() -> None:
    trial = Trial(replace(EXPERIMENT, unit="session", unit_requests=100))
    for i in range(100):
        trial.add(request(i, "challenger" if i % 2 else "control", float(i % 2)))
    verdict = trial.look(1100.0)
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
    assert trial.look(20_000.0).kind == "INVALID"


def test_a_system_that_breaks_for_both_arms_is_stopped() -> None:
    trial = Trial(EXPERIMENT)
    for i in range(200):
        trial.add(request(i, "challenger" if i % 2 else "control", 1.0 if i % 10 else 0.0))
    verdict = trial.look(20_000.0)
    assert verdict.kind == "ROLLBACK"
    assert "whole system" in verdict.reasons[0]


def test_a_tolerated_difference_is_not_rolled_back() -> None:
    limits = Limits(latency_tolerance_ratio=2.0, latency_margin_ratio=3.0, slo_s=None)
    trial = filled(1500, slower=1.5, experiment=replace(EXPERIMENT, limits=limits))
    assert trial.look(20_000.0).kind == "HOLD"
    assert (
        filled(1500, slower=1.5, experiment=replace(EXPERIMENT, limits=Limits(slo_s=None))).look(2e4).kind == "ROLLBACK"
    )


def test_nothing_is_shipped_before_its_time() -> None:
    trial = filled(9000, experiment=replace(EXPERIMENT, limits=Limits(min_duration_s=86_400.0)))
    assert trial.look(20_000.0).kind == "HOLD"
    assert trial.look(1000.0 + 86_400.0).kind == "SHIP"


def test_a_record_is_computed_again_byte_for_byte() -> None:
    trial = filled(1500, failing=0.1)
    record = trial.record(20_000.0)
    assert recompute(record) == record
    assert json.loads(record)["verdict"]["kind"] == "ROLLBACK"
    forged = json.loads(record)
    forged["verdict"]["kind"] = "SHIP"
    assert recompute(canonical(forged)) == record != canonical(forged)


def test_evidence_goes_on_after_its_json_form_as_if_nothing_had_happened() -> None:
    whole, first = filled(400), filled(170)
    resumed = evidence_from(json.loads(json.dumps(first.evidence.as_dict())), EXPERIMENT.limits)
    second = Trial(EXPERIMENT)
    second.evidence = resumed
    generator = np.random.default_rng(1)
    for i in range(400):
        arm: Arm = "challenger" if generator.random() < 0.5 else "control"
        failure, latency_s = float(generator.random() < 0.1), math.exp(generator.normal(0.9, 0.5))
        if i >= 170:
            second.add(request(i, arm, failure, latency_s))
    assert second.evidence.as_dict() == whole.evidence.as_dict()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"experiment": {}}'])
def test_what_is_no_record_is_a_typed_error(text: str) -> None:
    with pytest.raises(ExperimentError):
        recompute(text)


def test_empty_evidence_holds() -> None:
    verdict = Trial(EXPERIMENT).look(1000.0)
    assert (verdict.kind, Evidence(Limits()).n) == ("HOLD", 0)
    assert recompute(Trial(EXPERIMENT).record(1000.0))
