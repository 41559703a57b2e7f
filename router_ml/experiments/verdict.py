"""The verdict on an experiment, its numbers in plain words, and the record from which it can be computed again.

The order is fixed: INVALID (the split is not fair, so nothing else can be believed), ROLLBACK (a guardrail is
crossed), SHIP (every guardrail is proven within its margin, with enough units, time and power), else HOLD.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from router_ml.errors import ExperimentError
from router_ml.experiments.evidence import Evidence, Moments, evidence_from, standard_error
from router_ml.experiments.experiment import (
    FORMAT,
    Experiment,
    Limits,
    canonical,
    experiment_from,
    experiment_row,
)
from router_ml.experiments.guardrails import Guardrail, guardrails
from router_ml.experiments.statistics import fair_split_log_e, log_e, mean_log_e, split_log_e, width_in_errors

Kind: TypeAlias = Literal["INVALID", "ROLLBACK", "SHIP", "HOLD"]

EXACT_FLOOR = 20  # units per arm before an exact test may speak
POWER = 0.8  # chance, at a true difference as large as the margin, of seeing that it is not zero


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known about one guardrail. Differences are challenger minus control."""

    metric: str
    title: str
    control: float | None  # mean of the arm (of logs, where `ratio`)
    challenger: float | None
    difference: float | None
    low: float | None  # the difference is above this, at the error rate of rolling back
    high: float | None  # the difference is below this, at the error rate of shipping
    tolerance: float
    margin: float
    ratio: bool
    evidence_harm: float | None  # log e-value; None where a confidence sequence decides
    harm: bool  # worse than tolerated
    fair: bool  # not worse by the margin
    better: bool
    power: float
    words: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of one look."""

    kind: Kind
    summary: str
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    units: dict[str, int]
    requests: dict[str, int]
    split_log_e: float
    split_proven: bool
    age_s: float

    @property
    def ends(self) -> bool:
        """Whether the challenger must not be served any more."""
        return self.kind in ("INVALID", "ROLLBACK")

    @property
    def better(self) -> tuple[str, ...]:
        """Titles of the guardrails on which the challenger is proven better."""
        return tuple(finding.title for finding in self.findings if finding.better)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form; floats carry nine digits, so that no machine's last bit matters."""
        rounded: dict[str, Any] = _round(asdict(self))
        return rounded


def judge(experiment: Experiment, evidence: Evidence, now_s: float) -> Verdict:
    """The verdict on what is known at a Unix time. Pure: equal arguments give equal verdicts."""
    limits = experiment.limits
    findings = tuple(_finding(rail, evidence, experiment) for rail in guardrails(limits))
    shadow = experiment.mode == "shadow"  # where everybody is served the control, there is no split to test
    split = 0.0 if shadow else split_log_e(evidence.units["challenger"], evidence.n)
    proven = _split_proven(evidence, limits)
    kind, reasons = _decide(experiment, evidence, findings, split, proven, now_s)
    return Verdict(
        kind=kind,
        summary=_summary(kind, experiment, evidence, findings, reasons),
        reasons=tuple(reasons),
        findings=findings,
        units={str(arm): n for arm, n in evidence.units.items()},
        requests={str(arm): n for arm, n in evidence.requests.items()},
        split_log_e=split,
        split_proven=proven,
        age_s=max(now_s - experiment.started_s, 0.0),
    )


def _decide(
    experiment: Experiment,
    evidence: Evidence,
    findings: tuple[Finding, ...],
    split: float,
    proven: bool,
    now_s: float,
) -> tuple[Kind, list[str]]:
    limits = experiment.limits
    if split >= math.log(1 / limits.alpha_split):
        share = evidence.units["challenger"] / max(evidence.n, 1)
        return "INVALID", [
            f"{share:.1%} of {evidence.n} units are in the challenger's arm instead of half: "
            "units are lost or assigned wrongly, so the arms cannot be compared"
        ]
    worse = [finding.words for finding in findings if finding.harm] + _system_trouble(evidence, experiment)
    if worse:
        return "ROLLBACK", worse
    missing = _missing(experiment, evidence, findings, proven, now_s)
    if missing:
        return "HOLD", missing
    return "SHIP", [finding.words for finding in findings if finding.control is not None]


def _missing(
    experiment: Experiment, evidence: Evidence, findings: tuple[Finding, ...], proven: bool, now_s: float
) -> list[str]:
    """What is still needed before shipping."""
    limits, missing = experiment.limits, []
    fewest = min(evidence.units.values())
    if experiment.mode == "shadow":
        return ["the challenger runs in shadow and serves nobody, so there is nothing to ship yet"]
    if fewest < limits.min_units:
        missing.append(f"{fewest} of at least {limits.min_units} units per arm")
    if now_s - experiment.started_s < limits.min_duration_s:
        missing.append(f"{(now_s - experiment.started_s) / 3600:.1f} of {limits.min_duration_s / 3600:.1f} hours")
    if not proven:
        missing.append(f"the split is not yet proven to be within {limits.split_tolerance:.0%} of one half")
    for finding in findings:
        if finding.control is None and finding.metric == "failure":
            missing.append("no outcomes yet")
        elif finding.control is not None and not finding.fair:
            missing.append(f"{finding.title} is not yet proven to be within its margin")
        elif finding.control is not None and finding.power < POWER and not _no_worse(finding):
            missing.append(f"power for {finding.title} is {finding.power:.0%} of at least {POWER:.0%}")
    return missing


def _no_worse(finding: Finding) -> bool:
    """Proven not to be worse at all: then it does not matter whether a worsening could have been seen."""
    return finding.high is not None and finding.high < 0


def _finding(rail: Guardrail, evidence: Evidence, experiment: Experiment) -> Finding:
    control, challenger = _arms(rail, evidence)
    both, fewest = control.n + challenger.n, min(control.n, challenger.n)
    limits = experiment.limits
    if fewest < 2:
        return Finding(
            rail.metric, rail.title, None, None, None, None, None, rail.tolerance, rail.margin, rail.ratio,
            None, False, False, False, 0.0, f"{rail.title}: nothing known yet",
        )  # fmt: skip
    error = standard_error(control, challenger, share=rail.exact)
    difference = challenger.mean - control.mean
    widths = {
        side: error * width_in_errors(both, alpha, limits.planned_units)
        for side, alpha in (("harm", rail.alpha_harm), ("ship", limits.alpha_ship), ("better", rail.alpha_better))
    }
    low, high = difference - widths["harm"], difference + widths["ship"]
    evidence_harm: float | None = None
    if rail.exact:
        values = {side: float(log_e(evidence.row(f"{rail.metric}.{side}"))) for side in ("harm", "fair", "better")}
        if rail.metric == "failure":
            # Whole units know more, first requests know sooner; the mean of two e-values is an e-value.
            values["harm"] = mean_log_e(values["harm"], float(log_e(evidence.row("first.harm"))))
        evidence_harm = values["harm"]
        speaks = fewest >= EXACT_FLOOR
        harm = speaks and values["harm"] >= math.log(1 / rail.alpha_harm)
        fair = values["fair"] >= math.log(1 / limits.alpha_ship)
        better = speaks and values["better"] >= math.log(1 / rail.alpha_better)
    else:
        speaks = fewest >= limits.min_units
        harm = speaks and low > rail.tolerance
        fair = speaks and high < rail.margin
        better = speaks and difference + widths["better"] < 0
    power = _power(rail.margin, error, widths["ship"])
    return Finding(
        rail.metric, rail.title, control.mean, challenger.mean, difference, low, high, rail.tolerance, rail.margin,
        rail.ratio, evidence_harm, harm, fair, better, power,
        _words(rail, control.mean, challenger.mean, low, high, harm=harm, fair=fair, better=better),
    )  # fmt: skip


def _arms(rail: Guardrail, evidence: Evidence) -> tuple[Moments, Moments]:
    """What is known of both arms; of failures that is first requests alone, until there are enough whole units."""
    arms = evidence.moments[rail.metric]
    if rail.metric == "failure" and min(m.n for m in arms.values()) < EXACT_FLOOR:
        arms = evidence.first
    return arms["control"], arms["challenger"]


def _power(margin: float, error: float, width: float) -> float:
    """Chance of telling a true difference of `margin` from none at this size of sample."""
    if error == 0:
        return 1.0
    return 0.5 * math.erfc(-(margin - width) / error / math.sqrt(2))


def _split_proven(evidence: Evidence, limits: Limits) -> bool:
    log_e_fair = fair_split_log_e(evidence.units["challenger"], evidence.n, limits.split_tolerance)
    return log_e_fair >= math.log(1 / limits.alpha_split_ship)


def _system_trouble(evidence: Evidence, experiment: Experiment) -> list[str]:
    """The whole system, both arms together: on one shared host a bad challenger makes the control bad too."""
    limits, goal = experiment.limits, math.log(2 / experiment.limits.alpha_system)
    trouble: list[str] = []
    if evidence.n < EXACT_FLOOR:
        return trouble
    if float(log_e(evidence.row("system.failure"))) >= goal:
        trouble.append(
            f"whole system: both arms together fail in more than {limits.system_failure_ceiling:.0%} of units"
        )
    if float(log_e(evidence.row("system.slow"))) >= goal:
        trouble.append(
            f"whole system: more than {limits.system_slow_ceiling:.0%} of both arms' answers take longer than "
            f"{limits.system_slow_s:g} s"
        )
    return trouble


def _words(
    rail: Guardrail, control: float, challenger: float, low: float, high: float, *, harm: bool, fair: bool, better: bool
) -> str:
    if rail.ratio:
        change = f"{math.exp(challenger - control) - 1:+.1%}"
        span = f"between {math.exp(low) - 1:+.1%} and {math.exp(high) - 1:+.1%}"
        allowed = f"{math.exp(rail.margin) - 1:+.0%}"
        levels = ""
    elif rail.exact:
        change = f"{(challenger - control) * 100:+.1f} points"
        span = f"between {low * 100:+.1f} and {high * 100:+.1f} points"
        allowed = f"{rail.margin * 100:+.0f} points"
        levels = f" ({control:.1%} to {challenger:.1%})"
    else:
        change, span, allowed = f"{challenger - control:+.6f} USD", f"between {low:+.6f} and {high:+.6f}", ""
        allowed, levels = f"{rail.margin:+g} USD", ""
    state = "worse" if harm else "better" if better else "within its margin" if fair else "not decided"
    return f"{rail.title} {change}{levels}, {span}; margin {allowed}: {state}"


def _summary(
    kind: Kind, experiment: Experiment, evidence: Evidence, findings: tuple[Finding, ...], reasons: list[str]
) -> str:
    names = f"{experiment.challenger.name!r} against {experiment.control.name!r}"
    begun = sum(arm.n for arm in evidence.first.values())
    size = f"{evidence.n} units" if evidence.n else f"{begun} units begun"
    if kind == "INVALID":
        return f"INVALID: {names} after {size}: {reasons[0]}."
    if kind == "ROLLBACK":
        return f"ROLLBACK: {names} after {size}: {reasons[0]}."
    if kind == "SHIP":
        gains = [finding.title for finding in findings if finding.better]
        gain = f"better in {' and '.join(gains)}, and " if gains else ""
        return f"SHIP: {names} after {size}: {gain}no guardrail is worse by its margin."
    return f"HOLD: {names} after {size}: {reasons[0] if reasons else 'nothing decided'}."


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item) for item in value]
    return value


def verdict_record(experiment: Experiment, evidence: Evidence, now_s: float) -> str:
    """The verdict with all it rests on, as canonical JSON."""
    return canonical(
        {
            "format": FORMAT,
            "experiment": experiment_row(experiment),
            "evidence": evidence.as_dict(),
            "at_s": now_s,
            "verdict": judge(experiment, evidence, now_s).as_dict(),
        }
    )


def recompute(record: str) -> str:
    """The record again, computed from the evidence it holds; equal bytes mean that the verdict stands.

    Raises `ExperimentError` where it is not a record."""
    try:
        row = json.loads(record)
        experiment = experiment_from(row["experiment"])
        evidence = evidence_from(row["evidence"], experiment.limits)
        return verdict_record(experiment, evidence, row["at_s"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError(f"this is not a record of a verdict: {error}") from error
