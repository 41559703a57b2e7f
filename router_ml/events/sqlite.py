"""The event store in a SQLite file: write-ahead log, one writing connection, a fresh one for each reader.

With `synchronous = NORMAL` a commit survives the death of the process; only a loss of power may undo the last ones,
and even that leaves the file whole (https://www.sqlite.org/wal.html).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError
from router_ml.events.event import Event
from router_ml.events.migrations import LATEST, migrate
from router_ml.events.privacy import Privacy
from router_ml.events.sql import SqlReading

_BUSY_S = 5.0
_INSERT = (
    "INSERT OR IGNORE INTO event (event_id, kind, at_s, decision_id, experiment, body) "
    "VALUES (:event_id, :kind, :at_s, :decision_id, :experiment, :body)"
)
_INSERT_TEXT = "INSERT OR IGNORE INTO query_text (decision_id, at_s, text, context) VALUES (?, ?, ?, ?)"


class SqliteStore(SqlReading):
    """An event store in one file. Thread-safe."""

    _mark = "?"

    def __init__(self, path: Path, privacy: Privacy, *, read_only: bool = False) -> None:
        self.path = path
        self._privacy = privacy
        self._read_only = read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        if read_only:
            with self._reader() as connection:
                self._check_version(connection)
        else:
            with self._lock:
                self._writer()

    def append(self, events: Sequence[Event]) -> None:
        """Keep events, all or none. Raises `StoreError`."""
        rows, texts = self._rows(events)
        with self._lock:
            try:
                connection = self._writer()
                with connection:
                    connection.executemany(_INSERT, [row._asdict() for row in rows])
                    if texts:
                        connection.executemany(_INSERT_TEXT, texts)
            except sqlite3.Error as error:
                self._drop_connection()
                raise self._failure("write to", error) from error

    def prune(self, before_s: Mapping[str, float]) -> int:
        """Delete events of each kind (and `"text"`) that are older than a Unix time; how many went."""
        with self._lock:
            try:
                connection = self._writer()
                gone = 0
                with connection:
                    for kind, at_s in before_s.items():
                        if kind == "text":
                            gone += connection.execute("DELETE FROM query_text WHERE at_s < ?", (at_s,)).rowcount
                        else:
                            condition = "DELETE FROM event WHERE kind = ? AND at_s < ?"
                            gone += connection.execute(condition, (kind, at_s)).rowcount
                return gone
            except sqlite3.Error as error:
                self._drop_connection()
                raise self._failure("prune", error) from error

    def close(self) -> None:
        """Close the writing connection."""
        with self._lock:
            self._drop_connection()

    def _writer(self) -> sqlite3.Connection:
        if self._read_only:
            raise StoreError(f"the event store {self.path} was opened for reading only")
        if self._connection is not None:
            return self._connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection)
            connection.isolation_level = "IMMEDIATE"
        except (sqlite3.Error, OSError) as error:
            raise self._failure("open", error) from error
        self._connection = connection
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._check_version(connection) == LATEST:
            return
        connection.execute("BEGIN IMMEDIATE")  # one process migrates, the others wait and find it done
        try:
            version = self._check_version(connection)
            reached = migrate(
                version,
                connection.execute,
                serial="INTEGER PRIMARY KEY AUTOINCREMENT",
                real="REAL",
                where=str(self.path),
            )
            connection.execute(f"PRAGMA user_version = {reached:d}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def _check_version(self, connection: sqlite3.Connection) -> int:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > LATEST:
            raise StoreError(
                f"the event store {self.path} has version {version} and this program reads up to {LATEST}; "
                "upgrade router-ml"
            )
        return version

    def _reader(self) -> closing[sqlite3.Connection]:
        try:
            uri = f"{self.path.resolve().as_uri()}?mode=ro"
            return closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S))
        except sqlite3.Error as error:
            raise self._failure("read", error) from error

    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        try:
            with self._reader() as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._failure("read", error) from error

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failure(self, verb: str, error: Exception) -> StoreError:
        return StoreError(f"cannot {verb} the event store {self.path}: {error}; check the disk and its permissions")
