"""One running experiment: takes requests, gathers them into units, and gives a verdict at every look."""

from __future__ import annotations

from collections.abc import Iterable

from router_ml.experiments.evidence import Evidence
from router_ml.experiments.experiment import Experiment
from router_ml.experiments.unit import UnitRequest, Units
from router_ml.experiments.verdict import Verdict, judge, verdict_record


class Trial:
    """The state of one experiment in memory. Not thread-safe; its owner takes turns."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.units = Units(experiment)
        self.evidence = Evidence(experiment.limits)

    def add(self, request: UnitRequest) -> None:
        """Take one served request."""
        if self.units.begins(request):
            self.evidence.add_first(request.arm, request.failure)
        seen = self.units.add(request)
        if seen is not None:
            self.evidence.add(seen)

    def add_all(self, requests: Iterable[UnitRequest]) -> None:
        """Take several, in their order."""
        for request in requests:
            self.add(request)

    def judge_request(self, decision_id: str, failure: float) -> None:
        """Take somebody's word on an earlier request, if its unit is still open."""
        self.units.judge(decision_id, failure)

    def look(self, now_s: float) -> Verdict:
        """The verdict at a Unix time; units that have gone quiet are counted first."""
        for seen in self.units.expire(now_s):
            self.evidence.add(seen)
        return judge(self.experiment, self.evidence, now_s)

    def record(self, now_s: float) -> str:
        """The record of the verdict at a Unix time; see `verdict_record`."""
        return verdict_record(self.experiment, self.evidence, now_s)
