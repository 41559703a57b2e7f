"""A file of rows that survives a kill at any moment: each row is one write, on disk before the next begins."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from router_ml.errors import InputError, StoreError
from router_ml.files import lock_open_file


class RowLog:
    """Rows of JSON Lines, one for each (query_id, model). Opening mends a torn last line.

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
                f"{path} is being written by another benchmark; wait for it or choose another --out"
            ) from (error)
        try:
            self._mend()
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
        """Add a row and wait until it is on disk. A row whose key is there already is left out.

        Raises `StoreError` where the disk takes no more."""
        key = _key(row)
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
                f"cannot write {self.path}: {error.strerror}; make room and go on with --resume"
            ) from error
        self.rows[key] = dict(row)

    def close(self) -> None:
        """Close the file and give the lock back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _mend(self) -> None:
        """A kill can leave the last line without its end: a whole row gets one, a torn one is dropped."""
        data = self.path.read_bytes()
        kept, end, torn = data.rpartition(b"\n")
        if not torn.strip():
            return
        if _whole(torn):
            os.write(self._file, b"\n")
        else:
            os.ftruncate(self._file, len(kept) + len(end))
        os.fsync(self._file)

    def _read(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for number, row in _lines(self.path):
            if _key(row) in rows:
                raise InputError(f"{self.path}:{number}: repeats an earlier row; keep one of them")
            rows[_key(row)] = row
        return rows


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        if not raw.strip():
            continue
        if not _whole(raw):
            raise InputError(f"{path}:{number}: is no row of a benchmark; choose another --out")
        yield number, json.loads(raw)


def _whole(raw: bytes) -> bool:
    try:
        row = json.loads(raw)
    except ValueError:
        return False
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("query_id", "model"))


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["query_id"], row["model"]
