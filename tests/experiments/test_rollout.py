"""A bad challenger goes by itself and stays gone, whatever else is broken."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kill_campaign import campaign
from router_ml.errors import ExperimentError, StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import Event, ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.store import EventStore
from router_ml.events.writer import EventWriter
from router_ml.experiments.experiment import Experiment, Limits, Variant
from router_ml.experiments.rollout import FOLDER, Rollout, open_rollout, request_of
from router_ml.experiments.state import ExperimentState, Halt
from router_ml.experiments.verdict import recompute

EXPERIMENT = Experiment("e1", Variant("old"), Variant("new", policy="fast"), started_s=1000.0, unit="request")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Kept:
    """Remembers what was recorded."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def record(self, event: Event) -> None:
        self.events.append(event)

    def changes(self) -> list[str]:
        return [e.change for e in self.events if isinstance(e, ExperimentEvent)]


class World:
    """A rollout with a clock set by hand, and requests that fail as often as their arm says."""

    def __init__(self, folder: Path, experiment: Experiment = EXPERIMENT) -> None:
        self.clock, self.kept = Clock(), Kept()
        self.board = ExperimentState(folder / FOLDER)
        self.draw = random.Random(4)
        self.served = {"old": 0, "new": 0, None: 0}
        if experiment is not None and self.board.active() is None and self.board.latch() is None:
            self.board.start(experiment)
        self.rollout = self.opened()

    def opened(self, read_store: object = None) -> Rollout:
        return Rollout(
            self.board,
            recorder=self.kept,
            read_store=read_store,  # type: ignore[arg-type]
            clock=self.clock,
            monotonic=self.clock,
        )

    def request(self, failing: float = 0.0) -> OutcomeEvent | None:
        self.clock.now_s += 0.1
        assignment = self.rollout.assign(f"s{self.draw.random()}")
        self.served[assignment.variant.name if assignment else None] += 1
        if assignment is None:
            return None
        harm = failing if assignment.arm == "challenger" else 0.0
        event = outcome(self.draw, assignment.variant.name, assignment.unit, self.clock.now_s, 0.05 + harm)
        self.rollout.record(event)
        return event


def outcome(draw: random.Random, variant: str, unit: str, at_s: float, failing: float) -> OutcomeEvent:
    success = float(draw.random() >= failing)
    latency_s = math.exp(draw.gauss(0.5, 0.4))
    return OutcomeEvent(
        f"d-{unit}", "m", success, latency_s, eval_s=latency_s, output_tokens=50, experiment="e1",
        variant=variant, unit=unit, at_s=at_s,
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_failing_challenger_is_rolled_back_and_nobody_gets_it_any_more(world: World) -> None:
    for _ in range(600):
        world.request(failing=0.5)
        world.rollout.look()
    assert world.rollout.state().latch is not None
    assert world.served["new"] < 100
    before = world.served["new"]
    for _ in range(100):
        assert world.request() is None
    assert world.served["new"] == before
    assert world.kept.changes().count("rolled_back") == 1


def test_the_request_path_takes_the_looks_where_no_thread_does(world: World) -> None:
    for _ in range(600):
        world.request(failing=0.5)  # nobody calls look()
    assert world.rollout.state().latch is not None
    # One look at most one second (ten requests) after the evidence was there.
    assert world.served["new"] < 100


def test_the_latch_survives_a_restart_until_a_person_clears_it(world: World, tmp_path: Path) -> None:
    for _ in range(600):
        world.request(failing=0.5)
    restarted = World(tmp_path)
    assert restarted.rollout.state().latch is not None
    assert restarted.request() is None
    with pytest.raises(ExperimentError, match="latched"):
        restarted.board.start(replace(EXPERIMENT, id="e2"))
    assert restarted.board.clear().kind == "ROLLBACK"
    restarted.clock.now_s += 1.0
    assert restarted.request() is None  # the ended experiment does not come back by itself
    restarted.board.start(replace(EXPERIMENT, id="e2", started_s=1000.0))
    restarted.clock.now_s += 1.0
    assert restarted.request() is not None


def test_a_latch_of_another_process_is_seen_within_a_second(world: World) -> None:
    assert world.request() is not None
    ExperimentState(world.board.folder).end(Halt("e1", "ROLLBACK", 1.0, "elsewhere"))
    world.clock.now_s += 1.0
    assert world.request() is None


def test_a_read_only_disk_cannot_keep_a_bad_challenger_in_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(ExperimentState, "end", refuse)
    monkeypatch.setattr(ExperimentState, "keep_record", refuse)
    for _ in range(600):
        world.request(failing=0.5)
    assert world.rollout.state().latch is not None
    assert world.request() is None
    os.utime(world.board.folder / "active.json", (1, 1))  # the board is read anew
    world.clock.now_s += 1.0
    assert world.request() is None
    assert "this process only" in (world.rollout.state().trouble or "")


def test_a_store_that_cannot_be_read_leaves_memory_to_judge(world: World) -> None:
    def broken() -> EventStore:
        raise StoreError("the database is away")

    world.rollout = world.opened(broken)
    for _ in range(600):
        world.request(failing=0.5)
    assert world.rollout.state().latch is not None


def test_a_database_that_takes_no_more_events_leaves_memory_to_judge(world: World, tmp_path: Path) -> None:
    world.rollout = world.opened(lambda: open_store(tmp_path))  # readable, but nothing is ever written to it
    for _ in range(600):
        world.request(failing=0.5)
    assert world.rollout.state().latch is not None


def test_an_experiment_that_cannot_be_judged_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("router_ml.experiments.trial.judge", broken)
    for _ in range(4):
        world.rollout.look()
    assert world.rollout.state().latch is None
    world.rollout.look()
    assert world.rollout.state().latch is not None
    assert world.kept.changes() == ["failed"]


def test_torn_files_end_on_the_safe_side(world: World) -> None:
    (world.board.folder / "active.json").write_text('{"id": "e1", "contr')
    world.clock.now_s += 1.0
    assert world.request() is None
    (world.board.folder / "active.json").unlink()
    world.board.start(EXPERIMENT)
    (world.board.folder / "latch.json").write_text("")
    world.clock.now_s += 1.0
    assert world.request() is None


def test_pinned_cached_and_foreign_outcomes_do_not_count(world: World) -> None:
    event = world.request()
    assert event is not None
    world.rollout.look()
    for other in (
        replace(event, pinned=True),
        replace(event, cache_hit=True),
        replace(event, experiment="e9"),
        replace(event, variant="unknown"),
    ):
        world.rollout.record(replace(other, unit="another", decision_id="another"))
    verdict = world.rollout.look()
    assert verdict is not None
    assert sum(verdict.units.values()) == 1


def test_a_choice_that_needed_a_fallback_counts_as_failed_unless_its_answer_is_known_to_be_right() -> None:
    def failure(**values: Any) -> float:
        event = OutcomeEvent("d", "m", values.pop("success", None), 1.0, variant="new", unit="u", **values)
        request = request_of(event, EXPERIMENT, None)
        assert request is not None
        return request.failure

    assert (failure(), failure(fallback=True), failure(ok=False)) == (0.0, 1.0, 1.0)
    assert (failure(fallback=True, success=1.0), failure(success=0.25)) == (0.0, 0.75)


def test_what_a_person_says_counts_while_the_session_is_open(tmp_path: Path) -> None:
    world = World(tmp_path, replace(EXPERIMENT, unit="session", unit_idle_s=60.0))
    event = world.request()
    assert event is not None
    world.rollout.record(FeedbackEvent(event.decision_id, "thumb", 0.0))
    world.clock.now_s += 120.0
    world.rollout.look()
    record = json.loads(world.rollout.record_text() or "")
    assert record["evidence"]["moments"]["failure"][world_arm(event)][1] == 1.0


def world_arm(event: OutcomeEvent) -> str:
    return "challenger" if event.variant == "new" else "control"


def test_outcomes_from_store_and_memory_are_counted_once_and_a_restart_forgets_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    key = store._privacy.digest  # type: ignore[attr-defined]
    world = World(tmp_path)
    world.rollout = Rollout(
        world.board, read_store=lambda: open_store(tmp_path), unit_key=key, clock=world.clock, monotonic=world.clock
    )
    for _ in range(60):
        event = world.request()
        assert event is not None
        store.append([event])
        world.rollout.look()
    world.clock.now_s += 5.0
    verdict = world.rollout.look()
    assert verdict is not None
    assert sum(verdict.units.values()) == 60
    before = json.loads(world.rollout.record_text() or "")["evidence"]
    again = world.opened(lambda: open_store(tmp_path))
    again.look()
    after = json.loads(again.record_text() or "")["evidence"]
    assert after == before


def test_the_record_of_a_rollback_is_kept_and_computed_again_byte_for_byte(world: World) -> None:
    for _ in range(600):
        world.request(failing=0.5)
    latch = world.board.latch()
    assert latch is not None
    record = world.board.record(latch.record)
    assert recompute(record) == record
    assert json.loads(record)["verdict"]["kind"] == "ROLLBACK"


def test_a_good_challenger_is_recommended_once_and_goes_on(tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, limits=Limits(split_tolerance=0.2, failure_margin=0.15, latency_margin_ratio=1.5))
    world = World(tmp_path, experiment)
    for _ in range(2500):
        world.request()
        if world.draw.random() < 0.05:
            world.rollout.look()
    assert world.kept.changes().count("shipped") == 1
    assert world.rollout.state().latch is None
    assert world.request() is not None


def test_kill_nine_keeps_every_acknowledged_event_and_every_latch_and_tears_nothing() -> None:
    wrecks = campaign(8, seed=5)
    assert [(w.lost, w.whole) for w in wrecks] == [(0, True)] * 8
    assert max(w.ready_s for w in wrecks) < 2.0
    said = [w for w in wrecks if w.latch_said]
    assert said
    assert all(w.latch_kept for w in said)
    assert sum(w.acknowledged for w in wrecks) > 100


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Rollout, EventWriter]]:
    ExperimentState(tmp_path / FOLDER).start(replace(EXPERIMENT, started_s=time.time() - 10))
    writer = EventWriter(lambda: open_store(tmp_path))
    rollout = open_rollout(tmp_path, recorder=writer, read_store=lambda: open_store(tmp_path))
    rollout.start()
    yield rollout, writer
    rollout.close()
    writer.close()


def test_with_its_thread_and_the_real_store_a_rollback_takes_effect_within_a_second(
    running: tuple[Rollout, EventWriter],
) -> None:
    rollout, writer = running
    draw = random.Random(3)
    sent = 0
    while sent < 200:
        assignment = rollout.assign(f"s{draw.random()}")
        if assignment is None:
            break
        failing = 1.0 if assignment.arm == "challenger" else 0.0
        event = outcome(draw, assignment.variant.name, assignment.unit, time.time(), failing)
        writer.record(event)
        rollout.record(event)
        sent += 1
    deadline = time.monotonic() + 1.25  # one look and one second
    while rollout.assign("x") is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rollout.assign("x") is None
