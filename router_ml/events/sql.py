"""An event store behind SQL: the parts that all dialects share."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from router_ml.errors import InputError
from router_ml.events.event import Event, from_json
from router_ml.events.privacy import Privacy
from router_ml.events.store import (
    EVERYTHING,
    EventFilter,
    RefusedRecord,
    Stored,
    StoredFeatures,
    StoredText,
    Written,
    written,
)

_LOG = logging.getLogger("router_ml.events")

PAGE = 1000
_LEAST_PRUNED = 100  # a bounded share of a small store deletes at least so many
_FORK_WAIT_S = 2.0  # a fork waits so long for transactions to end
_STORES: weakref.WeakSet[SqlStore] = weakref.WeakSet()
_STORES_LOCK = threading.Lock()
_HELD: list[SqlStore] = []  # stores whose lock the fork in progress holds
_ABANDONED: list[Any] = []  # connections of the parent process, which a child must neither use nor close

_EVENT = ("event_id", "kind", "at_s", "decision_id", "experiment", "body")
_TEXT = ("decision_id", "at_s", "text", "context")
_FEATURES = ("decision_id", "at_s", "encoder", "packed")
_APART = {"text": "query_text", "features": "query_features"}  # kinds of a retention with tables of their own


class SqlStore(ABC):
    """An `EventStore` on one connection. Thread-safe; a fork finds no transaction open."""

    _mark: ClassVar[str]  # the dialect's placeholder
    _crosses_fork: ClassVar[bool] = True  # the parent may leave its connection open while it forks

    def __init__(self, privacy: Privacy) -> None:
        self._privacy = privacy
        self._lock = threading.Lock()
        self._connection: Any = None
        self._strange = 0
        with _STORES_LOCK:
            _STORES.add(self)

    @abstractmethod
    def _transaction(self, verb: str) -> Any:
        """Open a transaction that is rolled back on an error, which is raised as `StoreError`; a context manager."""

    @abstractmethod
    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        """Return all rows of a query. Raises `StoreError`."""

    def append(self, events: Sequence[Event]) -> None:
        """Store events, all or none. Raises `StoreError`, as `RefusedRecord` if one of the events is the cause."""
        rows = self._rows(events)
        texts = [(row.decision_id, row.at_s, row.text, row.context) for row in rows if row.text is not None]
        features = [(row.decision_id, row.at_s, *row.features) for row in rows if row.features is not None]
        with self._lock, self._transaction("write to") as cursor:
            self._insert(cursor, "event", _EVENT, [row[:6] for row in rows])
            if texts:
                self._insert(cursor, "query_text", _TEXT, texts)
            if features:
                self._insert(cursor, "query_features", _FEATURES, features)

    def read(self, selection: EventFilter = EVERYTHING, limit: int | None = None) -> Iterator[Stored]:
        """Yield the selected events, oldest first; in pages, so that no writer waits for a slow reader."""
        condition, values = selection.where(self._mark)
        place, left = selection.after_seq, limit
        while left is None or left > 0:
            page = PAGE if left is None else min(PAGE, left)
            order = f"SELECT seq, body FROM event WHERE {condition} ORDER BY seq LIMIT {page:d}"
            rows = self._query(order, [place, *values[1:]])
            for seq, body in rows:
                event = self._event(seq, body)
                if event is not None:
                    yield Stored(seq, event)
            if len(rows) < page:
                return
            place = rows[-1][0]
            left = None if left is None else left - len(rows)

    def texts(self) -> Iterator[StoredText]:
        """Yield every query whose text was stored, oldest first."""
        for decision_id, text, context in self._query(
            "SELECT decision_id, text, context FROM query_text ORDER BY at_s", ()
        ):
            yield StoredText(str(decision_id), str(text), None if context is None else json.loads(context))

    def features(self) -> Iterator[StoredFeatures]:
        """Yield the features of every query where they were stored, oldest first."""
        for row in self._query("SELECT decision_id, encoder, packed FROM query_features ORDER BY at_s", ()):
            yield StoredFeatures(*map(str, row))

    def last_seq(self) -> int:
        """Return the sequence number of the newest event; 0 if there is none."""
        return int(self._query("SELECT coalesce(max(seq), 0) FROM event", ())[0][0])

    def expired(self, before_s: Mapping[str, float]) -> tuple[int, int]:
        """Return how many events (and texts) are older than the times of their kinds, and how many there are."""
        old = every = 0
        for kind, at_s in before_s.items():
            old += self._count(kind, at_s)
            every += self._count(kind)
        return old, every

    def prune(self, before_s: Mapping[str, float], *, share: float = 1.0) -> int:
        """Delete events of each kind (and `"text"`, `"features"`) older than its Unix time, at most a share of each."""
        gone = 0
        for kind, at_s in before_s.items():
            most = max(_LEAST_PRUNED, int(share * self._count(kind)))
            table, key = (_APART[kind], "decision_id") if kind in _APART else ("event", "seq")
            old, values = self._older(kind, at_s)
            order = f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} {old} ORDER BY at_s LIMIT {most:d})"
            with self._lock, self._transaction("prune") as cursor:
                cursor.execute(order, values)
                gone += cursor.rowcount
        return gone

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop_connection()

    def _count(self, kind: str, before_s: float = float("inf")) -> int:
        condition, values = self._older(kind, before_s)
        table = _APART.get(kind, "event")
        return int(self._query(f"SELECT count(*) FROM {table} {condition}", values)[0][0])

    def _older(self, kind: str, at_s: float) -> tuple[str, list[object]]:
        if kind in _APART:
            return f"WHERE at_s < {self._mark}", [at_s]
        return f"WHERE kind = {self._mark} AND at_s < {self._mark}", [kind, at_s]

    def _event(self, seq: int, body: str) -> Event | None:
        """Return the event of a row; None for what another version, or another program, has written."""
        try:
            return from_json(body)
        except InputError as error:
            self._strange += 1
            if self._strange == 1:
                _LOG.warning(
                    "row %d of the event store is not an event and is skipped, like any others of this kind: %s",
                    seq,
                    error,
                )
            return None

    def _rows(self, events: Sequence[Event]) -> list[Written]:
        try:
            return [written(event, self._privacy) for event in events]
        except Exception as error:  # an error of one event does not stop the others
            raise RefusedRecord(f"an event cannot be converted: {type(error).__name__}: {error}") from error

    def _insert(self, cursor: Any, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Insert rows in their order, without those that the table has already."""
        marks = ", ".join([self._mark] * len(columns))
        order = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        cursor.executemany(order, rows)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _after_fork_in_child(self) -> None:
        if self._connection is not None:
            _ABANDONED.append(self._connection)
            self._connection = None
        self._lock = threading.Lock()


def _before_fork() -> None:
    deadline_s = time.monotonic() + _FORK_WAIT_S
    with _STORES_LOCK:
        stores = list(_STORES)
    for store in stores:
        if store._lock.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            _HELD.append(store)
            if not store._crosses_fork:
                store._drop_connection()


def _after_fork_in_parent() -> None:
    while _HELD:
        _HELD.pop()._lock.release()


def _after_fork_in_child() -> None:
    global _STORES_LOCK
    _STORES_LOCK = threading.Lock()
    _HELD.clear()
    for store in list(_STORES):
        store._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
