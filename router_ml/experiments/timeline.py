"""The order in which units contribute to the evidence: by event time alone, however late an event becomes known.

So a process that restarts, another process, and a person who asks for the status see the same evidence, byte for byte,
as soon as they have seen the same events. Steps older than a few seconds are settled; an event that changes them makes
the evidence be computed again from the start.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Sequence

from router_ml.experiments.evidence import Evidence
from router_ml.experiments.experiment import Experiment
from router_ml.experiments.unit import Judgement, Step, UnitRequest, request_limit, steps_of

_SETTLED_AFTER_S = 3.0  # events of other processes usually arrive sooner
_JUDGEMENTS = 50  # the earliest so many count on one decision
_STRANGERS = 20_000  # maximum number of unknown decisions whose feedback is held


def _place(request: UnitRequest) -> tuple[float, str]:
    return request.at_s, request.decision_id


class Timeline:
    """All requests and judgements of one experiment that can still matter. Not thread-safe."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._limit = request_limit(experiment)
        self._requests: dict[str, list[UnitRequest]] = {}  # by unit, in the order of time
        self._known: dict[str, tuple[float, str]] = {}  # time and unit by decision id
        self._judgements: dict[str, list[Judgement]] = {}  # by decision id, in the order of time
        self._strangers: dict[str, list[Judgement]] = {}  # the same of decisions without a request, the oldest first
        self._steps: dict[str, tuple[Step, ...]] = {}
        self._due: list[tuple[float, int, str]] = []  # a heap of times, orders and units; some entries are outdated
        self._settled, self._settled_s, self._stale = Evidence(experiment.limits), -math.inf, False

    def add(self, request: UnitRequest) -> None:
        """Take one request. Of several with one decision id the earliest counts."""
        place = (request.at_s, request.unit)
        known = self._known.get(request.decision_id)
        if known is not None and known <= place:
            return
        requests = self._requests.setdefault(request.unit, [])
        if len(requests) >= self._limit and _place(request) >= _place(requests[-1]):
            return
        if known is not None:
            self._remove(known[1], request.decision_id)
            requests = self._requests.setdefault(request.unit, [])
        self._known[request.decision_id] = place
        if request.decision_id in self._strangers:
            self._judgements[request.decision_id] = self._strangers.pop(request.decision_id)
        bisect.insort(requests, request, key=_place)
        for dropped in requests[self._limit :]:
            self._judgements.pop(dropped.decision_id, None)
        del requests[self._limit :]
        self._update(request.unit)

    def judge(self, decision_id: str, judgement: Judgement) -> None:
        """Take one feedback, also before its request."""
        known = self._known.get(decision_id)
        table = self._strangers if known is None else self._judgements
        given = table.setdefault(decision_id, [])
        if judgement in given:
            return
        bisect.insort(given, judgement)
        del given[_JUDGEMENTS:]
        if known is not None:
            self._update(known[1])
        elif len(self._strangers) > _STRANGERS:
            del self._strangers[next(iter(self._strangers))]

    def evidence(self, now_s: float) -> Evidence:
        """Return the evidence at a Unix time, from every step up to then."""
        if self._stale or now_s < self._settled_s:
            self._restart()
        horizon_s = max(self._settled_s, now_s - _SETTLED_AFTER_S)
        recent: list[Step] = []
        for step in self._pop(now_s):
            if step.at_s <= horizon_s:
                self._settled.add(step)
            else:
                recent.append(step)
        self._settled_s = horizon_s
        evidence = self._settled.copy()
        for step in recent:
            evidence.add(step)
            heapq.heappush(self._due, step[:3])
        return evidence

    def _pop(self, now_s: float) -> Sequence[Step]:
        """Return the steps up to a time that are not settled, in their order, and take them off the heap."""
        found: list[Step] = []
        while self._due and self._due[0][0] <= now_s:
            entry = heapq.heappop(self._due)
            step = next((s for s in self._steps.get(entry[2], ()) if s[:3] == entry), None)
            if step is not None and not (found and found[-1][:3] == entry):
                found.append(step)
        return found

    def _update(self, unit: str) -> None:
        """Compute the steps of a unit again."""
        before, requests = self._steps.get(unit, ()), self._requests[unit]
        after = tuple(steps_of(requests, self._judgements, self._experiment)) if requests else ()
        self._steps[unit] = after
        if self._settled_part(before) != self._settled_part(after):
            self._stale = True
        for step in after:
            if step.at_s > self._settled_s and step not in before:
                heapq.heappush(self._due, step[:3])

    def _settled_part(self, steps: Sequence[Step]) -> list[Step]:
        return [step for step in steps if step.at_s <= self._settled_s]

    def _remove(self, unit: str, decision_id: str) -> None:
        self._requests[unit] = [r for r in self._requests[unit] if r.decision_id != decision_id]
        self._update(unit)

    def _restart(self) -> None:
        self._settled, self._settled_s, self._stale = Evidence(self._experiment.limits), -math.inf, False
        self._due = [step[:3] for steps in self._steps.values() for step in steps]
        heapq.heapify(self._due)
