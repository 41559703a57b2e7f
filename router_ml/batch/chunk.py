"""What travels between the process that reads and writes and those that decide."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from router_ml.errors import RowError

CHUNK_ROWS = 256
CHUNK_BYTES = 4_000_000  # a chunk of long rows ends earlier, so that memory stays bounded


class Place(NamedTuple):
    """Where a pass has arrived in its source."""

    position: int = 0  # bytes of a JSON Lines file, rows of a Parquet file
    line: int = 1  # number of the next line
    digest: str = ""  # of what was read so far, or of the whole Parquet file's end


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some lines of a file as they are, each a JSON object, and where they end."""

    first_line: int
    lines: tuple[bytes, ...]
    end: Place


@dataclass(frozen=True, slots=True)
class DecidedChunk:
    """JSON Lines of the decisions and of the rows that could not be read, both in the order of the chunk's lines."""

    end: Place
    rows: bytes
    rejects: bytes
    models: Counter[str] = field(default_factory=Counter)  # decisions for each arm
    n_rejected: int = 0
    error: RowError | None = None  # of the first row that could not be read
    degraded: str = ""  # reason of a decision that was not all learned
