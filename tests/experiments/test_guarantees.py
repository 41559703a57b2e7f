"""The guaranteed error rates on few runs; `python -m benchmarks.simulate --table` checks them on ten thousand.

A share that is truly at its bound still exceeds it on few runs; each bound here lies where chance alone would take
it less than once in ten thousand times.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.simulate import (
    EVERY,
    GUARANTEES,
    Guarantee,
    SimulatedFeedback,
    Truth,
    check,
    draw,
    endings,
    judged_later,
    requests_of,
)
from router_ml.experiments.experiment import Experiment, Limits, UnitKind, Variant
from router_ml.experiments.trial import Trial

RUNS = 60


def binomial_bound(runs: int, p: float, chance: float = 1e-4) -> int:
    """The least count that a share of `p` exceeds with a probability below `chance`."""
    total = 0.0
    for k in range(runs + 1):
        total += math.comb(runs, k) * p**k * (1 - p) ** (runs - k)
        if total > 1 - chance:
            return k
    return runs


@pytest.mark.parametrize("guarantee", [g for g in GUARANTEES if g.wrong], ids=lambda g: g.name)
def test_a_wrong_verdict_is_rare(guarantee: Guarantee) -> None:
    result = check(guarantee, RUNS, seed=11)
    assert result.share * RUNS <= binomial_bound(RUNS, guarantee.bound)


@pytest.mark.parametrize("guarantee", [g for g in GUARANTEES if g.count == "rollback"], ids=lambda g: g.name)
def test_real_harm_is_rolled_back_soon(guarantee: Guarantee) -> None:
    result = check(guarantee, RUNS, seed=11)
    assert (1 - result.share) * RUNS <= binomial_bound(RUNS, 1 - guarantee.bound)
    assert result.median_requests is not None
    assert guarantee.median_bound is not None
    assert result.median_requests <= guarantee.median_bound * 1.25


@pytest.mark.parametrize(
    "truth",
    [
        Truth(failure_difference=0.08),
        Truth(latency_ratio=1.3),
        Truth(share=0.6),
        Truth(latency_ratio=0.6),
        Truth(),
    ],
    ids=["failures", "latency", "split", "faster", "same"],
)
def test_the_fast_simulation_decides_as_a_trial_does(truth: Truth) -> None:
    limits = Limits(split_tolerance=0.1)
    worlds = draw(truth, 2, 3000, 5.0, np.random.default_rng(3))
    quick = endings(worlds, truth, limits)
    for run in range(2):
        experiment = Experiment(
            "e1", Variant("old"), Variant("new", policy="new"), 0.0, limits=limits, unit="request", judgement_s=0.0
        )
        trial = Trial(experiment)
        rows = requests_of(worlds, run)
        found, at = "HOLD", math.inf
        for end in range(EVERY, len(rows) + 1, EVERY):
            trial.add_all(rows[end - EVERY : end])
            verdict = trial.analyse(float(end))
            if verdict.kind != "HOLD":
                found, at = verdict.kind, end
                break
        expected = {"INVALID": quick.invalid[run], "ROLLBACK": quick.rollback[run], "SHIP": quick.ship[run]}
        first = min(expected, key=lambda kind: expected[kind])
        assert (found, at) == (first if math.isfinite(expected[first]) else "HOLD", expected[first])


@pytest.mark.parametrize("unit", ["request", "session"])
@pytest.mark.parametrize("delay_s", [0.0, 60.0, 1000.0])
def test_a_challenger_that_later_feedback_calls_wrong_is_rolled_back(unit: UnitKind, delay_s: float) -> None:
    verdicts = [judged_later(SimulatedFeedback(delay_s=delay_s), 3000, seed, unit=unit) for seed in range(8)]
    assert [verdict.kind for verdict in verdicts] == ["ROLLBACK"] * 8
    assert "failure rate among judged answers" in verdicts[0].summary


def test_arms_that_are_judged_unequally_often_are_not_taken_for_different() -> None:
    feedback = SimulatedFeedback(wrong=(0.2, 0.2), judged=(0.05, 0.10))
    kinds = [judged_later(feedback, 4000, seed).kind for seed in range(12)]
    assert kinds.count("HOLD") >= 11  # an error rate of .05 gives two of twelve with a probability of .1
    reasons = " ".join(judged_later(feedback, 8000, 0).reasons)
    assert "judged unevenly" in reasons


def test_nothing_is_shipped_on_the_strength_of_answers_nobody_judged() -> None:
    verdict = judged_later(SimulatedFeedback(judged=(0.0, 0.0)), 8000, 1)
    assert verdict.kind == "HOLD"
    assert any("no answer has been judged" in reason for reason in verdict.reasons)
    few = judged_later(SimulatedFeedback(wrong=(0.10, 0.10), judged=(0.01, 0.01)), 8000, 1)
    assert few.kind == "HOLD"
    assert any("of at least 100 units per arm with a judged answer" in reason for reason in few.reasons)
