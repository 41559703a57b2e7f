"""The definition of an experiment: two variants, who takes part, what may not get worse, and by how much."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeAlias

from router_ml.arm import EFFORTS, is_think, think_text
from router_ml.errors import ExperimentError, shown
from router_ml.numbers import is_number
from router_ml.types import Think

FORMAT = 1  # of a definition
Arm: TypeAlias = Literal["control", "challenger"]
Mode: TypeAlias = Literal["live", "shadow"]
UnitKind: TypeAlias = Literal["request", "session"]

ARMS: tuple[Arm, ...] = ("control", "challenger")
_ALPHAS = ("alpha_rollback", "alpha_better", "alpha_ship", "alpha_split", "alpha_split_ship", "alpha_system")
_TEXTS = ("id", "salt", "hypothesis", "owner")
_NUMBERS = ("started_s", "holdout", "unit_requests", "unit_idle_s", "judgement_s")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Variant:
    """What one arm runs: a policy, a bundle, a fixed model, a way to ask, or any of these together. Nothing set: what
    runs today."""

    name: str
    policy: str | None = None  # a preset or the path of a policy file
    bundle: str | None = None  # the folder of a bundle
    model: str | None = None  # every request goes to this model
    think: Think | None = None  # models that can think are asked this way, where the caller says nothing

    def describe(self) -> str:
        """Return its parts as readable text."""
        parts = [f"{key} {value}" for key, value in self.parts().items()]
        return ", ".join(parts) or "what runs today"

    def parts(self) -> dict[str, str]:
        """Return the parts that are set, by name."""
        think = None if self.think is None else think_text(self.think)
        every = {"policy": self.policy, "bundle": self.bundle, "model": self.model, "think": think}
        return {key: value for key, value in every.items() if value is not None}


@dataclass(frozen=True, slots=True)
class RampStep:
    """A step of the ramp: from `after_s` seconds after the start on, this share of the units takes part."""

    after_s: float
    coverage: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Margins, minimum counts and error rates.

    A margin is the worst true difference that may still be shipped. A tolerance is the difference that is accepted
    beforehand: more than that, once proven, rolls back."""

    failure_margin: float = 0.05  # absolute difference of the shares of wrong answers among the judged
    failure_tolerance: float = 0.0
    no_answer_margin: float = 0.05  # absolute difference of the shares that the chosen model did not answer
    no_answer_tolerance: float = 0.0
    clarified_margin: float = 0.05  # absolute difference of the shares answered by a clarifying question
    clarified_tolerance: float = 0.0
    slo_margin: float = 0.05  # absolute difference of the shares above `slo_s`
    slo_tolerance: float = 0.0
    latency_margin_ratio: float = 1.10  # challenger's geometric mean over control's
    latency_tolerance_ratio: float = 1.0
    service_margin_ratio: float = 1.15  # the same of seconds per output token
    service_tolerance_ratio: float = 1.0
    cost_margin_usd: float = 0.001  # absolute difference of mean cost a request
    cost_tolerance_usd: float = 0.0
    slo_s: float | None = 5.0  # None: no latency objective
    split_tolerance: float = 0.02  # the challenger's share of units must be proven this close to one half
    min_units: int = 200  # per arm, before an asymptotic test may decide and before shipping
    min_judged: int = 100  # units per arm with a judged answer, before shipping
    min_duration_s: float = 0.0  # before shipping
    planned_units: int = 3000  # both arms; where the confidence sequences are tightest
    alpha_rollback: float = 0.045  # chance of rolling back a challenger that is no worse, at any time, by any guardrail
    alpha_better: float = 0.005  # chance of calling a challenger better that is not
    alpha_ship: float = 0.025  # chance of shipping one that is worse by a margin
    alpha_split: float = 0.005  # chance of calling a fair split unfair
    alpha_split_ship: float = 0.02  # chance of shipping with a split that is off by `split_tolerance`
    alpha_system: float = 0.002  # chance of blaming the whole system wrongly
    system_failure_ceiling: float = 0.5  # whole-system failure rate that ends the experiment
    system_slow_s: float = 60.0  # a request slower than this is slow, whichever arm it is in
    system_slow_ceiling: float = 0.25  # share of slow requests that ends the experiment


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment, as it was written down before it began. Nothing in it changes while it runs."""

    id: str
    control: Variant
    challenger: Variant
    started_s: float  # Unix time
    salt: str = ""  # empty: the id
    ramp: tuple[RampStep, ...] = (RampStep(0.0, 1.0),)
    holdout: float = 0.0  # share of units that never takes part in any experiment
    mode: Mode = "live"
    unit: UnitKind = "session"
    unit_requests: int = 10  # a session counts with its first so many requests ...
    unit_idle_s: float = 900.0  # ... or with fewer, once it has been idle this long
    judgement_s: float = 1800.0  # feedback counts until this long after a unit's last request
    limits: Limits = Limits()
    hypothesis: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def seed(self) -> str:
        """Return the salt of its hashes."""
        return self.salt or self.id

    def coverage(self, now_s: float) -> float:
        """Return the share of units that takes part at a Unix time."""
        age_s = now_s - self.started_s
        reached = [step.coverage for step in self.ramp if step.after_s <= age_s]
        return reached[-1] if reached else 0.0

    def variant(self, arm: Arm) -> Variant:
        """Return the variant of an arm."""
        return self.control if arm == "control" else self.challenger

    def arm_of(self, variant: str | None) -> Arm | None:
        """Return the arm that runs a variant of this name, or None."""
        if variant == self.control.name:
            return "control"
        return "challenger" if variant == self.challenger.name else None


def _check(experiment: Experiment) -> None:
    _check_kinds(experiment)
    if not _NAME.fullmatch(experiment.id):
        raise ExperimentError(f"experiment id {experiment.id!r} must be letters, digits, '.', '_' or '-', at most 64")
    if experiment.control.name == experiment.challenger.name:
        raise ExperimentError(f"both arms are called {experiment.control.name!r}; give each variant its own name")
    _check_ramp(experiment.ramp)
    if not 0 <= experiment.holdout < 1:
        raise ExperimentError(f"holdout must be from 0 to below 1, found {experiment.holdout!r}")
    if experiment.mode not in ("live", "shadow") or experiment.unit not in ("request", "session"):
        raise ExperimentError("mode must be live or shadow, and unit must be request or session")
    if experiment.unit_requests < 1 or experiment.unit_idle_s <= 0 or not 0 <= experiment.judgement_s < math.inf:
        raise ExperimentError("unit_requests must be 1 or more, unit_idle_s above 0 and judgement_s 0 or more")
    _check_limits(experiment.limits)


def _check_kinds(experiment: Experiment) -> None:
    """Refuse a field of the wrong kind when it is read: later, it would be every request's error."""
    texts = [getattr(experiment, name) for name in _TEXTS]
    for variant in (experiment.control, experiment.challenger):
        texts += [variant.name, *variant.parts().values()]
        if variant.think is not None and not is_think(variant.think):
            raise ExperimentError(
                f"variant {variant.name!r}: think must be true, false, {', '.join(map(think_text, EFFORTS))} or null, "
                f"found {shown(variant.think)}"
            )
    numbers = [getattr(experiment, name) for name in _NUMBERS]
    numbers += [value for step in experiment.ramp for value in (step.after_s, step.coverage)]
    numbers += [v for v in asdict(experiment.limits).values() if v is not None]
    for value in texts:
        if not isinstance(value, str):
            raise ExperimentError(f"a name or text of the experiment must be a string, found {shown(value)}")
    for value in numbers:
        if not is_number(value) or not math.isfinite(value):
            raise ExperimentError(f"a number of the experiment must be finite, found {shown(value)}")


def _check_ramp(ramp: tuple[RampStep, ...]) -> None:
    times, shares = [s.after_s for s in ramp], [s.coverage for s in ramp]
    if not ramp or times != sorted(times) or times[0] < 0:
        raise ExperimentError("ramp needs steps in the order of their after_s, from 0 up")
    if shares != sorted(shares) or not all(0 <= share <= 1 for share in shares):
        # A falling coverage would take units out again, and the ones that left would bias what is compared.
        raise ExperimentError("coverage in a ramp must be from 0 to 1 and must never fall")


def _check_limits(limits: Limits) -> None:
    for name in _ALPHAS:
        if not 0 < getattr(limits, name) < 0.5:
            raise ExperimentError(f"limits.{name} must lie between 0 and 0.5")
    shares = ("failure", "no_answer", "clarified", "slo")
    for name in (*(f"{share}_margin" for share in shares), "system_slow_ceiling", "system_failure_ceiling"):
        if not 0 < getattr(limits, name) < 1:
            raise ExperimentError(f"limits.{name} must lie between 0 and 1")
    if not 0 < limits.split_tolerance < 0.5:
        raise ExperimentError("limits.split_tolerance must lie between 0 and 0.5")
    for margin, tolerance, lowest in (
        *((f"{share}_margin", f"{share}_tolerance", 0.0) for share in shares),
        ("latency_margin_ratio", "latency_tolerance_ratio", 1.0),
        ("service_margin_ratio", "service_tolerance_ratio", 1.0),
        ("cost_margin_usd", "cost_tolerance_usd", 0.0),
    ):
        # A tolerance at or above its margin would leave no difference that can be shipped or rolled back.
        if not lowest <= getattr(limits, tolerance) < getattr(limits, margin) < math.inf:
            raise ExperimentError(f"limits.{tolerance} must be {lowest:g} or more and below limits.{margin}")
    if limits.min_judged < 20:
        raise ExperimentError("limits.min_judged must be 20 or more")
    if limits.min_units < 20 or limits.planned_units < 2 * limits.min_units:
        raise ExperimentError("limits: min_units must be 20 or more and planned_units at least twice min_units")


def experiment_row(experiment: Experiment) -> dict[str, Any]:
    """Return the JSON-ready form, with its format."""
    return {"format": FORMAT, **asdict(experiment)}


def experiment_from(row: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a JSON form; unknown keys are ignored and missing ones have their defaults.

    Raises `ExperimentError` if it is not one."""
    if not isinstance(row, Mapping):
        raise ExperimentError("an experiment must be a JSON object")
    version = row.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ExperimentError(f"the experiment has format {shown(version)}; this version reads up to {FORMAT}")
    values = {f.name: row[f.name] for f in fields(Experiment) if f.name in row}
    try:
        for arm in ARMS:
            values[arm] = Variant(**values[arm])
        values["ramp"] = tuple(RampStep(**step) for step in values.get("ramp", ({"after_s": 0.0, "coverage": 1.0},)))
        known = {f.name for f in fields(Limits)}
        values["limits"] = Limits(**{k: v for k, v in values.get("limits", {}).items() if k in known})
        return Experiment(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ExperimentError(f"the experiment is incomplete or has a field of the wrong shape: {error}") from error


def canonical(value: Mapping[str, Any]) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
