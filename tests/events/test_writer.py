"""The writer keeps requests and disks apart, and loses nothing it acknowledged."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from router_ml.errors import StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import Event, ExperimentEvent, FeedbackEvent
from router_ml.events.privacy import load_key, redact
from router_ml.events.store import EVERYTHING, EventFilter, Stored
from router_ml.events.writer import EventWriter


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
    assert writer.close()
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
    assert writer.close()
    assert [e.decision_id for e in store.kept if isinstance(e, FeedbackEvent)] == [f"d{i}" for i in range(100)]
    assert writer.state().failures == 2


def test_one_event_that_cannot_be_written_does_not_hold_up_the_others() -> None:
    store = Memory()
    writer = EventWriter(lambda: store)
    for i in range(10):
        writer.record(feedback(i, "unspeakable" if i == 4 else None))
    assert writer.close()
    assert (len(store.kept), writer.state().dropped) == (9, 1)


def test_after_a_fork_the_child_writes_its_own_events(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    writer.record(feedback(1))
    assert writer.flush()
    child = os.fork()
    if child == 0:
        try:
            writer.record(feedback(2))
            os._exit(0 if writer.flush(5.0) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    writer.record(feedback(3))
    assert writer.close()
    ids = {s.event.decision_id for s in open_store(tmp_path).read() if isinstance(s.event, FeedbackEvent)}
    assert ids == {"d1", "d2", "d3"}


def killed_writer(folder: Path, after_s: float) -> int:
    """Let a process write under load, kill it after a while, and return the last number it acknowledged."""
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
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = 0
    while block := os.read(receive, 8):
        acknowledged = int.from_bytes(block, "big")
    os.close(receive)
    return acknowledged


def test_kill_nine_under_load_loses_no_acknowledged_event_and_leaves_the_file_whole(tmp_path: Path) -> None:
    draw = random.Random(6)
    some = 0
    for run in range(12):
        folder = tmp_path / str(run)
        acknowledged = killed_writer(folder, draw.uniform(0.02, 0.25))
        some += acknowledged
        began = time.monotonic()
        store = open_store(folder)
        kept = [s.event.detail["n"] for s in store.read() if isinstance(s.event, ExperimentEvent)]
        assert time.monotonic() - began < 2.0
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= acknowledged
        with sqlite3.connect(folder / "events.db") as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()
    assert some > 0


def test_the_key_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    key = load_key(tmp_path)
    assert load_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "events.key").stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["events.key"]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to a.b+c@mail.example.org today", "write to [email] today"),
        ("my password is hunter2!", "my [secret]"),
        ("key sk-abcdefghijklmnopqrstuvwx", "key [secret]"),
        ("IBAN DE89 3704 0044 0532 0130 00 please", "IBAN [iban] please"),
        ("card 4111 1111 1111 1111", "card [number]"),
        ("host 192.168.1.20 is down", "host [address] is down"),
        ("https://bob:pw@host/x", "https://[credentials]@host/x"),
        ("in 2024 we sold 1500 of 20", "in 2024 we sold 1500 of 20"),
    ],
)
def test_redaction_takes_what_names_a_person_or_opens_a_door(text: str, clean: str) -> None:
    assert redact(text) == clean
