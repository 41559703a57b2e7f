"""From requests to units of assignment: what is tested is one value a unit, because a unit's requests hang together.

Counting the requests of sticky sessions as if they were independent calls up to 79 % of A/A tests different. So a unit
is judged once: by its first requests, as soon as there are enough of them or it has gone quiet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from router_ml.experiments.experiment import Arm, Experiment

_FASTEST_S = 1e-3  # a latency below this is a clock's mistake, and its log would weigh too much


@dataclass(frozen=True, slots=True)
class UnitRequest:
    """One served request of an experiment."""

    decision_id: str
    unit: str
    arm: Arm
    at_s: float
    failure: float  # 0 right .. 1 wrong or no answer
    latency_s: float | None = None  # end to end
    service_s: float | None = None  # seconds of generation per output token
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What one unit contributes: means over its requests."""

    arm: Arm
    at_s: float  # of its last request
    requests: int
    failure: float
    slo_miss: float | None = None  # share above the objective
    slow: float = 0.0  # share above the whole system's limit
    log_latency: float | None = None
    log_service: float | None = None
    cost_usd: float | None = None


@dataclass(slots=True)
class _Open:
    arm: Arm
    requests: dict[str, UnitRequest] = field(default_factory=dict)
    last_s: float = -math.inf


class Units:
    """The units that are being watched. Every unit is observed once."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._open: dict[str, _Open] = {}
        self._unit_of: dict[str, str] = {}
        self._done: set[str] = set()

    def __len__(self) -> int:
        return len(self._open)

    def begins(self, request: UnitRequest) -> bool:
        """Whether this is the first request of its unit."""
        return request.unit not in self._open and request.unit not in self._done

    def add(self, request: UnitRequest) -> Observation | None:
        """Take a request; the observation of its unit, where this completes it."""
        if request.unit in self._done:
            return None
        unit = self._open.setdefault(request.unit, _Open(request.arm))
        if request.decision_id in unit.requests:
            return None
        unit.requests[request.decision_id] = request
        unit.last_s = max(unit.last_s, request.at_s)
        self._unit_of[request.decision_id] = request.unit
        full = self._experiment.unit == "request" or len(unit.requests) >= self._experiment.unit_requests
        return self._close(request.unit) if full else None

    def judge(self, decision_id: str, failure: float) -> None:
        """Replace the failure of a request whose unit is still open; what a person says counts."""
        name = self._unit_of.get(decision_id)
        if name is not None:
            known = self._open[name].requests[decision_id]
            self._open[name].requests[decision_id] = UnitRequest(
                known.decision_id, known.unit, known.arm, known.at_s, failure,
                known.latency_s, known.service_s, known.cost_usd,
            )  # fmt: skip

    def expire(self, now_s: float) -> Iterator[Observation]:
        """The observations of units that have been quiet for long enough, the quietest first."""
        limit_s = now_s - self._experiment.unit_idle_s
        quiet = sorted((unit.last_s, name) for name, unit in self._open.items() if unit.last_s <= limit_s)
        for _, name in quiet:
            yield self._close(name)

    def _close(self, name: str) -> Observation:
        unit = self._open.pop(name)
        self._done.add(name)
        for decision_id in unit.requests:
            del self._unit_of[decision_id]
        return _observe(unit.arm, unit.last_s, list(unit.requests.values()), self._experiment)


def _observe(arm: Arm, at_s: float, requests: list[UnitRequest], experiment: Experiment) -> Observation:
    limits = experiment.limits
    latencies = [r.latency_s for r in requests if r.latency_s is not None]
    services = [r.service_s for r in requests if r.service_s is not None and r.service_s > 0]
    costs = [r.cost_usd for r in requests if r.cost_usd is not None]
    objective = limits.slo_s
    return Observation(
        arm=arm,
        at_s=at_s,
        requests=len(requests),
        failure=_mean([min(max(r.failure, 0.0), 1.0) for r in requests]),
        slo_miss=None if objective is None or not latencies else _mean([float(s > objective) for s in latencies]),
        slow=_mean([float(s > limits.system_slow_s) for s in latencies]) if latencies else 0.0,
        log_latency=_mean([math.log(max(s, _FASTEST_S)) for s in latencies]) if latencies else None,
        log_service=_mean([math.log(s) for s in services]) if services else None,
        cost_usd=_mean(costs) if costs else None,
    )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
