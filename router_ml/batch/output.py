"""The file a batch writes: rows go to `OUT.partial`, how far they go to `OUT.progress`, and the whole becomes `OUT`.

Rows are on disk before the progress that counts them. A run that was killed leaves rows behind its progress; the next
one cuts them off, so that no row is written twice.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from router_ml.arm import arm_key
from router_ml.batch.chunk import DecidedChunk, Place
from router_ml.batch.source import PARQUET
from router_ml.errors import InputError
from router_ml.files import PRIVATE_FILE, atomic_file, atomic_write, lock_open_file, make_private_folder

PARQUET_ROWS = 10_000  # of a row group


@dataclass(frozen=True)
class Progress:
    """How far a batch is."""

    place: Place = field(default_factory=Place)
    written: int = 0  # bytes of rows
    rejects: int = 0  # bytes of rejects
    n_rejected: int = 0
    models: Counter[str] = field(default_factory=Counter)  # decisions for each arm
    degraded: str = ""  # reason of a decision that was not all learned

    @property
    def n_decided(self) -> int:
        """Return how many rows were decided."""
        return self.models.total()


class BatchOutput:
    """Writes decided chunks in their order. Made by `open_output`."""

    def __init__(self, path: Path, key: Mapping[str, Any], rows: IO[bytes], rejects: IO[bytes], at: Progress) -> None:
        self._path, self._key, self._rows, self._rejects = path, key, rows, rejects
        self.progress = at

    def write(self, chunk: DecidedChunk) -> None:
        """Add the rows of a chunk."""
        self._rows.write(chunk.rows)
        self._rejects.write(chunk.rejects)
        at = self.progress
        self.progress = Progress(  # in one step: an interrupt in between must not part the rows from their count
            chunk.end,
            at.written + len(chunk.rows),
            at.rejects + len(chunk.rejects),
            at.n_rejected + chunk.n_rejected,
            at.models + chunk.models,
            at.degraded or chunk.degraded,
        )

    def save(self) -> None:
        """Put the rows and then the progress on disk."""
        for handle in (self._rows, self._rejects):
            handle.flush()
            os.fsync(handle.fileno())
        atomic_write(progress_path(self._path), json.dumps({"job": self._key} | vars(self.progress)))

    def finish(self) -> None:
        """Make the rows the output file."""
        self.save()
        partial = partial_path(self._path)
        if self._path.suffix == PARQUET:
            _write_parquet(partial, self._path)
            partial.unlink()
        else:
            partial.replace(self._path)
        if not self.progress.rejects:
            rejects_path(self._path).unlink(missing_ok=True)
        progress_path(self._path).unlink()


def partial_path(path: Path) -> Path:
    """Return where rows are while a batch runs."""
    return path.with_name(path.name + ".partial")


def progress_path(path: Path) -> Path:
    """Return the file that tells how far a batch is."""
    return path.with_name(path.name + ".progress")


def rejects_path(path: Path) -> Path:
    """Return the file of the rows that could not be read."""
    return path.with_name(path.name + ".rejects.jsonl")


@contextmanager
def open_output(path: Path, key: Mapping[str, Any], *, restart: bool = False) -> Iterator[BatchOutput]:
    """Open an output file where an earlier run stopped, or anew; what is written is kept where the block raises.

    `key` is what the decisions depend on. Raises `InputError` if the file is there already, another run writes it, or
    it was begun with another key."""
    if path.exists() and not restart:
        raise InputError(f"{path} is already there; remove it, give another --out, or decide anew with --restart")
    if path.suffix == PARQUET:
        _pyarrow(path)
    make_private_folder(path.parent)
    with _opened(partial_path(path)) as rows:
        try:
            lock_open_file(rows.fileno(), wait=False)
        except OSError as error:
            raise InputError(f"another run is writing {path}; wait for it, or give another --out") from error
        at = Progress() if restart else _progress(path, key)
        with _opened(rejects_path(path)) as rejects:
            for handle, size in ((rows, at.written), (rejects, at.rejects)):
                handle.seek(0, 2)
                if handle.tell() < size:
                    raise InputError(f"{handle.name} lost rows since the batch stopped; decide it anew with --restart")
                handle.truncate(size)
                handle.seek(size)
            output = BatchOutput(path, key, rows, rejects, at)
            try:
                yield output
            except BaseException:
                output.save()
                raise


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE_FILE), "r+b")


def _progress(path: Path, key: Mapping[str, Any]) -> Progress:
    """Return how far an earlier run came. Raises `InputError` if it decided something else."""
    try:
        saved = json.loads(progress_path(path).read_bytes())
    except FileNotFoundError:
        return Progress()
    except ValueError as error:
        raise InputError(f"{progress_path(path)} is damaged; decide anew with --restart") from error
    began = saved.pop("job")
    if changed := [name for name in key if began.get(name) != key[name]]:
        found = ", ".join(f"{name} was {began.get(name)}, now {key[name]}" for name in changed)
        raise InputError(f"{path} was begun with something else ({found}); decide it anew with --restart")
    return Progress(**saved | {"place": Place(*saved["place"]), "models": Counter(saved["models"])})


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"writing {path} needs pyarrow; pip install pyarrow, or give a name in .jsonl") from error
    return pyarrow, parquet


def _write_parquet(rows: Path, path: Path) -> None:
    """Write decisions as Parquet: the columns that are looked for, and all of the row as JSON text in `decision`."""
    pyarrow, parquet = _pyarrow(path)
    texts = ("id", "model", "arm", "complexity", "action", "reason", "decision_id", "policy", "bundle", "decision")
    schema = pyarrow.schema(
        [("line", pyarrow.int64()), ("propensity", pyarrow.float64()), *((name, pyarrow.string()) for name in texts)]
    )
    with rows.open("rb") as lines, atomic_file(path) as handle, parquet.ParquetWriter(handle, schema) as writer:
        while part := list(islice(lines, PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist([_columns(line.decode()) for line in part], schema))


def _columns(line: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(line)
    return row | {"arm": arm_key(row["model"], row["think"]), "decision": line.rstrip("\n")}
