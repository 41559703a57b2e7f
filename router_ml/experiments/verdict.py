"""The verdict on an experiment, its numbers as text, and the record from which it can be computed again.

The order is fixed: INVALID (the split is not fair, so nothing else can be believed), ROLLBACK (a guardrail is
crossed), SHIP (every guardrail is proven within its margin, with enough units, judgements, time and power), else HOLD.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from router_ml.errors import ExperimentError
from router_ml.experiments.evidence import EARLY, Evidence, Moments, evidence_from, standard_error
from router_ml.experiments.experiment import Experiment, Limits, canonical, experiment_from, experiment_row
from router_ml.experiments.guardrails import EXACT_FLOOR, Guardrail, guardrails
from router_ml.experiments.statistics import fair_split_log_e, log_e, mean_log_e, split_log_e, width_in_errors

Kind: TypeAlias = Literal["INVALID", "ROLLBACK", "SHIP", "HOLD"]

RECORD_FORMAT = 2
POWER = 0.8  # chance, at a true difference as large as the margin, of seeing that it is not zero
_CHANGED_SHARE = 0.01  # of units that were served by both arms: more of them forbid shipping


@dataclass(frozen=True, slots=True)
class GuardrailResult:
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
    evidence_harm: float | None  # log e-value; None if a confidence sequence decides
    harm: bool  # worse than tolerated
    fair: bool  # not worse by the margin
    better: bool
    power: float
    words: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of one interim analysis. Counts are per arm."""

    kind: Kind
    summary: str
    reasons: tuple[str, ...]
    findings: tuple[GuardrailResult, ...]
    begun: dict[str, int]  # units with at least one request
    units: dict[str, int]  # complete units
    judged: dict[str, int]  # units with a judged answer
    requests: dict[str, int]  # of complete units
    changed_arm: int  # units that were served by both arms
    split_log_e: float
    split_proven: bool
    age_s: float

    @property
    def ends(self) -> bool:
        """Return whether the challenger must not be served any more."""
        return self.kind in ("INVALID", "ROLLBACK")

    @property
    def better(self) -> tuple[str, ...]:
        """Return the titles of the guardrails on which the challenger is proven better."""
        return tuple(finding.title for finding in self.findings if finding.better)

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form; floats carry nine digits, so that no machine's last bit matters."""
        rounded: dict[str, Any] = _round(asdict(self))
        return rounded


def judge(experiment: Experiment, evidence: Evidence, now_s: float) -> Verdict:
    """Return the verdict on what is known at a Unix time. Pure: equal arguments give equal verdicts."""
    findings = tuple(_result(rail, evidence, experiment.limits) for rail in guardrails(experiment.limits))
    shadow = experiment.mode == "shadow"  # every unit is served the control, so there is no split to test
    split = 0.0 if shadow else split_log_e(evidence.counts["begun"]["challenger"], evidence.total("begun"))
    proven = _split_proven(evidence, experiment.limits)
    kind, reasons = _decide(experiment, evidence, findings, split, proven, now_s)
    changed = _changed_arm(evidence)
    reasons += [changed] if changed and changed not in reasons else []
    counts = {name: {str(arm): n for arm, n in arms.items()} for name, arms in evidence.counts.items()}
    return Verdict(
        kind=kind,
        summary=_summary(kind, experiment, evidence, findings, reasons),
        reasons=tuple(reasons),
        findings=findings,
        begun=counts["begun"],
        units=counts["units"],
        judged=counts["judged"],
        requests=counts["requests"],
        changed_arm=evidence.total("changed_arm"),
        split_log_e=split,
        split_proven=proven,
        age_s=max(now_s - experiment.started_s, 0.0),
    )


def _decide(
    experiment: Experiment,
    evidence: Evidence,
    findings: tuple[GuardrailResult, ...],
    split: float,
    proven: bool,
    now_s: float,
) -> tuple[Kind, list[str]]:
    if split >= math.log(1 / experiment.limits.alpha_split):
        begun = evidence.total("begun")
        share = evidence.counts["begun"]["challenger"] / max(begun, 1)
        return "INVALID", [
            f"{share:.1%} of {begun} units are in the challenger's arm instead of half: "
            "units are lost or assigned wrongly, so the arms cannot be compared"
        ]
    worse = _system_trouble(evidence, experiment.limits) + [finding.words for finding in findings if finding.harm]
    if worse:
        return "ROLLBACK", worse
    missing = _missing(experiment, evidence, findings, proven, now_s)
    if missing:
        return "HOLD", missing
    return "SHIP", [finding.words for finding in findings if finding.control is not None]


def _missing(
    experiment: Experiment, evidence: Evidence, findings: tuple[GuardrailResult, ...], proven: bool, now_s: float
) -> list[str]:
    """Return what is still needed before shipping."""
    limits, missing = experiment.limits, []
    fewest, age_s = min(evidence.units.values()), now_s - experiment.started_s
    if experiment.mode == "shadow":
        return ["the challenger runs in shadow and serves nobody, so there is nothing to ship yet"]
    if fewest < limits.min_units:
        missing.append(f"{fewest} of at least {limits.min_units} units per arm")
    missing += _missing_judgements(evidence, limits)
    if age_s < limits.min_duration_s:
        missing.append(f"{age_s / 3600:.1f} of {limits.min_duration_s / 3600:.1f} hours")
    if not proven:
        missing.append(f"the split is not yet proven to be within {limits.split_tolerance:.0%} of one half")
    changed = evidence.total("changed_arm")
    if changed > _CHANGED_SHARE * evidence.n:
        missing.append(_changed_arm(evidence))
    for finding in findings:
        if finding.control is None:
            missing += ["no latency is known yet"] if finding.metric == "log_latency" else []
        elif not finding.fair:
            missing.append(f"{finding.title} is not yet proven to be within its margin")
        elif finding.power < POWER and not _no_worse(finding):
            missing.append(f"power for {finding.title} is {finding.power:.0%} of at least {POWER:.0%}")
    return missing + _waiting(experiment, evidence) if missing else []


def _missing_judgements(evidence: Evidence, limits: Limits) -> list[str]:
    """Return why nothing can be said about quality, if so."""
    judged, total = evidence.counts["judged"], evidence.total("judged")
    if split_log_e(judged["challenger"], total) >= math.log(1 / limits.alpha_split):
        return [
            f"answers are judged unevenly: {judged['control']} units of control, {judged['challenger']} of challenger; "
            "so the judged ones may not speak for the others"
        ]
    if min(judged.values()) >= limits.min_judged:
        return []
    return [
        "no answer has been judged, so nothing is known about quality; record feedback (thumbs, tool errors)"
        if not total
        else f"{min(judged.values())} of at least {limits.min_judged} units per arm with a judged answer"
    ]


def _waiting(experiment: Experiment, evidence: Evidence) -> list[str]:
    """Return what has begun but does not count yet."""
    parts = []
    unfinished, unsealed = evidence.total("begun") - evidence.n, evidence.n - evidence.total("sealed")
    if unfinished:
        parts.append(
            f"units still open: {unfinished} (a session is complete after {experiment.unit_requests} requests, or "
            f"{_duration(experiment.unit_idle_s)} without one)"
        )
    if unsealed:
        parts.append(
            f"complete units that wait for judgements: {unsealed} (until {_duration(experiment.judgement_s)} after "
            "their last request)"
        )
    return parts


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} seconds"


def _changed_arm(evidence: Evidence) -> str:
    """Return how many units were served by both arms; "" if none was."""
    changed = evidence.total("changed_arm")
    if not changed:
        return ""
    return f"{changed} of {evidence.n} units were served by both arms; they count with their requests before the change"


def _no_worse(finding: GuardrailResult) -> bool:
    """Return whether it is proven not to be worse at all: then the power to see a worsening does not matter."""
    return finding.high is not None and finding.high < 0


@dataclass(frozen=True, slots=True)
class _Sample:
    """The values of both arms that a guardrail is decided on."""

    control: Moments
    challenger: Moments
    of: str = ""  # which values, where not all

    @property
    def fewest(self) -> int:
        return min(self.control.n, self.challenger.n)


def _sample(rail: Guardrail, evidence: Evidence) -> tuple[_Sample, float | None]:
    """Return the values that decide, and the log e-value of harm.

    Whole units know more, first requests and judgements know sooner. The mean of two e-values is an e-value; the
    figures shown are of the side with the larger one."""
    arms = evidence.moments[rail.metric]
    whole = _Sample(arms["control"], arms["challenger"])
    if not rail.exact:
        return whole, None
    harm = float(log_e(evidence.row(f"{rail.metric}.harm")))
    if rail.metric not in EARLY:
        return whole, harm
    early_arms = evidence.early[rail.metric]
    of = "first judgement of each unit" if rail.metric == "failure" else "first request of each unit"
    early = _Sample(early_arms["control"], early_arms["challenger"], of)
    early_harm = float(log_e(evidence.row(f"early.{rail.metric}.harm")))
    sooner = early_harm > harm or whole.fewest < EXACT_FLOOR
    return early if sooner and early.fewest else whole, mean_log_e(harm, early_harm)


def _result(rail: Guardrail, evidence: Evidence, limits: Limits) -> GuardrailResult:
    sample, evidence_harm = _sample(rail, evidence)
    control, challenger, fewest = sample.control, sample.challenger, sample.fewest
    if fewest < 2:
        return GuardrailResult(
            rail.metric, rail.title, None, None, None, None, None, rail.tolerance, rail.margin, rail.ratio,
            None, False, False, False, 0.0, f"{rail.title}: nothing known yet",
        )  # fmt: skip
    error = standard_error(control, challenger, share=rail.exact)
    difference = challenger.mean - control.mean
    widths = {
        side: error * width_in_errors(control.n + challenger.n, alpha, limits.planned_units)
        for side, alpha in (("harm", rail.alpha_harm), ("ship", limits.alpha_ship), ("better", rail.alpha_better))
    }
    low, high = difference - widths["harm"], difference + widths["ship"]
    if evidence_harm is not None:
        harm = fewest >= EXACT_FLOOR and evidence_harm >= math.log(1 / rail.alpha_harm)
        fair_e, better_e = (float(log_e(evidence.row(f"{rail.metric}.{side}"))) for side in ("fair", "better"))
        fair = fair_e >= math.log(1 / limits.alpha_ship)
        better = fewest >= EXACT_FLOOR and better_e >= math.log(1 / rail.alpha_better)
        low, high = max(low, -1.0), min(high, 1.0)
    else:
        enough = fewest >= limits.min_units
        harm = enough and low > rail.tolerance
        fair = enough and high < rail.margin
        better = enough and difference + widths["better"] < 0
    words = _finding_text(rail, sample, low, high, harm=harm, fair=fair, better=better)
    return GuardrailResult(
        rail.metric, rail.title, control.mean, challenger.mean, difference, low, high, rail.tolerance, rail.margin,
        rail.ratio, evidence_harm, harm, fair, better, _power(rail.margin, error, widths["ship"]), words,
    )  # fmt: skip


def _power(margin: float, error: float, width: float) -> float:
    """Return the chance of telling a true difference of `margin` from none at this size of sample."""
    if error == 0:
        return 1.0
    return 0.5 * math.erfc(-(margin - width) / error / math.sqrt(2))


def _split_proven(evidence: Evidence, limits: Limits) -> bool:
    begun = evidence.counts["begun"]["challenger"], evidence.total("begun")
    return fair_split_log_e(*begun, limits.split_tolerance) >= math.log(1 / limits.alpha_split_ship)


def _system_trouble(evidence: Evidence, limits: Limits) -> list[str]:
    """Return what is wrong with both arms together: on one shared host a bad challenger makes the control bad too."""
    ceiling = f"{limits.system_failure_ceiling:.0%}"
    troubles = {
        "failure": f"more than {ceiling} of both arms' judged answers are wrong",
        "no_answer": f"more than {ceiling} of both arms' requests get no answer from the chosen model",
        "slow": f"more than {limits.system_slow_ceiling:.0%} of both arms' answers take longer than "
        f"{limits.system_slow_s:g} s",
    }
    threshold = math.log(len(troubles) / limits.alpha_system)
    if evidence.n < EXACT_FLOOR:
        return []
    return [
        f"whole system: {words}"
        for name, words in troubles.items()
        if float(log_e(evidence.row(f"system.{name}"))) >= threshold
    ]


def _finding_text(
    rail: Guardrail, sample: _Sample, low: float, high: float, *, harm: bool, fair: bool, better: bool
) -> str:
    """Return the result as text; bounds are shown only if they agree with the decision."""
    control, challenger = sample.control.mean, sample.challenger.mean
    show = _formatter(rail)
    levels = f" ({control:.1%} to {challenger:.1%})" if rail.exact else ""
    of = f" in the {sample.of}" if sample.of else ""
    state = "worse" if harm else "better" if better else "within its margin" if fair else "not decided"
    proven = (harm and low <= rail.tolerance) or (better and high >= 0) or (fair and high >= rail.margin)
    span = f"proven {state} by the exact test" if proven else f"between {show(low)} and {show(high)}"
    limits = f"tolerance {show(rail.tolerance)}, margin {show(rail.margin)}"
    return f"{rail.title} {show(challenger - control)}{levels}{of}, {span}; {limits}: {state}"


def _formatter(rail: Guardrail) -> Any:
    if rail.ratio:
        return lambda x: f"{math.expm1(x):+.1%}"
    if rail.exact:
        return lambda x: f"{x * 100:+.1f} points"
    return lambda x: f"{x:+.6f} USD"


def _summary(
    kind: Kind, experiment: Experiment, evidence: Evidence, findings: tuple[GuardrailResult, ...], reasons: list[str]
) -> str:
    names = f"{experiment.challenger.name!r} against {experiment.control.name!r}"
    size = f"{evidence.n} units" if evidence.n else f"{evidence.total('begun')} units begun"
    size += f", {evidence.total('judged')} judged"
    if kind == "SHIP":
        gains = [finding.title for finding in findings if finding.better]
        gain = f"better in {' and '.join(gains)}, and " if gains else ""
        return f"SHIP: {names} after {size}: {gain}no guardrail is worse by its margin."
    return f"{kind}: {names} after {size}: {reasons[0]}."


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _round(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_round(item) for item in value]
    return value


def verdict_record(experiment: Experiment, evidence: Evidence, now_s: float) -> str:
    """Return the verdict with all it rests on, as canonical JSON."""
    return canonical(
        {
            "format": RECORD_FORMAT,
            "experiment": experiment_row(experiment),
            "evidence": evidence.as_dict(),
            "at_s": now_s,
            "verdict": judge(experiment, evidence, now_s).as_dict(),
        }
    )


def recompute(record: str) -> str:
    """Return the record computed again from the evidence it holds; equal bytes mean that the verdict stands.

    A record of an earlier format comes back in today's. Raises `ExperimentError` if it is not a record."""
    try:
        row = json.loads(record)
        experiment = experiment_from(row["experiment"])
        evidence = evidence_from(row["evidence"], experiment.limits)
        return verdict_record(experiment, evidence, row["at_s"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError(f"this is not a record of a verdict: {error}") from error
