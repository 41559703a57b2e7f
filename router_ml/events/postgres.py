"""The event store in PostgreSQL, with the behaviour of the SQLite one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from router_ml.errors import StoreError
from router_ml.events.migrations import migrate
from router_ml.events.privacy import Privacy
from router_ml.events.sql import SqlStore
from router_ml.events.store import RefusedRecord

if TYPE_CHECKING:
    import psycopg

_CONNECT_S = 5
# A server that hangs must not block the writer for ever: seconds without any response, and milliseconds of waiting.
_ALIVE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_TIMEOUTS = "SET lock_timeout = '15s'; SET statement_timeout = '60s'"
# Writers take this lock, so that the order of `seq` is the order of commits and a reader's watermark misses nothing.
_LOCK = 7_263_910_455
# A batch of so many rows is copied into a temporary table first, which takes half the time of one INSERT a row.
_COPIED = 50
# Classes of SQLSTATE for a bad value: cardinality, data, integrity, program limit (a key too long for its index).
_REFUSED = ("21", "22", "23", "54")
# Phrases that may be quoted from an error without SQLSTATE: its message may contain the URL with a password.
_REASON = re.compile(
    r"connection refused|timeout expired|could not translate host name|no such file or directory|no route to host"
    r"|server closed the connection|network is unreachable|authentication failed|no password supplied|permission denied"
    r"|ssl|closed",
    re.IGNORECASE,
)


class PostgresStore(SqlStore):
    """An event store behind a `postgresql://` URL. Thread-safe; connects again after the server was away."""

    _mark = "%s"

    def __init__(self, url: str, privacy: Privacy) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise StoreError("PostgreSQL needs its driver: pip install 'router-ml[postgres]'") from error
        super().__init__(privacy)
        self._may_copy = False
        self._driver = psycopg
        self._url = url
        with self._lock, self._errors("open"):
            self._connected()

    @contextmanager
    def _transaction(self, verb: str) -> Iterator[psycopg.Cursor[Any]]:
        with self._errors(verb):
            connection = self._connected()
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                yield cursor

    def _insert(self, cursor: Any, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if len(rows) < _COPIED or not self._may_copy:
            super()._insert(cursor, table, columns, rows)
            return
        names, batch = ", ".join(columns), f"{table}_batch"
        with cursor.copy(f"COPY {batch} ({names}, place) FROM STDIN") as copy:
            for place, row in enumerate(rows):
                copy.write_row((*row, place))
        cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {batch} ORDER BY place ON CONFLICT DO NOTHING"
        )

    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock, self._errors("read"):
            return self._connected().execute(query, values).fetchall()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is not None and not self._connection.closed:
            return self._connection  # type: ignore[no-any-return]
        connection = connected(self._url)
        try:
            connection.execute(_TIMEOUTS)
            self._migrate(connection)
            self._may_copy = self._prepare_copies(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _prepare_copies(self, connection: psycopg.Connection[Any]) -> bool:
        """Create this connection's tables for batches; False where the account may not."""
        try:
            for table in ("event", "query_text", "query_features"):
                connection.execute(
                    f"CREATE TEMPORARY TABLE {table}_batch ON COMMIT DELETE ROWS AS "
                    f"SELECT *, 0 AS place FROM {table} WITH NO DATA"
                )
        except self._driver.errors.InsufficientPrivilege:
            return False
        return True

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

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (UnicodeError, OverflowError) as error:
            raise RefusedRecord(f"the event store in PostgreSQL refuses a value: {type(error).__name__}") from error
        except (self._driver.Error, OSError, ValueError) as error:
            state = getattr(error, "sqlstate", None)
            if self._refused(error, state) and verb != "open":
                raise RefusedRecord(f"the event store in PostgreSQL refuses a value: {reason(error, state)}") from None
            if not state or state[:2] in ("08", "57"):
                self._drop_connection()  # the next call connects again
            raise StoreError(
                f"cannot {verb} the event store in PostgreSQL: {reason(error, state)}; check that the server is up "
                "and its URL is right"
            ) from None  # the cause may quote the URL

    def _refused(self, error: Exception, state: str | None) -> bool:
        if state:
            return state.startswith(_REFUSED)
        return isinstance(
            error, self._driver.DataError | self._driver.ProgrammingError | self._driver.NotSupportedError
        )


def connected(url: str) -> psycopg.Connection[Any]:
    """Return a connection that ends where the server hangs. Raises the driver's errors."""
    import psycopg

    return psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_S, **_ALIVE)  # type: ignore[arg-type]


def reason(error: Exception, state: str | None) -> str:
    """Return the first line of the server's message, but only known phrases of the driver's."""
    kind, text = type(error).__name__, str(error)
    if state and text and "://" not in text:
        return text.splitlines()[0]
    found = _REASON.search(text)
    return f"{kind} ({found[0].lower()})" if found else kind
