"""How far two people agree on the labels.

python -m benchmarks.labelling            agreement of the shipped corpus with its second, blind labelling
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import InputError, RowError
from router_ml.types import LABELS
from training.corpus import data_dir

SECOND = "second_labels.jsonl"


@dataclass(frozen=True)
class Agreement:
    """Two labellings of the same rows."""

    counts: NDArray[np.int64]  # (4, 4): rows the first labelling, columns the second

    @property
    def rows(self) -> int:
        """Rows labelled twice."""
        return int(self.counts.sum())

    @property
    def observed(self) -> float:
        """Share of rows with the same label."""
        return float(np.trace(self.counts) / self.rows)

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance (Cohen 1960, Educational and Psychological Measurement 20:37-46)."""
        by_chance = float((self.counts.sum(axis=0) * self.counts.sum(axis=1)).sum()) / self.rows**2
        return (self.observed - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0


def read_agreement(path: Path) -> Agreement:
    """Agreement of the rows `{"id", "first", "second", "final"}`. Raises `RowError` naming the field."""
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(path, number, line)
        for field in ("first", "second"):
            if row.get(field) not in LABELS:
                raise RowError(str(path), number, field, f"must be one of {', '.join(LABELS)}")
        counts[LABELS.index(row["first"]), LABELS.index(row["second"])] += 1
    if not counts.any():
        raise InputError(f"{path} holds no row; give rows with 'first' and 'second'")
    return Agreement(counts)


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError(str(path), number, None, f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise RowError(str(path), number, None, "must be an object")
    return row


def main(argv: Sequence[str] | None = None) -> int:
    """Print the agreement as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.labelling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=data_dir() / SECOND)
    options = parser.parse_args(argv)
    try:
        agreement = read_agreement(options.file)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{agreement.rows} rows labelled twice: {agreement.observed:.1%} alike, Cohen's kappa {agreement.kappa:.3f}")
    print(f"{'first / second':<16}" + "".join(f"{label:>11}" for label in LABELS))
    for label, row in zip(LABELS, agreement.counts, strict=True):
        print(f"{label:<16}" + "".join(f"{count:>11}" for count in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
