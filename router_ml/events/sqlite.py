"""The event store in a SQLite file: write-ahead log, one writing connection, a fresh one for each query.

With `synchronous = NORMAL` a commit survives the death of the process; only a loss of power may undo the last ones,
and even that leaves the file whole (https://www.sqlite.org/wal.html). No connection is carried across a fork
(https://www.sqlite.org/howtocorrupt.html, 2.6): it is closed before, and opened again when it is needed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError
from router_ml.events.migrations import LATEST, check_version, migrate
from router_ml.events.privacy import Privacy
from router_ml.events.sql import SqlStore
from router_ml.events.store import RefusedRecord
from router_ml.files import foreign_link

_BUSY_S = 5.0
# The fault of a value that was to be written, not of the file or the disk.
_REFUSED = (sqlite3.ProgrammingError, sqlite3.InterfaceError, sqlite3.DataError, sqlite3.IntegrityError)


class SqliteStore(SqlStore):
    """An event store in one file. Thread-safe."""

    _mark = "?"
    _crosses_fork = False

    def __init__(self, path: Path, privacy: Privacy, *, read_only: bool = False) -> None:
        super().__init__(privacy)
        self.path = path
        self._read_only = read_only
        self._file: tuple[int, int] | None = None  # device and inode of the file that is open
        with self._lock, self._errors("open"):
            if read_only:
                with self._reader() as connection:
                    self._version(connection)
            else:
                self._writer()

    @contextmanager
    def _transaction(self, verb: str) -> Iterator[sqlite3.Cursor]:
        with self._errors(verb):
            connection = self._writer()
            with connection, closing(connection.cursor()) as cursor:
                yield cursor

    def _query(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock, self._errors("read"), self._reader() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (*_REFUSED, OverflowError, UnicodeError) as error:
            raise RefusedRecord(f"the event store {self.path} refuses a value: {error}") from error
        except (sqlite3.Error, OSError) as error:
            self._drop_connection()
            raise StoreError(
                f"cannot {verb} the event store {self.path}: {error}; check the disk and its permissions"
            ) from error

    def _writer(self) -> sqlite3.Connection:
        if self._read_only:
            raise StoreError(f"the event store {self.path} was opened for reading only")
        if self._connection is not None and self._file == _identity(self.path):
            return self._connection  # type: ignore[no-any-return]
        self._drop_connection()  # the file was removed or replaced: what went on into it would be lost
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if foreign_link(self.path):
            raise StoreError(f"the event store {self.path} is a symbolic link of another user; remove it")
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite itself would let others read it
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        connection.isolation_level = "IMMEDIATE"
        self._connection, self._file = connection, _identity(self.path)
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if self._version(connection) == LATEST:
            return
        connection.execute("BEGIN IMMEDIATE")  # one process migrates, the others wait and find it done
        try:
            reached = migrate(
                self._version(connection),
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

    def _version(self, connection: sqlite3.Connection) -> int:
        return check_version(int(connection.execute("PRAGMA user_version").fetchone()[0]), str(self.path))

    def _reader(self) -> closing[sqlite3.Connection]:
        connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
        connection.text_factory = _text
        return closing(connection)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
