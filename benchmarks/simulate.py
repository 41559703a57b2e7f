"""Simulated experiments with a known truth: how often each verdict is wrong, and how soon it is right.

    python -m benchmarks.simulate                      two experiments, analysis by analysis: one rolls back, one ships
    python -m benchmarks.simulate --latency-ratio 1.2  one experiment with a truth of your choice (see --help)
    python -m benchmarks.simulate --table              every guaranteed error rate, with --runs 10000 (the default)
    python -m benchmarks.simulate --table --runs 500   the same in a few minutes

Many experiments are simulated at once in arrays; a test compares them with what `Trial` decides on the same data.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from router_ml.experiments.experiment import Arm, Experiment, Limits, UnitKind, Variant
from router_ml.experiments.guardrails import EXACT_FLOOR, guardrails
from router_ml.experiments.statistics import (
    BETS,
    benefit_growth,
    fair_split_log_e,
    harm_growth,
    log_e,
    split_log_e,
    width_in_errors,
)
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import UnitRequest
from router_ml.experiments.verdict import POWER, GuardrailResult, Verdict

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

EVERY = 50  # requests between interim analyses
_CHUNK = 50  # runs at once: the working set stays within a few hundred megabytes


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true in a simulated world. Differences are challenger minus control."""

    failure: float = 0.10
    failure_end: float | None = None  # the common level drifts to this over the experiment
    failure_difference: float = 0.0
    latency_median_s: float = 2.5
    latency_log_sd: float = 0.8
    latency_ratio: float = 1.0
    latency_drift_log: float = 0.0  # the common log latency drifts by this over the experiment
    service_log_sd: float = 0.3
    service_ratio: float = 1.0
    share: float = 0.5  # of units that land in the challenger's arm
    unit_requests: int = 1
    unit_log_sd: float = 0.0  # of log latency between units
    unit_failure_spread: float = 0.0  # a unit's own failure chance: Beta with this intraclass correlation
    ramped: bool = False  # requests arrive slowly first: the drift happens mostly while coverage is small


@dataclass(frozen=True, slots=True)
class SimulatedUnits:
    """Units of several simulated experiments, one row a run; in the order in which they complete."""

    challenger: Bools
    first_failure: Floats  # of each unit's first request
    failure: Floats
    log_latency: Floats
    slo_miss: Floats
    log_service: Floats


@dataclass(frozen=True, slots=True)
class Endings:
    """For each run the requests at the first analysis that gave a verdict; infinity where none did."""

    invalid: Floats
    rollback: Floats
    ship: Floats
    ship_better: Floats


def draw(truth: Truth, runs: int, requests: int, slo_s: float, generator: np.random.Generator) -> SimulatedUnits:
    """Draw units; the share of the experiment's time that has passed is squared under a ramp."""
    units, size = requests // truth.unit_requests, truth.unit_requests
    shape = (runs, units)
    challenger = generator.random(shape) < truth.share
    passed = np.linspace(0.0, 1.0, units)
    passed = np.sqrt(passed) if truth.ramped else passed
    level = truth.failure + passed * ((truth.failure_end or truth.failure) - truth.failure)
    chance = np.clip(level + challenger * truth.failure_difference, 0.0, 1.0)
    if truth.unit_failure_spread:
        scale = 1 / truth.unit_failure_spread - 1
        chance = generator.beta(np.maximum(chance * scale, 1e-9), np.maximum((1 - chance) * scale, 1e-9))
    wrong = generator.random((*shape, size)) < chance[..., np.newaxis]
    centre = math.log(truth.latency_median_s) + passed * truth.latency_drift_log
    centre = centre + challenger * math.log(truth.latency_ratio)
    centre = centre + truth.unit_log_sd * generator.standard_normal(shape)
    within = generator.standard_normal((*shape, size)) * truth.latency_log_sd + centre[..., np.newaxis]
    service = generator.standard_normal(shape) * truth.service_log_sd + challenger * math.log(truth.service_ratio)
    return SimulatedUnits(
        challenger,
        wrong[..., 0].astype(float),
        wrong.mean(-1),
        within.mean(-1),
        (within > math.log(slo_s)).mean(-1),
        service,
    )


def endings(simulated: SimulatedUnits, truth: Truth, limits: Limits) -> Endings:
    """Return the first analysis at which each verdict was given, with one every `EVERY` requests.

    Every request is answered and judged here. So the guardrails of missing answers and clarifying questions are proven
    before there are `min_units`, and are left out."""
    runs, units = simulated.challenger.shape
    step = max(EVERY // truth.unit_requests, 1)
    ends = np.arange(step, units + 1, step)
    partners = _partners(simulated.challenger)
    n_challenger: Counts = np.cumsum(simulated.challenger, axis=1, dtype=np.int64)[:, ends - 1]
    n_control = ends - n_challenger
    fewest = np.minimum(n_challenger, n_control)
    invalid, proven = _splits(n_challenger, ends, limits)
    harm = np.zeros((runs, len(ends)), dtype=bool)
    better, fair = harm.copy(), ~harm
    for rail in guardrails(limits):
        if rail.metric in ("cost_usd", "no_answer", "clarified"):
            continue
        value: Floats = getattr(simulated, rail.metric)
        error, difference = _difference(value, simulated.challenger, ends)
        widths = [
            np.array([width_in_errors(int(n), alpha, limits.planned_units) for n in ends])
            for alpha in (rail.alpha_harm, limits.alpha_ship, rail.alpha_better)
        ]
        if rail.exact:
            pairs = _pair_differences(value, simulated.challenger, partners)
            harms = _log_e_at(harm_growth(pairs, rail.tolerance), partners, ends)
            fairs = _log_e_at(benefit_growth(pairs, rail.margin), partners, ends)
            betters = _log_e_at(benefit_growth(pairs, 0.0), partners, ends)
            if rail.metric == "failure" and truth.unit_requests > 1:
                first = _pair_differences(simulated.first_failure, simulated.challenger, partners)
                early = _log_e_at(harm_growth(first, rail.tolerance), partners, ends)
                harms = np.logaddexp(harms, early) - math.log(2)
            harm |= (fewest >= EXACT_FLOOR) & (harms >= math.log(1 / rail.alpha_harm))
            fair &= fairs >= math.log(1 / limits.alpha_ship)
            better |= (fewest >= EXACT_FLOOR) & (betters >= math.log(1 / rail.alpha_better))
        else:
            enough = fewest >= limits.min_units
            harm |= enough & (difference - error * widths[0] > rail.tolerance)
            fair &= enough & (difference + error * widths[1] < rail.margin)
            better |= enough & (difference + error * widths[2] < 0)
        needed = NormalDist().inv_cdf(POWER)
        powerful = (rail.margin - error * widths[1]) >= needed * error
        fair &= powerful | (difference + error * widths[1] < 0)
    ship = fair & proven & (fewest >= limits.min_units) & ~harm & ~invalid
    scale = float(truth.unit_requests)
    return Endings(
        _first(invalid, ends) * scale,
        _first(harm & ~invalid, ends) * scale,
        _first(ship, ends) * scale,
        _first(ship & better, ends) * scale,
    )


def _first(seen: Bools, ends: Counts) -> Floats:
    return np.where(seen.any(axis=1), ends[seen.argmax(axis=1)], np.inf)


def _difference(value: Floats, challenger: Bools, ends: Counts) -> tuple[Floats, Floats]:
    """Return the standard error and the difference of the arms' means at each analysis."""
    shifted = value - value.mean()  # the variance of sums of squares would lose digits otherwise
    parts = []
    for mask in (challenger, ~challenger):
        n = np.maximum(np.cumsum(mask, axis=1)[:, ends - 1], 1)
        total = np.cumsum(shifted * mask, axis=1)[:, ends - 1]
        square = np.cumsum(shifted**2 * mask, axis=1)[:, ends - 1]
        variance = np.maximum(square - total**2 / n, 0.0) / np.maximum(n - 1, 1)
        parts.append((total / n, variance / n))
    return np.sqrt(parts[0][1] + parts[1][1]), parts[0][0] - parts[1][0]


def _partners(challenger: Bools) -> Counts:
    """Return for each unit the index of the earlier one it forms a pair with, as `Evidence` does; -1 where it waits."""
    partners = np.full(challenger.shape, -1, dtype=np.int64)
    for run, row in enumerate(challenger.tolist()):
        waiting: list[int] = []  # units of one arm; the latest is the first to find a partner
        for index, arm in enumerate(row):
            if waiting and row[waiting[-1]] != arm:
                partners[run, index] = waiting.pop()
            else:
                waiting.append(index)
    return partners


def _pair_differences(value: Floats, challenger: Bools, partners: Counts) -> Floats:
    """Return challenger minus control for each pair, at the place of its later unit."""
    difference = value - np.take_along_axis(value, np.maximum(partners, 0), axis=1)
    signed: Floats = np.where(challenger, difference, -difference)
    return signed


def _log_e_at(growth: Floats, partners: Counts, ends: Counts) -> Floats:
    step = int(ends[0])
    used = np.where(partners[..., np.newaxis] >= 0, growth, 0.0)[:, : int(ends[-1])]
    blocks = used.reshape(used.shape[0], len(ends), step, len(BETS)).sum(axis=2)
    return log_e(np.cumsum(blocks, axis=1))


def _splits(n_challenger: Counts, ends: Counts, limits: Limits) -> tuple[Bools, Bools]:
    """Return for each analysis whether the split is proven unfair, and whether it is proven fair."""
    unfair, fair = np.zeros(n_challenger.shape, dtype=bool), np.zeros(n_challenger.shape, dtype=bool)
    wrong, right = math.log(1 / limits.alpha_split), math.log(1 / limits.alpha_split_ship)
    for column, n in enumerate(ends.tolist()):
        counts, where = np.unique(n_challenger[:, column], return_inverse=True)
        unfair[:, column] = np.array([split_log_e(k, n) >= wrong for k in counts.tolist()])[where]
        near = [fair_split_log_e(k, n, limits.split_tolerance) >= right for k in counts.tolist()]
        fair[:, column] = np.array(near)[where]
    return unfair, fair


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One line of the table: a world, which verdict is counted in it, and how often it may or must come."""

    name: str
    truth: Truth
    count: str  # "false", "rollback" or "ship"
    bound: float  # share of runs: at most where the verdict is wrong, at least where it is right
    median_bound: float | None = None  # requests
    requests: int = 10_000  # length of a run

    @property
    def wrong(self) -> bool:
        """Return whether the verdict that is counted would be wrong."""
        return self.count == "false" or self.bound < 0.5


_SESSIONS = Truth(unit_requests=10, unit_log_sd=0.8, unit_failure_spread=0.3)

GUARANTEES: tuple[Guarantee, ...] = (
    Guarantee("A/A", Truth(), "false", 0.05),
    Guarantee("A/A, rare failures (0.2 %)", Truth(failure=0.002), "false", 0.05),
    Guarantee(
        "A/A, ramp with drifting baseline",
        Truth(failure=0.04, failure_end=0.20, latency_drift_log=0.7, ramped=True),
        "false",
        0.05,
    ),
    Guarantee("A/A, clustered sessions", _SESSIONS, "false", 0.05),
    Guarantee("5-point drop, 90 to 85 %", Truth(failure_difference=0.05), "rollback", 0.99, 2000),
    Guarantee("5-point drop, 95 to 90 %", Truth(failure=0.05, failure_difference=0.05), "rollback", 0.99, 2000),
    Guarantee(
        "5-point drop, 90 to 85 %, clustered sessions of 10",
        replace(_SESSIONS, failure_difference=0.05),
        "rollback",
        0.99,
        9000,
        40_000,
    ),
    Guarantee("latency +10 %, log sd 0.8", Truth(latency_ratio=1.10), "rollback", 0.99, 3000),
    Guarantee("drop exactly at the margin", Truth(failure_difference=0.05), "ship", 0.025),
    Guarantee("latency exactly at the margin", Truth(latency_ratio=1.10), "ship", 0.025),
    Guarantee("48/52 split", Truth(share=0.52), "ship", 0.02),
    Guarantee("30 % faster, as good", Truth(latency_ratio=0.7), "ship", 0.70),
)


@dataclass(frozen=True, slots=True)
class GuaranteeResult:
    """What was counted for a guarantee."""

    guarantee: Guarantee
    runs: int
    share: float
    median_requests: float | None
    holds: bool


def check(guarantee: Guarantee, runs: int, seed: int = 0, limits: Limits | None = None) -> GuaranteeResult:
    """Simulate one guarantee."""
    limits = limits or Limits()
    generator = np.random.default_rng([seed, len(guarantee.name), runs])
    parts = []
    for start in range(0, runs, _CHUNK):
        size = min(_CHUNK, runs - start)
        simulated = draw(guarantee.truth, size, guarantee.requests, limits.slo_s or 5.0, generator)
        parts.append(endings(simulated, guarantee.truth, limits))
    rollback = np.concatenate([part.rollback for part in parts])
    ship = np.concatenate([part.ship for part in parts])
    better = np.concatenate([part.ship_better for part in parts])
    ended = np.minimum(rollback, np.concatenate([part.invalid for part in parts]))
    if guarantee.count == "false":
        hit = np.isfinite(rollback) | np.isfinite(better)
    elif guarantee.count == "rollback":
        hit = np.isfinite(rollback)
    else:
        hit = np.isfinite(ship) & (ship < ended)
    share = float(hit.mean())
    median = float(np.median(rollback if guarantee.count == "rollback" else ship))
    holds = share <= guarantee.bound if guarantee.wrong else share >= guarantee.bound
    if guarantee.median_bound is not None:
        holds = holds and median <= guarantee.median_bound
    return GuaranteeResult(guarantee, runs, share, median if math.isfinite(median) else None, holds)


_COUNTED = {"false": "rolled back or shipped as better", "rollback": "rolled back", "ship": "shipped"}


def table(runs: int, seed: int) -> list[GuaranteeResult]:
    """Check every guarantee and print each result as it comes."""
    print(f"| world ({runs} runs, an analysis every {EVERY} requests) | counted | share | bound | median requests |")
    print("|---|---|---|---|---|")
    results = []
    for guarantee in GUARANTEES:
        result = check(guarantee, runs, seed=seed)
        results.append(result)
        sign = "<=" if guarantee.wrong else ">="
        unknown = guarantee.count == "false" or result.median_requests is None
        median = "" if unknown else f"{result.median_requests:,.0f}"
        if guarantee.median_bound is not None:
            median += f" (<= {guarantee.median_bound:,.0f})"
        flag = "" if result.holds else " OUTSIDE"
        print(
            f"| {guarantee.name} | {_COUNTED[guarantee.count]} | {result.share:.2%}{flag} | {sign} "
            f"{guarantee.bound:.1%} | {median} |",
            flush=True,
        )
    return results


@dataclass(frozen=True, slots=True)
class SimulatedFeedback:
    """How answers of a simulated experiment are judged by later feedback. Pairs are of control and challenger."""

    wrong: tuple[float, float] = (0.07, 0.33)  # shares of wrong answers
    judged: tuple[float, float] = (1.0, 1.0)  # shares of answers that get feedback
    delay_s: float = 60.0


def judged_later(feedback: SimulatedFeedback, requests: int, seed: int, *, unit: UnitKind = "request") -> Verdict:
    """Run one experiment whose answers are judged by feedback alone; a request every 5 seconds, sessions of five.

    Return the first verdict that ends or ships it, else the last."""
    generator = random.Random(seed)
    trial = Trial(Experiment("simulated", Variant("old"), Variant("new", policy="new"), 0.0, unit=unit))
    arm: Arm = "control"
    for index in range(requests):
        if unit == "request" or index % 5 == 0:
            arm = "challenger" if generator.random() < 0.5 else "control"
        name, side, at_s = f"d{index}", int(arm == "challenger"), 5.0 * index
        session = name if unit == "request" else f"s{index // 5}"
        trial.add(UnitRequest(name, session, arm, at_s, None, generator.lognormvariate(0.9, 0.5), 0.02, 0.0))
        if generator.random() < feedback.judged[side]:
            failure = float(generator.random() < feedback.wrong[side])
            trial.judge_request(name, failure, at_s=at_s + feedback.delay_s, event_id=name)
        if index % EVERY == EVERY - 1 and (verdict := trial.analyse(at_s)).kind != "HOLD":
            return verdict
    return trial.analyse(5.0 * requests + trial.experiment.judgement_s)


def requests_of(simulated: SimulatedUnits, run: int, started_s: float = 0.0, every_s: float = 1.0) -> list[UnitRequest]:
    """Return one run of a world with single-request units as the requests `Trial` takes."""
    rows = []
    for index in range(simulated.challenger.shape[1]):
        arm: Arm = "challenger" if simulated.challenger[run, index] else "control"
        rows.append(
            UnitRequest(
                decision_id=f"d{index}",
                unit=f"u{index}",
                arm=arm,
                at_s=started_s + index * every_s,
                failure=float(simulated.failure[run, index]),
                latency_s=math.exp(simulated.log_latency[run, index]),
                service_s=math.exp(simulated.log_service[run, index]),
                cost_usd=0.0,
            )
        )
    return rows


def run_one(truth: Truth, requests: int, seed: int, limits: Limits | None = None) -> Verdict:
    """Run one experiment through `Trial` and print its interim analyses until a verdict stands."""
    limits = limits or Limits()
    print(f"The truth, which the experiment does not know: {_described(truth)}")
    experiment = Experiment(
        "simulated", Variant("old"), Variant("new", policy="new"), 0.0, limits=limits, unit="request", judgement_s=0.0
    )
    simulated = draw(replace(truth, unit_requests=1), 1, requests, limits.slo_s or 5.0, np.random.default_rng(seed))
    trial = Trial(experiment)
    verdict = trial.analyse(0.0)
    rows = requests_of(simulated, 0)
    for start in range(0, len(rows), EVERY):
        trial.add_all(rows[start : start + EVERY])
        verdict = trial.analyse(float(start + EVERY))
        if verdict.kind != "HOLD":
            break
        if (start // EVERY) % 20 == 19:
            print(f"{sum(verdict.requests.values()):6,} requests  HOLD: {_progress(verdict)}")
    print(f"{sum(verdict.requests.values()):6,} requests  {verdict.summary}")
    printed = verdict.summary if verdict.kind == "ROLLBACK" else ""
    for finding in _shown(verdict) if verdict.kind != "INVALID" else ():
        if finding.words not in printed:
            print(f"                 {finding.words}")
    print(_MEANINGS[verdict.kind])
    return verdict


_MEANINGS = {
    "ROLLBACK": "So everybody is served the old variant from now on, until a person clears the experiment.",
    "INVALID": "So everybody is served the old variant: the arms cannot be compared until their split is repaired.",
    "SHIP": "So the new variant can be recommended; a person makes it everybody's.",
    "HOLD": "So nothing is decided: both variants stay, and the experiment goes on.",
}


def _described(truth: Truth) -> str:
    failure = f"{truth.failure:.1%} of the old variant's answers fail"
    if truth.failure_difference:
        failure += f", {truth.failure + truth.failure_difference:.1%} of the new one's"
    else:
        failure += ", and as many of the new one's"
    latency = "both are equally fast"
    if truth.latency_ratio != 1:
        latency = (
            f"the new one takes {abs(truth.latency_ratio - 1):.0%} {'less' if truth.latency_ratio < 1 else 'more'} time"
        )
    split = (
        "" if truth.share == 0.5 else f"; {truth.share:.0%} of the requests land in the new one's arm instead of half"
    )
    return f"{failure}; {latency}{split}."


def _shown(verdict: Verdict) -> list[GuardrailResult]:
    """Return what is known of each guardrail that the simulation varies."""
    constant = ("cost_usd", "no_answer", "clarified")
    return [finding for finding in verdict.findings if finding.control is not None and finding.metric not in constant]


def _progress(verdict: Verdict) -> str:
    """Return what is known before a verdict, and what is missing."""
    known = _shown(verdict)
    fair = sum(finding.fair for finding in known)
    first = known[0].words.partition(";")[0] + "; " if known else ""
    split = "" if verdict.split_proven else ", the split not yet proven even"
    return f"{first}{fair} of {len(known)} guardrails proven so far{split}"


_EXAMPLES = (
    ("A challenger that is worse", Truth(failure_difference=0.05)),
    ("A challenger that is as good, and faster", Truth(latency_ratio=0.8, service_ratio=0.8)),
)


def run_examples(requests: int, seed: int) -> None:
    """Run an experiment that has to be rolled back, and one that may ship."""
    print(
        f"Half of the requests go to a new variant. After every {EVERY} requests the experiment compares both arms\n"
        "and says ROLLBACK (worse), SHIP (proven not worse in everything), INVALID (unfair split) or HOLD (not known)."
    )
    for title, truth in _EXAMPLES:
        print(f"\n{title}")
        run_one(truth, requests, seed)
    print(
        "\nOne run may be luck: 'python -m benchmarks.simulate --table --runs 500' counts how often verdicts are wrong."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="check every guaranteed error rate")
    parser.add_argument("--one", action="store_true", help="one experiment, also where both variants are equal")
    parser.add_argument("--runs", type=int, default=10_000, help="runs per line of the table (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=10_000, help="length of the one experiment")
    parser.add_argument("--failure", type=float, default=0.10, help="control's failure rate")
    parser.add_argument("--failure-difference", type=float, default=0.0, help="challenger minus control")
    parser.add_argument("--latency-ratio", type=float, default=1.0, help="challenger over control")
    parser.add_argument("--share", type=float, default=0.5, help="share of units that land in the challenger's arm")
    parser.add_argument("--json", help="write the table to this file as well")
    options = parser.parse_args(arguments)
    if not options.table:
        truth = Truth(
            failure=options.failure,
            failure_difference=options.failure_difference,
            latency_ratio=options.latency_ratio,
            share=options.share,
        )
        if truth == Truth() and not options.one:
            run_examples(options.requests, options.seed)
        else:
            run_one(truth, options.requests, options.seed)
        return 0
    began = time.perf_counter()
    results = table(options.runs, options.seed)
    print(f"\n{sum(r.holds for r in results)} of {len(results)} hold, {time.perf_counter() - began:.0f} s")
    if options.json:
        rows = [
            {"name": r.guarantee.name, "share": r.share, "median": r.median_requests, "holds": r.holds} for r in results
        ]
        with open(options.json, "w", encoding="utf-8") as handle:
            json.dump({"runs": options.runs, "results": rows}, handle, indent=2)
    return 0 if all(result.holds for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
