"""A file of rows that a kill at any moment leaves readable: each row is one write, synced before the next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from router_ml.arm import arm_key
from router_ml.errors import InputError, StoreError
from router_ml.files import lock_open_file


class RowLog:
    """Rows of JSON Lines, one for each query id and key of an arm. Opening repairs an incomplete last line.

    Only one process may have it open; another gets an `InputError`. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose another --out") from error
        try:
            lock_open_file(self._file, wait=False)
        except OSError as error:
            os.close(self._file)
            raise InputError(
                f"{path} is being written by another benchmark; wait for it to end, or choose another --out"
            ) from (error)
        try:
            self._repair()
            self.rows = self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RowLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row and wait until it is on disk; a row whose key is present is ignored.

        Raises `StoreError` if the disk takes no more."""
        key = row_key(row)
        if key in self.rows:
            return
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(28, "only a part of the row was written")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise StoreError(
                f"cannot write {self.path}: {error.strerror}; free some space and continue with --resume"
            ) from error
        self.rows[key] = dict(row)

    def close(self) -> None:
        """Close the file, which releases the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _repair(self) -> None:
        """End the last line where it is a whole row without a newline, and drop it where it is incomplete."""
        data = self.path.read_bytes()
        whole, end, last = data.rpartition(b"\n")
        if not last.strip():
            return
        if _is_row(last):
            os.write(self._file, b"\n")
        else:
            os.ftruncate(self._file, len(whole) + len(end))
        os.fsync(self._file)

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for number, row in _lines(self.path):
            if row_key(row) in rows:
                raise InputError(f"{self.path}:{number}: repeats an earlier row; delete one of them")
            rows[row_key(row)] = row
        return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        if not _is_row(raw):
            raise InputError(f"{path}:{number}: is not a row of a benchmark; choose another --out")
        yield number, json.loads(raw)


def _is_row(raw: bytes) -> bool:
    try:
        row = json.loads(raw)
    except ValueError:
        return False
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("query_id", "model"))


def row_key(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return query id and key of the arm of a row."""
    return row["query_id"], arm_key(row["model"], row.get("think"))
