"""The writer keeps requests and disks apart, and loses nothing it acknowledged."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from router_ml.context import parse_context
from router_ml.errors import StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, Event, ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.retention import Retention
from router_ml.events.store import EVERYTHING, EventFilter, EventStore, RefusedRecord, Stored
from router_ml.events.writer import EventWriter
from tests.timing import PATIENCE_S, TRIES, best, until


class Memory:
    """A store that can be told to fail."""

    def __init__(self, failures: int = 0) -> None:
        self.kept: list[Event] = []
        self.failures = failures

    def append(self, events: Sequence[Event]) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is away")
        for event in events:
            if isinstance(event, FeedbackEvent) and event.comment == "unspeakable":
                raise ValueError("cannot be put into words")
        self.kept.extend(events)

    def read(self, selection: EventFilter = EVERYTHING, limit: int | None = None) -> Iterator[Stored]:
        return iter([])

    def texts(self) -> Iterator[tuple[str, str]]:
        return iter([])

    def last_seq(self) -> int:
        return len(self.kept)

    def expired(self, before_s: Mapping[str, float]) -> tuple[int, int]:
        return 0, len(self.kept)

    def prune(self, before_s: Mapping[str, float], *, share: float = 1.0) -> int:
        return 0

    def close(self) -> None:
        pass


def feedback(number: int, comment: str | None = None) -> FeedbackEvent:
    return FeedbackEvent(f"d{number}", "thumb", 1.0, comment)


def test_what_was_flushed_is_in_the_store_in_order(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    events = [feedback(i) for i in range(3000)]
    for event in events:
        writer.record(event)
    assert writer.close(PATIENCE_S)
    assert [stored.event for stored in open_store(tmp_path).read()] == events
    assert writer.state().written == 3000


def test_a_full_queue_drops_and_counts_but_never_blocks_or_raises() -> None:
    def never() -> Memory:
        raise StoreError("away")

    writer = EventWriter(never, capacity=10)
    for i in range(5000):
        writer.record(feedback(i))
    state = writer.state()
    assert state.dropped >= 5000 - 10 - 1000  # the queue and at most one batch in hand
    assert state.dropped + state.pending == 5000
    assert not writer.flush(0.01)
    writer.close(0.01)


def test_a_store_that_fails_for_a_while_loses_nothing() -> None:
    store = Memory(failures=2)
    writer = EventWriter(lambda: store)
    for i in range(100):
        writer.record(feedback(i))
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    assert [e.decision_id for e in store.kept if isinstance(e, FeedbackEvent)] == [f"d{i}" for i in range(100)]
    assert writer.state().failures == 2


def test_one_event_that_cannot_be_written_does_not_hold_up_the_others() -> None:
    store = Memory()
    writer = EventWriter(lambda: store)
    for i in range(10):
        writer.record(feedback(i, "unspeakable" if i == 4 else None))
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    assert (len(store.kept), writer.state().dropped) == (9, 1)


def test_after_a_fork_the_child_writes_its_own_events(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    writer.record(feedback(1))
    assert writer.flush(PATIENCE_S)
    child = os.fork()
    if child == 0:
        try:
            writer.record(feedback(2))
            os._exit(0 if writer.flush(PATIENCE_S) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    writer.record(feedback(3))
    assert writer.close(PATIENCE_S)
    ids = {s.event.decision_id for s in open_store(tmp_path).read() if isinstance(s.event, FeedbackEvent)}
    assert ids == {"d1", "d2", "d3"}


def killed_writer(folder: Path, after_s: float, once_it_writes: bool) -> int:
    """Let a process write under load, kill it after a while, and return the last number it acknowledged.

    `once_it_writes`: the while begins with its first acknowledgement, however slow the machine."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        writer = EventWriter(lambda: open_store(folder))
        number = 0
        while True:
            for _ in range(50):
                number += 1
                writer.record(ExperimentEvent("load", "look", {"n": number}))
            if writer.flush():
                os.write(send, number.to_bytes(8, "big"))
    os.close(send)
    acknowledged = int.from_bytes(os.read(receive, 8), "big") if once_it_writes else 0
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while block := os.read(receive, 8):
        acknowledged = int.from_bytes(block, "big")
    os.close(receive)
    return acknowledged


def numbers(store: EventStore) -> list[int]:
    return [s.event.detail["n"] for s in store.read() if isinstance(s.event, ExperimentEvent)]


def read_after_s(folder: Path) -> float:
    """The seconds until a store has been opened and read."""
    began_s = time.monotonic()
    store = open_store(folder)
    numbers(store)
    took_s = time.monotonic() - began_s
    store.close()
    return took_s


def test_kill_nine_under_load_loses_no_acknowledged_event_and_leaves_the_file_whole(tmp_path: Path) -> None:
    draw = random.Random(6)
    some = 0
    for run in range(12):
        folder = tmp_path / str(run)
        folder.mkdir(mode=0o700)
        acknowledged = killed_writer(folder, draw.uniform(0.02, 0.25), once_it_writes=run % 2 == 1)
        some += acknowledged
        copies = (Path(shutil.copytree(folder, tmp_path / f"{run}.{number}")) for number in range(TRIES))
        assert best(lambda copies=copies: read_after_s(next(copies)), 2.0) < 2.0
        store = open_store(folder)
        kept = numbers(store)
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= acknowledged
        with sqlite3.connect(folder / "events.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()
    assert some > 0


class Picky(Memory):
    """A store that refuses one record for good, as a database does with a value it cannot hold."""

    def append(self, events: Sequence[Event]) -> None:
        if any(isinstance(event, FeedbackEvent) and event.decision_id == "d3" for event in events):
            raise RefusedRecord("no such value")
        super().append(events)


def test_a_refused_record_is_dropped_and_counted_and_the_others_are_stored() -> None:
    store = Picky()
    writer = EventWriter(lambda: store)
    for i in range(10):
        writer.record(feedback(i))
    assert writer.flush(PATIENCE_S)
    writer.record(feedback(10))
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    ids = [e.decision_id for e in store.kept if isinstance(e, FeedbackEvent)]
    assert ids == [f"d{i}" for i in range(11) if i != 3]
    assert (writer.state().written, writer.state().dropped) == (10, 1)


def test_a_store_that_fails_while_records_are_sorted_out_loses_none_of_them() -> None:
    store = Picky()
    writer = EventWriter(lambda: store)
    for i in range(6):
        writer.record(feedback(i))
    store.failures = 2  # after the refusal of the batch, two single writes fail
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    assert writer.state().dropped == 1
    assert len(store.kept) == 5


def test_an_opener_that_raises_anything_is_tried_again() -> None:
    store, tries = Memory(), [0]

    def opener() -> Memory:
        tries[0] += 1
        if tries[0] < 3:
            raise ValueError("not yet")
        return store

    writer = EventWriter(opener)
    writer.record(feedback(1))
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    assert len(store.kept) == 1


def test_events_of_a_writer_nobody_refers_to_any_more_are_written_and_its_thread_ends(tmp_path: Path) -> None:
    before = threading.active_count()
    writer = EventWriter(lambda: open_store(tmp_path))
    writer.record(feedback(1))
    del writer
    gc.collect()
    until(lambda: threading.active_count() <= before)
    assert len(list(open_store(tmp_path).read())) == 1


def test_what_waits_is_written_at_the_end_of_the_interpreter(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom router_ml.events.connect import open_store\n"
        "from router_ml.events.event import FeedbackEvent\nfrom router_ml.events.writer import EventWriter\n"
        "def main():\n    writer = EventWriter(lambda: open_store(sys.argv[1]))\n"
        "    for i in range(500): writer.record(FeedbackEvent(f'd{i}', 'thumb', 1.0))\n"
        "main()\nraise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120).returncode == 3
    assert len(list(open_store(tmp_path).read())) == 500


def test_a_process_of_a_pool_writes_what_it_recorded_though_it_runs_no_exit_handlers(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    process = multiprocessing.get_context("fork").Process(target=writer.record, args=(feedback(7),))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    assert [s.event.decision_id for s in open_store(tmp_path).read() if isinstance(s.event, FeedbackEvent)] == ["d7"]


def test_children_forked_under_load_write_their_events(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    stop = threading.Event()

    def load() -> None:
        while not stop.wait(0.002):
            for _ in range(20):
                writer.record(feedback(0))

    thread = threading.Thread(target=load)
    thread.start()
    statuses = []
    for child in range(12):
        time.sleep(0.007 * (child % 5))
        pid = os.fork()
        if pid == 0:
            writer.record(OutcomeEvent(f"child{child}", "m", 1.0, 1.0))
            os._exit(0 if writer.flush(PATIENCE_S) else 1)
        statuses.append(os.waitpid(pid, 0)[1])
    stop.set()
    thread.join()
    assert writer.close(PATIENCE_S)
    assert statuses == [0] * 12
    stored = [s.event for s in open_store(tmp_path).read(EventFilter(("outcome",)))]
    assert {e.decision_id for e in stored if isinstance(e, OutcomeEvent)} == {f"child{i}" for i in range(12)}
    with sqlite3.connect(tmp_path / "events.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_signal_handler_may_record_while_a_record_is_under_way() -> None:
    writer = EventWriter(Memory)
    count = [0]

    def handler(*_: object) -> None:
        count[0] += 1
        writer.record(feedback(0))
        signal.setitimer(signal.ITIMER_REAL, 0.001)

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < 1.0 or (count[0] <= 10 and passed_s < PATIENCE_S):
            writer.record(feedback(1))
            time.sleep(0)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert count[0] > 10
    assert writer.close(PATIENCE_S)


def test_a_backlog_keeps_no_conversations() -> None:
    class Away(Memory):
        def append(self, events: Sequence[Event]) -> None:
            if away:
                raise StoreError("away")
            super().append(events)

    away = [True]
    store = Away()
    writer = EventWriter(lambda: store)
    context = parse_context({"history": ["a long conversation"]})
    for i in range(4000):
        writer.record(DecisionEvent(f"d{i}", "m", "simple", "p", "b", 1.0, context=context))
    away.clear()
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    with_context = sum(isinstance(e, DecisionEvent) and e.context is not None for e in store.kept)
    assert len(store.kept) == 4000
    assert with_context <= 2001  # the batch in hand, and as many in the queue


def test_a_store_whose_file_was_removed_is_made_again(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path / "store"))
    writer.record(feedback(1))
    assert writer.flush(PATIENCE_S)
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    (tmp_path / "store").rmdir()
    writer.record(feedback(2))
    assert writer.flush(PATIENCE_S)
    assert writer.close(PATIENCE_S)
    ids = [s.event.decision_id for s in open_store(tmp_path / "store").read() if isinstance(s.event, FeedbackEvent)]
    assert ids == ["d2"]


def test_a_clock_that_jumps_deletes_nothing(tmp_path: Path) -> None:
    wall, steady = [1e9], [0.0]
    writer = EventWriter(
        lambda: open_store(tmp_path), retention=Retention(), clock=lambda: wall[0], monotonic=lambda: steady[0]
    )
    for i in range(50):
        writer.record(OutcomeEvent(f"d{i}", "m", 1.0, 1.0, at_s=1e9))
    assert writer.flush(PATIENCE_S)
    wall[0] += 400 * 86_400.0
    steady[0] += 3700.0
    writer.record(OutcomeEvent("later", "m", 1.0, 1.0, at_s=wall[0]))
    assert writer.close(PATIENCE_S)
    assert len(list(open_store(tmp_path).read())) == 51
