"""Whatever happens in whatever order: who was rolled back stays out until a person clears it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_ml.events.event import OutcomeEvent
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import Rollout
from router_ml.experiments.state import ExperimentState


class Lives(RuleBasedStateMachine):
    """Starts, traffic, restarts, stops and clearings, against a plain model of what must be served."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="lives")
        self.board = ExperimentState(Path(self.folder.name))
        self.now_s = 1000.0
        self.draw = random.Random(0)
        self.number = 0
        self.running = self.latched = False
        self.rollout = self.opened()

    def opened(self) -> Rollout:
        return Rollout(self.board, clock=lambda: self.now_s, monotonic=lambda: self.now_s)

    def serve(self, requests: int, failing: float) -> None:
        for _ in range(requests):
            self.now_s += 0.01
            given = self.rollout.assign(f"s{self.draw.random()}")
            if given is None:
                continue
            wrong = given.arm == "challenger" and self.draw.random() < failing
            done = OutcomeEvent(
                f"d{given.unit}", "m", float(not wrong), 1.0, experiment=given.experiment,
                variant=given.variant.name, unit=given.unit, at_s=self.now_s,
            )  # fmt: skip
            self.rollout.record(done)
        self.now_s += 1.0
        self.rollout.look()

    @precondition(lambda self: not self.running and not self.latched)
    @rule()
    def start(self) -> None:
        self.number += 1
        control, challenger = Variant("old"), Variant("new", policy="fast")
        self.board.start(Experiment(f"e{self.number}", control, challenger, self.now_s, unit="request"))
        self.running = True
        self.now_s += 1.0

    @rule()
    def good_traffic(self) -> None:
        self.serve(10, failing=0.0)

    @rule()
    def disaster(self) -> None:
        self.serve(120, failing=1.0)
        if self.running:
            self.latched = True

    @rule()
    def restart(self) -> None:
        self.rollout = self.opened()

    @precondition(lambda self: self.running and not self.latched)
    @rule()
    def stop(self) -> None:
        self.board.stop()
        self.running = False
        self.now_s += 1.0

    @precondition(lambda self: self.latched)
    @rule()
    def clear(self) -> None:
        self.board.clear()
        self.running = self.latched = False
        self.now_s += 1.0

    @invariant()
    def only_a_running_experiment_that_is_not_latched_is_served(self) -> None:
        self.now_s += 1.0  # a process looks at the board twice a second
        given = self.rollout.assign("anybody")
        assert (given is not None) == (self.running and not self.latched)
        assert (self.board.latch() is not None) == self.latched

    def teardown(self) -> None:
        self.folder.cleanup()


Lives.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestLives = Lives.TestCase
