"""From requests to units of assignment: what is tested is one value per unit, because a unit's requests are correlated.

Counting the requests of sticky sessions as independent calls up to 79 % of A/A tests different. So a unit counts once:
with its first requests, as soon as there are enough of them or it has been idle, and with the judgements that its
judgement window brings.

All times are event times (Unix seconds): which requests and judgements count, and when, never depends on when they
became known here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from router_ml.experiments.experiment import Arm, Experiment

_FASTEST_S = 1e-3  # a latency below this is a clock's error, and its log would weigh too much


@dataclass(frozen=True, slots=True)
class UnitRequest:
    """One served request of an experiment."""

    decision_id: str
    unit: str
    arm: Arm
    at_s: float
    failure: float | None  # 0 right .. 1 wrong, where known when it was served; None: not judged
    latency_s: float | None = None  # end to end
    service_s: float | None = None  # seconds of generation per output token
    cost_usd: float | None = None
    no_answer: bool = False  # the chosen model gave none
    clarified: bool = False  # the user was asked a clarifying question; no model was called


class Judgement(NamedTuple):
    """One feedback on a request; judgements sort by time."""

    at_s: float
    event_id: str
    explicit: bool  # given by a person, not inferred
    failure: float  # 0 right .. 1 wrong


@dataclass(frozen=True, slots=True)
class Begun:
    """The first request of a unit, at once: whole units may take long, and a disaster must not."""

    arm: Arm
    no_answer: float


@dataclass(frozen=True, slots=True)
class FirstJudgement:
    """The earliest judgement within a unit."""

    arm: Arm
    failure: float


@dataclass(frozen=True, slots=True)
class Observation:
    """What a complete unit contributes at once: means over its requests."""

    arm: Arm
    requests: int
    no_answer: float
    clarified: float
    slo_miss: float | None = None  # share above the objective
    slow: float = 0.0  # share above the whole system's limit
    log_latency: float | None = None
    log_service: float | None = None
    cost_usd: float | None = None
    changed_arm: bool = False  # later requests were served by the other arm, and do not count


@dataclass(frozen=True, slots=True)
class Judged:
    """What a unit contributes at the end of its judgement window."""

    arm: Arm
    failure: float | None  # mean over its judged requests; None if none was judged


Contribution: TypeAlias = Begun | FirstJudgement | Observation | Judged


class Step(NamedTuple):
    """A contribution of a unit to the evidence, with the time from which on it counts."""

    at_s: float
    order: int  # among the steps of one time
    unit: str
    what: Contribution


def steps_of(
    requests: Sequence[UnitRequest], judgements: Mapping[str, Sequence[Judgement]], experiment: Experiment
) -> Iterator[Step]:
    """Yield the steps of one unit, given its requests in the order of time and the judgements by decision id."""
    counted, change_s = _counted(requests, experiment)
    first, last = counted[0], counted[-1]
    full = len(counted) >= request_limit(experiment)
    complete_s = last.at_s if full else last.at_s + experiment.unit_idle_s
    if change_s is not None:
        complete_s = min(complete_s, change_s)
    end_s = complete_s + experiment.judgement_s
    yield Step(first.at_s, 0, first.unit, Begun(first.arm, float(first.no_answer)))
    firsts = (_first_judgement(r, judgements.get(r.decision_id, ())) for r in counted)
    earliest = min(filter(None, firsts), default=None)
    if earliest is not None and earliest[0] <= end_s:
        yield Step(earliest[0], 1, first.unit, FirstJudgement(first.arm, earliest[1]))
    yield Step(complete_s, 2, first.unit, _observe(counted, experiment, change_s is not None))
    known = [f for r in counted if (f := _failure_at(r, judgements.get(r.decision_id, ()), end_s)) is not None]
    yield Step(end_s, 3, first.unit, Judged(first.arm, _mean(known)))


def request_limit(experiment: Experiment) -> int:
    """Return how many requests of a unit count."""
    return 1 if experiment.unit == "request" else experiment.unit_requests


def _counted(requests: Sequence[UnitRequest], experiment: Experiment) -> tuple[list[UnitRequest], float | None]:
    """Return the requests that count, and when the other arm served before they were complete, if it did."""
    counted = [requests[0]]
    for request in requests[1 : request_limit(experiment)]:
        if request.at_s - counted[-1].at_s > experiment.unit_idle_s:
            break
        if request.arm != counted[0].arm:
            return counted, request.at_s
        counted.append(request)
    return counted, None


def _failure_at(request: UnitRequest, judgements: Sequence[Judgement], at_s: float) -> float | None:
    """Return what counts at a time: the latest explicit feedback, else the outcome's own, else the latest inferred."""
    given = [judgement for judgement in judgements if judgement.at_s <= at_s]
    explicit = [judgement.failure for judgement in given if judgement.explicit]
    if explicit:
        return explicit[-1]
    if request.failure is not None:
        return request.failure
    return given[-1].failure if given else None


def _first_judgement(request: UnitRequest, judgements: Sequence[Judgement]) -> tuple[float, float] | None:
    """Return when a request was first judged, once it was served, and how; None if it was not."""
    if request.failure is None and not judgements:
        return None
    at_s = request.at_s if request.failure is not None else max(request.at_s, judgements[0].at_s)
    failure = _failure_at(request, judgements, at_s)
    assert failure is not None
    return at_s, failure


def _observe(requests: Sequence[UnitRequest], experiment: Experiment, changed_arm: bool) -> Observation:
    limits = experiment.limits
    served = [r for r in requests if not r.clarified]  # a clarifying question has no latency or cost to compare
    latencies = [r.latency_s for r in served if r.latency_s is not None]
    services = [r.service_s for r in served if r.service_s is not None and r.service_s > 0]
    objective = limits.slo_s
    return Observation(
        arm=requests[0].arm,
        requests=len(requests),
        no_answer=_share([r.no_answer for r in requests]),
        clarified=_share([r.clarified for r in requests]),
        slo_miss=None if objective is None else _mean([float(s > objective) for s in latencies]),
        slow=_mean([float(s > limits.system_slow_s) for s in latencies]) or 0.0,
        log_latency=_mean([math.log(max(s, _FASTEST_S)) for s in latencies]),
        log_service=_mean([math.log(s) for s in services]),
        cost_usd=_mean([r.cost_usd for r in served if r.cost_usd is not None]),
        changed_arm=changed_arm,
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def __getattr__(name: str) -> object:
    """Return `UnitRequest` for its name in earlier versions."""
    if name == "Request":
        warnings.warn("router_ml.experiments.unit.Request is now UnitRequest", DeprecationWarning, stacklevel=2)
        return UnitRequest
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
