"""Both stores keep the same promises; every test here runs against SQLite and a real PostgreSQL server."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router_ml.context import parse_context
from router_ml.errors import StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import AttemptEvent, DecisionEvent, ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.export import export_events, export_outcomes, export_queries
from router_ml.events.migrations import LATEST
from router_ml.events.retention import Retention
from router_ml.events.store import EventFilter, EventStore, RefusedRecord
from router_ml.events.writer import EventWriter
from router_ml.jsonl import read_outcomes, read_queries

Opener = Callable[..., EventStore]
DAY_S = 86_400.0


@pytest.fixture(params=["sqlite", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    opened: list[EventStore] = []
    if request.param == "postgres":
        import psycopg

        url: Any = request.getfixturevalue("postgres_url")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS event, query_text, query_features, event_store")
    else:
        url = tmp_path / "events.db"

    def open_one(**options: Any) -> EventStore:
        opened.append(open_store(url, key_dir=tmp_path, **options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def outcome(decision: str, at_s: float = 0.0, **values: Any) -> OutcomeEvent:
    success = values.pop("success", 1.0)
    return OutcomeEvent(decision, values.pop("model", "m"), success, 1.5, at_s=at_s, **values)


def test_events_come_back_in_order_also_after_opening_again(opener: Opener) -> None:
    first = [outcome(f"d{i}", at_s=float(i)) for i in range(5)]
    opener().append(first)
    store = opener()
    store.append([outcome("d5", at_s=5.0)])
    assert [s.event.decision_id for s in store.read() if isinstance(s.event, OutcomeEvent)] == [
        f"d{i}" for i in range(6)
    ]
    assert [s.event for s in store.read()][:5] == first
    assert store.last_seq() == max(s.seq for s in store.read())


def test_an_event_written_twice_is_kept_once(opener: Opener) -> None:
    store, event = opener(), outcome("d1")
    store.append([event])
    store.append([event, outcome("d2")])
    assert len(list(store.read())) == 2


def test_reading_selects_by_kind_time_experiment_and_place(opener: Opener) -> None:
    store = opener()
    store.append(
        [
            outcome("d1", 1.0),
            outcome("d2", 2.0, experiment="e1"),
            ExperimentEvent("e1", "started", at_s=3.0),
            outcome("d3", 4.0),
        ]
    )

    def found(**parts: Any) -> list[float]:
        return [s.event.at_s for s in store.read(EventFilter(**parts))]

    assert found(kinds=("outcome",)) == [1.0, 2.0, 4.0]
    assert found(since_s=2.0, until_s=4.0) == [2.0, 3.0]
    assert found(experiment="e1") == [2.0, 3.0]
    assert found(decision_id="d3") == [4.0]
    place = next(iter(store.read())).seq
    assert found(after_seq=place) == [2.0, 3.0, 4.0]
    assert len(list(store.read(limit=2))) == 2


def test_reading_goes_on_past_the_first_page(opener: Opener) -> None:
    store = opener()
    store.append([outcome(f"d{i}", float(i)) for i in range(2500)])
    assert [s.event.at_s for s in store.read()] == [float(i) for i in range(2500)]


def test_units_are_hashed_and_texts_left_out_by_default(opener: Opener, tmp_path: Path) -> None:
    store = opener()
    decision = DecisionEvent("d1", "m", "simple", "balanced", "b", 1.0, unit="session-7", text="my secret wish")
    store.append([decision, outcome("d1", unit="session-7"), FeedbackEvent("d1", "thumb", 0.0, comment="rude words")])
    out = tmp_path / "events.jsonl"
    assert export_events(store, out) == 3
    written = out.read_text()
    for private in ("session-7", "secret wish", "rude"):
        assert private not in written
    rows = [json.loads(line) for line in written.splitlines()]
    assert rows[0]["unit"] == rows[1]["unit"]
    assert len(rows[0]["query_key"]) == 32
    assert list(store.texts()) == []


def test_kept_texts_are_redacted_and_exported(opener: Opener, tmp_path: Path) -> None:
    store = opener(keep_text=True)
    text = "mail dana@example.org or call +49 170 1234567, \ud800 ünïcode"
    store.append([DecisionEvent("d1", "m", "simple", "balanced", "b", 1.0, text=text)])
    assert list(store.texts()) == [("d1", "mail [email] or call [number], ? ünïcode", None)]
    assert export_queries(store, tmp_path / "queries.jsonl") == 1


def test_what_came_with_a_query_is_kept_and_exported_with_its_text_only(opener: Opener, tmp_path: Path) -> None:
    context = parse_context(
        {"history": ["user: mail dana@example.org", "assistant: done"], "tools": [{"name": "mail", "parameters": {
            "properties": {"to": {"description": "who"}}}}], "session_id": "s-1", "user_id": "u-1", "prompt_tokens": 40}
    )  # fmt: skip
    decision = DecisionEvent("d1", "m", "simple", "balanced", "b", 1.0, text="and Tom", context=context)
    silent = opener()
    silent.append([dataclasses.replace(decision, decision_id="d0", event_id="e0")])
    assert list(silent.texts()) == []
    store = opener(keep_text=True)
    store.append([decision])
    for kind in (export_events, export_queries):
        kind(store, tmp_path / "out.jsonl")
        written = (tmp_path / "out.jsonl").read_text()
        assert not any(private in written for private in ("dana@", "s-1", "u-1"))
    (query,) = read_queries(tmp_path / "out.jsonl")
    assert query.text == "and Tom"
    assert query.context.tools == context.tools
    assert query.context.prompt_tokens == 40
    assert [turn.content for turn in query.context.history] == ["mail [email]", "done"]


def test_retention_removes_what_is_old_and_keeps_what_was_decided(opener: Opener) -> None:
    store = opener(keep_text=True)
    now_s = 400 * DAY_S
    store.append(
        [
            DecisionEvent("old", "m", "simple", "p", "b", 1.0, text="words", at_s=now_s - 31 * DAY_S),
            outcome("older", now_s - 181 * DAY_S),
            outcome("young", now_s - 179 * DAY_S),
            ExperimentEvent("e1", "rolled_back", at_s=0.0),
        ]
    )
    assert store.prune(Retention().before(now_s)) == 2
    assert [type(s.event).__name__ for s in store.read()] == ["DecisionEvent", "OutcomeEvent", "ExperimentEvent"]
    assert list(store.texts()) == []


def test_outcomes_are_exported_in_the_form_training_reads(opener: Opener, tmp_path: Path) -> None:
    store = opener()
    store.append(
        [
            outcome("d1", success=1.0),
            FeedbackEvent("d1", "thumb", 0.0),
            FeedbackEvent("d1", "retry", 1.0),  # what is inferred does not overrule a person
            outcome("d2", success=None),
            FeedbackEvent("d2", "tool_error", 0.0),
            outcome("d3", success=0.5),
            FeedbackEvent("d3", "rephrasing", 0.0),
            outcome("d4", cache_hit=True),
            AttemptEvent("d5", "big", 0, ok=False, latency_s=3.0, error="timeout"),
            outcome("d5", model="small", fallback=True),
            AttemptEvent("d6", "big", 0, ok=False, latency_s=0.0, error="absent"),  # says nothing of what it can do
            outcome("d6", model="small", fallback=True, success=None),
            AttemptEvent("d7", "big", 0, ok=False, error="refused"),
            outcome("d7", model="big", ok=False, success=0.0),
        ]
    )
    path = tmp_path / "outcomes.jsonl"
    assert export_outcomes(store, path) == 6
    rows = {(o.query_id, o.model): o.success for o in read_outcomes(path)}
    assert rows == {("d1", "m"): 0.0, ("d2", "m"): 0.0, ("d3", "m"): 0.5, ("d5", "big"): 0.0, ("d5", "small"): 1.0,
                    ("d6", "small"): None}  # fmt: skip


def test_an_older_sqlite_store_is_migrated_and_keeps_its_events(tmp_path: Path) -> None:
    from router_ml.events.migrations import MIGRATIONS

    path = tmp_path / "events.db"
    with sqlite3.connect(path) as connection:
        for statement in MIGRATIONS[0].statements:
            connection.execute(statement.format(serial="INTEGER PRIMARY KEY AUTOINCREMENT", real="REAL"))
        body = '{"event":"feedback","v":1,"decision_id":"d","kind":"thumb","score":1.0,"at_s":1.0,"event_id":"x"}'
        connection.execute("INSERT INTO event (event_id, kind, at_s, body) VALUES ('x', 'feedback', 1.0, ?)", (body,))
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = open_store(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (LATEST,)
        assert connection.execute("SELECT count(*) FROM query_text").fetchone() == (0,)
    assert [s.event for s in store.read()] == [FeedbackEvent("d", "thumb", 1.0, at_s=1.0, event_id="x")]
    store.close()


def test_a_store_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    open_store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="upgrade router-ml"):
        open_store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("url", ["mysql://host/db", "redis://host"])
def test_an_unknown_url_names_what_can_be_used(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:/// or postgresql://"):
        open_store(url)


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    path.write_bytes(b"nothing of the kind " * 100)
    with pytest.raises(StoreError, match="cannot open the event store"):
        open_store(path)


def test_a_missing_store_opened_for_reading_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no event store"):
        open_store(tmp_path / "events.db", read_only=True)


def test_the_password_of_a_database_is_not_in_the_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_store("postgresql://user:hunter2@127.0.0.1:1/none", key_dir=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_postgres_connects_again_after_the_server_dropped_it(postgres_url: str, tmp_path: Path) -> None:
    import psycopg

    store = open_store(postgres_url, key_dir=tmp_path)
    store.append([outcome("before-the-cut")])
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with pytest.raises(StoreError, match="check that the server is up"):
        store.append([outcome("lost-in-the-cut")])
    store.append([outcome("after-the-cut")])
    assert {s.event.decision_id for s in store.read() if isinstance(s.event, OutcomeEvent)} >= {
        "before-the-cut",
        "after-the-cut",
    }
    store.close()


def test_a_value_the_database_refuses_is_told_apart_from_a_database_that_fails(opener: Opener) -> None:
    store = opener()
    with pytest.raises(RefusedRecord):
        store.append([outcome("fine"), FeedbackEvent(["a list"], "thumb", 1.0)])  # type: ignore[arg-type]
    with pytest.raises(RefusedRecord):
        store.append([OutcomeEvent("odd", "m", 1.0, 1.0, unit=7)])  # type: ignore[arg-type]
    assert list(store.read()) == []  # all or none
    store.append([outcome("fine")])
    assert len(list(store.read())) == 1


@pytest.mark.parametrize("odd", ["a\0b", "half \ud800", "x" * 100_000, ["list"]])
def test_an_odd_id_never_stops_the_events_after_it(opener: Opener, odd: Any) -> None:
    store = opener()
    writer = EventWriter(lambda: store)
    writer.record(outcome("before"))
    writer.record(FeedbackEvent(odd, "thumb", 1.0))
    writer.record(outcome("after"))
    assert writer.flush()
    stored = [s.event for s in store.read(EventFilter(("outcome",)))]
    assert [e.decision_id for e in stored if isinstance(e, OutcomeEvent)] == ["before", "after"]
    assert writer.state().written + writer.state().dropped == 3


FOREIGN = (
    "{}", "not json", "[" * 5000, '{"event":"future","v":9}', '{"event":"feedback","decision_id":"x"}',
    '{"event":"outcome","decision_id":"y","model":"m","at_s":"soon"}',
    '{"event":"decision","decision_id":"x","model":"m","complexity":"simple","policy":"p","bundle":"b","propensity":1.0,'
    '"candidates":[{"model":"a"}]}',
)  # fmt: skip


def test_rows_that_are_no_events_are_skipped_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(tmp_path)
    store.append([outcome("first")])
    with sqlite3.connect(tmp_path / "events.db") as connection:
        for number, body in enumerate((*FOREIGN, b"\xff\xfe")):
            connection.execute(
                "INSERT INTO event (event_id, kind, at_s, body) VALUES (?, 'outcome', 1.0, ?)", (str(number), body)
            )
    store.append([outcome("last")])
    stored = [s.event for s in store.read()]
    assert [e.decision_id for e in stored if isinstance(e, OutcomeEvent)] == ["first", "last"]
    assert len([r for r in caplog.records if "is not an event" in r.message]) == 1


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b"garbage" * 1000),
    lambda path: path.mkdir(),
    lambda path: sqlite3.connect(path).executescript("CREATE TABLE event (x); INSERT INTO event VALUES (1)"),
    lambda path: sqlite3.connect(path).executescript("PRAGMA user_version = -7"),
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_a_typed_error_for_writer_and_reader(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "events.db")
    with pytest.raises(StoreError):
        open_store(tmp_path).append([outcome("d")])
    with pytest.raises(StoreError):
        list(open_store(tmp_path, read_only=True).read())


def test_files_of_a_store_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    store = open_store(tmp_path / "state")
    store.append([outcome("d")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    store.close()
    assert set(modes) >= {"events.db", "events.db-wal", "events.key"}
    assert set(modes.values()) == {0o600}


def test_a_bounded_share_prunes_the_oldest_first(opener: Opener) -> None:
    store = opener()
    store.append([outcome(f"d{i}", at_s=float(i)) for i in range(2000)])
    before = {"outcome": 1500.0}
    assert store.expired(before) == (1500, 2000)
    assert store.prune(before, share=0.1) == 200
    assert min(s.event.at_s for s in store.read()) == 200.0
    assert store.prune(before) == 1300


def test_both_stores_keep_the_declared_protocol(opener: Opener) -> None:
    assert isinstance(opener(), EventStore)


def test_a_store_can_be_used_on_both_sides_of_a_fork(opener: Opener) -> None:
    store = opener()
    store.append([outcome("parent")])
    child = os.fork()
    if child == 0:
        try:
            store.append([outcome("child")])
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    store.append([outcome("again")])
    ids = {s.event.decision_id for s in store.read() if isinstance(s.event, OutcomeEvent)}
    assert ids == {"parent", "child", "again"}


@pytest.mark.parametrize("url", [
    "postgresql://u:hunter2%zz@127.0.0.1:1/db",
    "postgresql://127.0.0.1:1/db?user=u&password=hunter2&sslmode=sometimes",
    "postgresql://u:hunter2 pw@127.0.0.1:1/db",
    "postgresql://u:pw@127.0.0.1:1/db?pasword=hunter2",
    "postgresql://u:hunter2/pw@127.0.0.1:1/db",
    "postgresql://u:pw@127.0.0.1:hunter2/db",
])  # fmt: skip
def test_no_error_of_an_odd_database_url_repeats_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url, key_dir=tmp_path)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes links for other users")
def test_nothing_is_written_through_a_link_of_another_user(tmp_path: Path) -> None:
    target, link = tmp_path / "theirs.db", tmp_path / "state" / "events.db"
    link.parent.mkdir()
    link.symlink_to(target)
    open_store(f"sqlite:///{link}").close()
    assert target.exists()  # our own link may lead to another disk
    target.unlink()
    os.lchown(link, 65534, 65534)
    with pytest.raises(StoreError, match="symbolic link of another user"):
        open_store(f"sqlite:///{link}")
    assert not target.exists()


def test_a_large_batch_is_stored_in_its_order_without_what_is_known(opener: Opener) -> None:
    store = opener()
    events = [OutcomeEvent(f"d{number}", "m", 1.0, 2.0) for number in range(300)]
    store.append(events[7:9])
    store.append([*events, *events[:5]])
    stored = [s.event.event_id for s in store.read()]
    assert stored == [event.event_id for event in (*events[7:9], *events[:7], *events[9:])]


def test_a_large_batch_with_a_value_that_is_refused_stores_nothing(opener: Opener) -> None:
    store = opener()
    events = [OutcomeEvent(f"d{number}", "m", 1.0, 2.0) for number in range(300)]
    with pytest.raises(RefusedRecord):
        store.append([*events, dataclasses.replace(events[0], event_id="new", decision_id="\ud800")])
    assert store.last_seq() == 0
    store.append(events)
    assert len(list(store.read())) == 300


def test_an_account_that_may_not_create_temporary_tables_stores_large_batches(postgres_url: str) -> None:
    import psycopg

    events = [OutcomeEvent(f"d{number}", "m", 1.0, 2.0) for number in range(300)]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for order in (
            "DROP TABLE IF EXISTS event, query_text, query_features, event_store",
            "CREATE ROLE plain LOGIN",
            "GRANT CREATE ON SCHEMA public TO plain",
            "REVOKE TEMPORARY ON DATABASE postgres FROM PUBLIC",
        ):
            connection.execute(order)
        try:
            store = open_store(postgres_url.replace("tester@", "plain@"))
            store.append(events)
            assert [s.event for s in store.read()] == events
            store.close()
        finally:
            connection.execute("GRANT TEMPORARY ON DATABASE postgres TO PUBLIC")
            connection.execute("DROP OWNED BY plain")
            connection.execute("DROP ROLE plain")
