"""A bad challenger goes by itself and stays gone, whatever else is broken."""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kill_campaign import campaign, kill_one
from router_ml.errors import ExperimentError, StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import Event, ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.store import EventStore
from router_ml.events.writer import EventWriter
from router_ml.experiments.experiment import Experiment, Limits, Variant
from router_ml.experiments.rollout import FOLDER, Rollout, open_rollout, request_of
from router_ml.experiments.state import ExperimentState, Halt
from router_ml.experiments.verdict import recompute
from tests.timing import PATIENCE_S, TRIES, best, until

EXPERIMENT = Experiment(
    "e1", Variant("old"), Variant("new", policy="fast"), started_s=1000.0, unit="request", judgement_s=5.0
)

LENIENT = Limits(
    split_tolerance=0.2, failure_margin=0.15, failure_tolerance=0.1, latency_margin_ratio=1.5,
    latency_tolerance_ratio=1.3, service_margin_ratio=1.5, service_tolerance_ratio=1.3, slo_s=None,
)  # fmt: skip


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Recorded:
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
        self.clock, self.recorded = Clock(), Recorded()
        self.files = ExperimentState(folder / FOLDER)
        self.draw, self.units = random.Random(4), random.Random(5)
        self.served = {"old": 0, "new": 0, None: 0}
        if experiment is not None and self.files.active() is None and self.files.halt() is None:
            self.files.start(experiment)
        self.rollout = self.opened()

    def opened(self, read_store: object = None) -> Rollout:
        return Rollout(
            self.files,
            recorder=self.recorded,
            read_store=read_store,  # type: ignore[arg-type]
            clock=self.clock,
            monotonic=self.clock,
            new_unit=self.new_unit,
        )

    def new_unit(self) -> str:
        return f"u{self.units.getrandbits(64)}"

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
        world.rollout.analyse()
    assert world.rollout.state().halt is not None
    assert world.served["new"] < 100
    before = world.served["new"]
    for _ in range(100):
        assert world.request() is None
    assert world.served["new"] == before
    assert world.recorded.changes().count("rolled_back") == 1


def test_the_request_path_analyses_where_no_thread_does(world: World) -> None:
    for _ in range(600):
        world.request(failing=0.5)  # nobody calls analyse()
    assert world.rollout.state().halt is not None
    # One analysis at most one second (ten requests) after the evidence was there.
    assert world.served["new"] < 100


def test_a_halt_survives_a_restart_until_a_person_clears_it(world: World, tmp_path: Path) -> None:
    for _ in range(600):
        world.request(failing=0.5)
    restarted = World(tmp_path)
    assert restarted.rollout.state().halt is not None
    assert restarted.request() is None
    with pytest.raises(ExperimentError, match="was halted"):
        restarted.files.start(replace(EXPERIMENT, id="e2"))
    assert restarted.files.clear().kind == "ROLLBACK"
    restarted.clock.now_s += 1.0
    assert restarted.request() is None  # the ended experiment does not come back by itself
    restarted.files.start(replace(EXPERIMENT, id="e2", started_s=1000.0))
    restarted.clock.now_s += 1.0
    assert restarted.request() is not None


def test_a_halt_of_another_process_is_seen_within_a_second(world: World) -> None:
    assert world.request() is not None
    ExperimentState(world.files.folder).end(Halt("e1", "ROLLBACK", 1.0, "elsewhere"))
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
    assert world.rollout.state().halt is not None
    assert world.request() is None
    os.utime(world.files.folder / "active.json", (1, 1))  # the files is read again
    world.clock.now_s += 1.0
    assert world.request() is None
    assert "this process only" in (world.rollout.state().trouble or "")


def test_a_store_that_cannot_be_read_leaves_memory_to_judge(world: World) -> None:
    def broken() -> EventStore:
        raise StoreError("the database is away")

    world.rollout = world.opened(broken)
    for _ in range(600):
        world.request(failing=0.5)
    assert world.rollout.state().halt is not None


def test_a_database_that_takes_no_more_events_leaves_memory_to_judge(world: World, tmp_path: Path) -> None:
    world.rollout = world.opened(lambda: open_store(tmp_path))  # readable, but nothing is ever written to it
    for _ in range(600):
        world.request(failing=0.5)
    assert world.rollout.state().halt is not None


def test_an_experiment_that_cannot_be_judged_is_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("router_ml.experiments.trial.judge", broken)
    for _ in range(4):
        world.rollout.analyse()
    assert world.rollout.state().halt is None
    world.rollout.analyse()
    assert world.rollout.state().halt is not None
    assert world.recorded.changes() == ["failed"]


def test_torn_files_end_on_the_safe_side(world: World) -> None:
    (world.files.folder / "active.json").write_text('{"id": "e1", "contr')
    world.clock.now_s += 1.0
    assert world.request() is None
    (world.files.folder / "active.json").unlink()
    world.files.start(EXPERIMENT)
    (world.files.folder / "latch.json").write_text("")
    world.clock.now_s += 1.0
    assert world.request() is None


def test_pinned_cached_and_foreign_outcomes_do_not_count(world: World) -> None:
    event = world.request()
    assert event is not None
    world.rollout.analyse()
    for other in (
        replace(event, pinned=True),
        replace(event, cache_hit=True),
        replace(event, experiment="e9"),
        replace(event, variant="unknown"),
    ):
        world.rollout.record(replace(other, unit="another", decision_id="another"))
    verdict = world.rollout.analyse()
    assert verdict is not None
    assert sum(verdict.units.values()) == 1


def test_an_answer_of_another_model_is_none_of_the_chosen_one_and_an_unknown_answer_is_not_right() -> None:
    def facts(**values: Any) -> tuple[bool, float | None]:
        event = OutcomeEvent("d", "m", values.pop("success", None), 1.0, variant="new", unit="u", **values)
        request = request_of(event, EXPERIMENT, None)
        assert request is not None
        return request.no_answer, request.failure

    assert (facts(), facts(fallback=True), facts(ok=False, success=0.0)) == ((False, None), (True, None), (True, None))
    assert (facts(fallback=True, success=1.0), facts(success=0.25)) == ((True, 0.0), (False, 0.75))


@pytest.mark.parametrize("delay_s", [-0.05, 60.0, 900.0])
def test_feedback_counts_before_its_outcome_and_long_after_also_on_the_last_request(
    tmp_path: Path, delay_s: float
) -> None:
    world = World(tmp_path, replace(EXPERIMENT, unit="session", unit_idle_s=60.0, judgement_s=1800.0))
    at_s = world.clock.now_s + 0.1
    if delay_s < 0:
        world.clock.now_s = at_s + delay_s
        world.rollout.record(FeedbackEvent("d-1", "thumb", 0.0, at_s=world.clock.now_s))
    world.clock.now_s = at_s
    world.rollout.record(OutcomeEvent("d-1", "m", None, 1.0, experiment="e1", variant="new", unit="u", at_s=at_s))
    if delay_s > 0:
        world.clock.now_s = at_s + delay_s
        world.rollout.record(FeedbackEvent("d-1", "thumb", 0.0, at_s=world.clock.now_s))
    world.clock.now_s = at_s + 2000.0
    verdict = world.rollout.analyse()
    assert verdict is not None
    assert (verdict.judged["challenger"], verdict.units["challenger"]) == (1, 1)


def test_an_event_dated_in_the_far_future_counts_from_its_arrival(world: World) -> None:
    event = world.request()
    assert event is not None
    world.rollout.record(FeedbackEvent(event.decision_id, "thumb", 0.0))  # dated by the real clock
    world.clock.now_s += 10.0
    verdict = world.rollout.analyse()
    assert verdict is not None
    assert sum(verdict.judged.values()) == 1


def damaged(folder: Path) -> None:
    """Leave a file that is no database."""
    (folder / "events.db").write_bytes(b"garbage" * 5000)
    for name in ("events.db-wal", "events.db-shm"):
        (folder / name).unlink(missing_ok=True)


def foreign_rows(folder: Path) -> None:
    """Write rows as another program, or a later version, might."""
    score = {"event": "feedback", "decision_id": "d", "kind": "thumb", "score": "good"}
    time_ = {"event": "outcome", "decision_id": "d", "model": "m", "experiment": "e1", "variant": "new", "unit": "u"}
    bodies = ["x", '{"event":"outcome2","v":2}', '{"event":"feedback"}', json.dumps(score)]
    bodies.append(json.dumps(time_ | {"at_s": "soon"}))
    with closing(sqlite3.connect(folder / "events.db")) as connection, connection:
        for index, body in enumerate(bodies):
            connection.execute(
                "INSERT INTO event (event_id, kind, at_s, body, experiment) VALUES (?, 'outcome', 1001, ?, 'e1')",
                (f"foreign-{index}", body),
            )


@pytest.mark.parametrize("damage", [damaged, foreign_rows])
def test_a_damaged_store_and_rows_of_other_programs_end_no_experiment_and_hide_no_harm(
    world: World, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    open_store(tmp_path).close()
    damage(tmp_path)
    world.rollout = world.opened(lambda: open_store(tmp_path, read_only=True))
    for _ in range(8):
        world.rollout.analyse()
    state = world.rollout.state()
    assert state.halt is None
    assert bool(state.trouble) == (damage is damaged)
    for _ in range(600):
        world.request(failing=0.5)
    halt = world.rollout.state().halt
    assert halt is not None
    assert "failure rate among judged answers" in halt.reason


def test_a_row_after_one_that_cannot_be_read_still_counts(world: World, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    foreign_rows(tmp_path)
    store.append([outcome(world.draw, "new", "u", 1002.0, 0.0)])
    store.close()
    world.rollout = world.opened(lambda: open_store(tmp_path, read_only=True))
    world.clock.now_s += 60.0
    verdict = world.rollout.analyse()
    assert verdict is not None
    assert verdict.units["challenger"] == 1


def test_the_gateway_a_restart_and_the_status_command_agree_byte_for_byte(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    key = store._privacy.digest  # type: ignore[attr-defined]
    world = World(tmp_path, replace(EXPERIMENT, unit="session", unit_idle_s=30.0, unit_requests=3))
    gateway = Rollout(
        world.files, read_store=lambda: open_store(tmp_path), unit_key=key, clock=world.clock, monotonic=world.clock
    )
    for _ in range(120):
        world.clock.now_s += world.draw.expovariate(0.2)
        given = gateway.assign(f"s{world.draw.randrange(25)}")
        assert given is not None
        event = replace(
            outcome(world.draw, given.variant.name, given.unit, world.clock.now_s, 0.2),
            decision_id=f"d{world.clock.now_s}",
        )
        feedback = FeedbackEvent(event.decision_id, "thumb", float(world.draw.random() < 0.8), at_s=world.clock.now_s)
        gateway.record(event)
        gateway.record(feedback)
        if world.draw.random() < 0.9:  # the others are still on their way to the store
            store.append([feedback, event])
        else:
            world.clock.now_s += 0.5
            gateway.analyse()
            store.append([feedback, event])
        gateway.analyse()
    world.clock.now_s += 2.0
    texts = [gateway.analyse() and gateway.record_text()]
    for _ in range(2):
        other = world.opened(lambda: open_store(tmp_path, read_only=True))
        other.analyse(act=False)
        texts.append(other.record_text())
    assert texts[0] == texts[1] == texts[2]
    assert json.loads(texts[0] or "")["evidence"]["units"] != {"control": 0, "challenger": 0}


def test_outcomes_from_store_and_memory_are_counted_once_and_a_restart_forgets_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    key = store._privacy.digest  # type: ignore[attr-defined]
    world = World(tmp_path)
    world.rollout = Rollout(
        world.files, read_store=lambda: open_store(tmp_path), unit_key=key, clock=world.clock, monotonic=world.clock,
        new_unit=world.new_unit,
    )  # fmt: skip
    for _ in range(60):
        event = world.request()
        assert event is not None
        store.append([event])
        world.rollout.analyse()
    world.clock.now_s += 5.0
    verdict = world.rollout.analyse()
    assert verdict is not None
    assert sum(verdict.units.values()) == 60
    before = json.loads(world.rollout.record_text() or "")["evidence"]
    again = world.opened(lambda: open_store(tmp_path))
    again.analyse()
    after = json.loads(again.record_text() or "")["evidence"]
    assert after == before


def test_the_record_of_a_rollback_is_kept_and_computed_again_byte_for_byte(world: World) -> None:
    for _ in range(600):
        world.request(failing=0.5)
    halt = world.files.halt()
    assert halt is not None
    record = world.files.record(halt.record)
    assert recompute(record) == record
    assert json.loads(record)["verdict"]["kind"] == "ROLLBACK"


def test_a_good_challenger_is_recommended_once_and_goes_on(tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, limits=LENIENT)
    world = World(tmp_path, experiment)
    for _ in range(2500):
        world.request()
        if world.draw.random() < 0.05:
            world.rollout.analyse()
    assert world.recorded.changes().count("shipped") == 1
    assert world.rollout.state().halt is None
    assert world.request() is not None


def test_kill_nine_keeps_every_acknowledged_event_and_every_halt_and_tears_nothing(tmp_path: Path) -> None:
    wrecks = campaign(8, seed=5)
    for after_s in (2.0, 4.0, 8.0, 16.0):  # on a slow machine no process of the campaign got as far as a halt
        if not any(w.halt_reported for w in wrecks):
            wrecks.append(kill_one(tmp_path / f"{after_s}", after_s, seed=8))
    assert {(w.lost, w.whole) for w in wrecks} == {(0, True)}
    assert max(w.ready_s for w in wrecks) < 2.0
    reported = [w for w in wrecks if w.halt_reported]
    assert reported
    assert all(w.halt_found for w in reported)
    assert sum(w.acknowledged for w in wrecks) > 100


@contextmanager
def running(folder: Path) -> Iterator[tuple[Rollout, EventWriter]]:
    """A rollout with its thread and the real store, in a new folder."""
    ExperimentState(folder / FOLDER).start(replace(EXPERIMENT, started_s=time.time() - 10))
    writer = EventWriter(lambda: open_store(folder))
    rollout = open_rollout(folder, recorder=writer, read_store=lambda: open_store(folder))
    rollout.start()
    try:
        yield rollout, writer
    finally:
        rollout.close()
        writer.close()


def rolled_back_after_s(folder: Path) -> float:
    """The seconds from the last of 200 requests until nobody gets a failing challenger any more."""
    draw = random.Random(3)
    with running(folder) as (rollout, writer):
        for _ in range(200):
            assignment = rollout.assign(f"s{draw.random()}")
            if assignment is None:
                break
            failing = 1.0 if assignment.arm == "challenger" else 0.0
            event = outcome(draw, assignment.variant.name, assignment.unit, time.time(), failing)
            writer.record(event)
            rollout.record(event)
        return until(lambda: rollout.assign("x") is None)


def test_with_its_thread_and_the_real_store_a_rollback_takes_effect_within_a_second(tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in range(TRIES))
    assert best(lambda: rolled_back_after_s(next(folders)), 1.25) < 1.25  # one analysis and one second


def test_a_forked_child_goes_on_although_the_parent_was_in_the_middle_of_an_analysis(world: World) -> None:
    assert world.request() is not None
    with world.rollout._view, world.rollout._lock:
        child = os.fork()
        if child == 0:
            world.clock.now_s += 1.0
            served = [world.request(failing=1.0) for _ in range(600)]
            os._exit(0 if served[0] is not None and served[-1] is None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_rollout_that_is_dropped_leaves_no_thread(tmp_path: Path) -> None:
    rollout = Rollout(ExperimentState(tmp_path / FOLDER))
    rollout.start()
    thread = rollout._thread
    assert thread is not None
    del rollout
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
