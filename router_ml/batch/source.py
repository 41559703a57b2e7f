"""The file a batch reads, as chunks of JSON lines, from any place where an earlier run stopped."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from router_ml.batch.chunk import CHUNK_BYTES, CHUNK_ROWS, Chunk, Place
from router_ml.errors import InputError
from router_ml.files import reason
from router_ml.jsonl import MAX_LINE_BYTES

PARQUET = ".parquet"
COLUMNS = ("id", "text", "messages", "context")  # the others of a Parquet file are not read
FOOTER_BYTES = 65_536  # the end of a Parquet file lists all its pages with their statistics


class Source(Protocol):
    """A file of rows."""

    path: Path
    size: int  # in the unit of `Place.position`

    def chunks(self, start: Place) -> Iterator[Chunk]:
        """Yield the rows after `start`. Raises `InputError` if the file is not the one that `start` was read from."""
        ...


def open_source(path: Path) -> Source:
    """Return a file as a source, Parquet by its name, else JSON Lines. Raises `InputError` if it cannot be read."""
    try:
        return ParquetSource(path) if path.suffix == PARQUET else JsonLinesSource(path)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {reason(error)}; give the path of a JSON Lines or Parquet file"
        ) from error


class JsonLinesSource:
    """JSON Lines. A resumed pass reads what came before again, to hash it: an altered file is not continued."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as handle:
            self.size = handle.seek(0, 2)

    def chunks(self, start: Place) -> Iterator[Chunk]:
        """Yield the lines after `start`. Raises as a source does."""
        with self.path.open("rb") as handle:
            digest, left = hashlib.sha256(), start.position
            while left and (block := handle.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            if start.position and (left or digest.hexdigest() != start.digest):
                raise _altered(self.path)
            position, line = start.position, start.line
            raw_lines = iter(partial(handle.readline, MAX_LINE_BYTES + 1), b"")
            for lines in _grouped(raw_lines):
                for raw in lines:
                    digest.update(raw)
                position += sum(map(len, lines))
                end = Place(position, line + len(lines), digest.hexdigest())
                if line == 1:
                    lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
                yield Chunk(line, tuple(lines), end)
                line = end.line


class ParquetSource:
    """Parquet by pyarrow. A context is a struct or a JSON text; lines are counted as rows, from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise InputError(f"reading {path} needs pyarrow; pip install pyarrow, or give JSON Lines") from error
        try:
            self._file = parquet.ParquetFile(path)
        except ArrowException as error:
            raise InputError(f"cannot read {path}: {reason(error)}; give a Parquet file") from error
        self.size = int(self._file.metadata.num_rows)
        names = set(self._file.schema_arrow.names)
        self._columns = [name for name in COLUMNS if name in names]
        if not names & {"text", "messages"}:
            raise InputError(f"{path} has no column 'text' or 'messages' (found {', '.join(sorted(names)[:8])})")
        with path.open("rb") as handle:
            handle.seek(max(0, handle.seek(0, 2) - FOOTER_BYTES))
            self._digest = hashlib.sha256(handle.read()).hexdigest()

    def chunks(self, start: Place) -> Iterator[Chunk]:
        """Yield the rows after `start`. Raises as a source does."""
        if start.position and start.digest != self._digest:
            raise _altered(self.path)
        line = start.line
        for lines in _grouped(json.dumps(row, default=str).encode() for row in self._rows(start.position)):
            end = Place(line - 1 + len(lines), line + len(lines), self._digest)
            yield Chunk(line, tuple(lines), end)
            line = end.line

    def _rows(self, skipped: int) -> Iterator[dict[str, Any]]:
        meta, first = self._file.metadata, 0
        while first < meta.num_row_groups and skipped >= meta.row_group(first).num_rows:
            skipped -= meta.row_group(first).num_rows
            first += 1
        groups = range(first, meta.num_row_groups)
        for batch in self._file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=self._columns) if groups else ():
            rows = batch.slice(min(skipped, len(batch))).to_pylist()
            skipped -= len(batch) - len(rows)
            yield from map(_row, rows)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the nulls that stand for absent keys of a struct."""
    context = row.get("context")
    if isinstance(context, str):
        try:
            context = json.loads(context)
        except ValueError:
            return row  # the text is then refused as a context, by the row's number
    if isinstance(context, dict):
        context = {key: value for key, value in context.items() if value is not None}
    return {key: value for key, value in row.items() if value is not None} | {"context": context}


def _grouped(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield lines in groups whose bounds depend on the lines alone, so that every run makes the same groups."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if len(group) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _altered(path: Path) -> InputError:
    return InputError(f"{path} was changed before the place where the batch stopped; decide it anew with --restart")
