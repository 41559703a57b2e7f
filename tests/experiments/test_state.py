"""Whatever happens in whatever order: an experiment that was rolled back stays out until a person acknowledges it."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_ml.events.event import OutcomeEvent
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import Rollout
from router_ml.experiments.state import ExperimentState, Halt


class Lives(RuleBasedStateMachine):
    """Starts, traffic, restarts, stops and clearings, against a plain model of what must be served."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="lives")
        self.files = ExperimentState(Path(self.folder.name))
        self.now_s = 1000.0
        self.draw = random.Random(0)
        self.number = 0
        self.running = self.halted = False
        self.rollout = self.opened()

    def opened(self) -> Rollout:
        return Rollout(
            self.files,
            clock=lambda: self.now_s,
            monotonic=lambda: self.now_s,
            new_unit=lambda: f"u{self.draw.getrandbits(64)}",
        )

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
        self.rollout.analyse()

    @precondition(lambda self: not self.running and not self.halted)
    @rule()
    def start(self) -> None:
        self.number += 1
        control, challenger = Variant("old"), Variant("new", policy="fast")
        self.files.start(Experiment(f"e{self.number}", control, challenger, self.now_s, unit="request"))
        self.running = True
        self.now_s += 1.0

    @rule()
    def good_traffic(self) -> None:
        self.serve(10, failing=0.0)

    @rule()
    def disaster(self) -> None:
        self.serve(120, failing=1.0)
        if self.running:
            self.halted = True

    @rule()
    def restart(self) -> None:
        self.rollout = self.opened()

    @precondition(lambda self: self.running and not self.halted)
    @rule()
    def stop(self) -> None:
        self.files.stop()
        self.running = False
        self.now_s += 1.0

    @precondition(lambda self: self.halted)
    @rule()
    def clear(self) -> None:
        self.files.clear()
        self.running = self.halted = False
        self.now_s += 1.0

    @invariant()
    def only_a_running_experiment_that_is_not_halted_is_served(self) -> None:
        self.now_s += 1.0  # a process reads the files twice a second
        given = self.rollout.assign("anybody")
        assert (given is not None) == (self.running and not self.halted)
        assert (self.files.halt() is not None) == self.halted

    def teardown(self) -> None:
        self.folder.cleanup()


Lives.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
TestLives = Lives.TestCase

EXPERIMENT = Experiment("e1", Variant("old"), Variant("new", policy="fast"), 1000.0)


def test_files_are_readable_by_their_owner_only_and_links_are_not_written_through(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    files, elsewhere = ExperimentState(folder), tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    folder.mkdir()
    files.start(EXPERIMENT)
    (folder / "latch.json").symlink_to(elsewhere)
    files.end(Halt("e1", "ROLLBACK", 1.0, "worse"))
    files.keep_record("e1-rollback-1", "{}")
    assert elsewhere.read_text() == "mine"
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in written} == {"active.json", "latch.json", "e1-rollback-1.json"}
    if os.name == "posix":
        assert {path.stat().st_mode & 0o777 for path in written} == {0o600}


def test_files_of_the_first_version_still_load(tmp_path: Path) -> None:
    limits = {"failure_margin": 0.03, "planned_units": 4000}
    row = {
        "format": 1, "id": "e0", "control": {"name": "a"}, "challenger": {"name": "b", "model": "m"},
        "started_s": 5.0, "unit": "session", "unit_requests": 4, "limits": limits,
    }  # fmt: skip
    (tmp_path / "active.json").write_text(json.dumps(row))
    (tmp_path / "latch.json").write_text(
        json.dumps({"experiment": "e0", "kind": "ROLLBACK", "at_s": 9.0, "reason": "worse", "record": "r.json"})
    )
    files = ExperimentState(tmp_path)
    experiment, halt = files.active(), files.halt()
    assert experiment is not None
    assert (experiment.unit_requests, experiment.limits.failure_margin, experiment.judgement_s) == (4, 0.03, 1800.0)
    assert halt == Halt("e0", "ROLLBACK", 9.0, "worse", "r.json")
    with pytest.warns(DeprecationWarning, match="is now halt"):
        assert files.latch() == halt
