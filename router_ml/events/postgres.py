"""The event store in PostgreSQL, with the behaviour of the SQLite one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from router_ml.errors import StoreError
from router_ml.events.event import Event
from router_ml.events.migrations import migrate
from router_ml.events.privacy import Privacy
from router_ml.events.sql import SqlReading

if TYPE_CHECKING:
    import psycopg

_CONNECT_S = 5
# Writers take this lock, so that the order of `seq` is the order of commits and a reader's watermark misses nothing.
_LOCK = 7_263_910_455
_INSERT = (
    "INSERT INTO event (event_id, kind, at_s, decision_id, experiment, body) VALUES (%s, %s, %s, %s, %s, %s) "
    "ON CONFLICT (event_id) DO NOTHING"
)
_INSERT_TEXT = (
    "INSERT INTO query_text (decision_id, at_s, text, context) VALUES (%s, %s, %s, %s) "
    "ON CONFLICT (decision_id) DO NOTHING"
)


class PostgresStore(SqlReading):
    """An event store behind a `postgresql://` URL. Thread-safe; connects again after the server was away."""

    _mark = "%s"

    def __init__(self, url: str, privacy: Privacy) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StoreError("PostgreSQL needs its driver: pip install 'router-ml[postgres]'") from error
        self._driver = psycopg
        self._url = url
        self._privacy = privacy
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None
        with self._lock:
            self._connected()

    def append(self, events: Sequence[Event]) -> None:
        """Keep events, all or none. Raises `StoreError`."""
        rows, texts = self._rows(events)
        with self._lock:
            try:
                with self._connected().transaction(), self._connected().cursor() as cursor:
                    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                    cursor.executemany(_INSERT, [row[:6] for row in rows])
                    if texts:
                        cursor.executemany(_INSERT_TEXT, texts)
            except self._driver.Error as error:
                raise self._failure("write to", error) from error

    def prune(self, before_s: Mapping[str, float]) -> int:
        """Delete events of each kind (and `"text"`) that are older than a Unix time; how many went."""
        gone = 0
        with self._lock:
            try:
                with self._connected().transaction(), self._connected().cursor() as cursor:
                    for kind, at_s in before_s.items():
                        if kind == "text":
                            cursor.execute("DELETE FROM query_text WHERE at_s < %s", (at_s,))
                        else:
                            cursor.execute("DELETE FROM event WHERE kind = %s AND at_s < %s", (kind, at_s))
                        gone += cursor.rowcount
            except self._driver.Error as error:
                raise self._failure("prune", error) from error
        return gone

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop_connection()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        try:
            connection = self._driver.connect(self._url, autocommit=True, connect_timeout=_CONNECT_S)
            try:
                self._migrate(connection)
            except BaseException:
                connection.close()
                raise
        except self._driver.Error as error:
            raise self._failure("open", error) from error
        self._connection = connection
        return connection

    def _migrate(self, connection: psycopg.Connection[Any]) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            connection.execute("CREATE TABLE IF NOT EXISTS event_store (version INTEGER NOT NULL)")
            row = connection.execute("SELECT version FROM event_store").fetchone()
            version = row[0] if row else 0
            reached = migrate(
                version,
                connection.execute,
                serial="BIGSERIAL PRIMARY KEY",
                real="DOUBLE PRECISION",
                where="in PostgreSQL",
            )
            if row is None:
                connection.execute("INSERT INTO event_store VALUES (%s)", (reached,))
            elif reached != version:
                connection.execute("UPDATE event_store SET version = %s", (reached,))

    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connected().execute(query, values).fetchall()
            except self._driver.Error as error:
                raise self._failure("read", error) from error

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failure(self, verb: str, error: Exception) -> StoreError:
        if isinstance(error, self._driver.OperationalError):
            self._drop_connection()  # the next call connects again
        kind = type(error).__name__  # the message may repeat the URL, and with it a password
        detail = str(error).splitlines()[0] if str(error) and "@" not in str(error) else kind
        return StoreError(f"cannot {verb} the event store in PostgreSQL: {detail}; check that the server is up")
