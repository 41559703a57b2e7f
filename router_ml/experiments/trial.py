"""One running experiment: takes requests and judgements, and gives a verdict at every interim analysis."""

from __future__ import annotations

import math
from collections.abc import Iterable

from router_ml.experiments.evidence import Evidence
from router_ml.experiments.experiment import Experiment
from router_ml.experiments.timeline import Timeline
from router_ml.experiments.unit import Judgement, UnitRequest
from router_ml.experiments.verdict import Verdict, judge, verdict_record
from router_ml.moved import renamed


class Trial:
    """The state of one experiment in memory. Not thread-safe; its owner takes turns."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.timeline = Timeline(experiment)
        self.evidence = Evidence(experiment.limits)  # of the latest analysis

    def add(self, request: UnitRequest) -> None:
        """Take one served request."""
        self.timeline.add(request)

    def add_all(self, requests: Iterable[UnitRequest]) -> None:
        """Take several."""
        for request in requests:
            self.add(request)

    def judge_request(
        self,
        decision_id: str,
        failure: float,
        *,
        at_s: float = -math.inf,
        explicit: bool = True,
        event_id: str = "",
    ) -> None:
        """Take a feedback (0 right .. 1 wrong) on a request, which may become known later."""
        self.timeline.judge(decision_id, Judgement(at_s, event_id, explicit, failure))

    def analyse(self, now_s: float) -> Verdict:
        """Return the verdict at a Unix time, from everything up to then."""
        self.evidence = self.timeline.evidence(now_s)
        return judge(self.experiment, self.evidence, now_s)

    look = renamed("look", "analyse")

    def record(self, now_s: float) -> str:
        """Return the record of the verdict at a Unix time; see `verdict_record`."""
        return verdict_record(self.experiment, self.timeline.evidence(now_s), now_s)
