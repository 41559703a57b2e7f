"""Measure how far two labellers agree. The labellers of the shipped corpus are language models.

python -m benchmarks.labelling            agreement of the shipped corpus with its second, blind labelling
python -m benchmarks.labelling FILE       of another file of rows {"id", "first", "second"}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix

from router_ml.errors import InputError, RowError
from router_ml.terminal import run_command
from router_ml.types import LABELS
from training.command import command_parser
from training.corpus import data_dir

SECOND = "second_labels.jsonl"


class Agreement(NamedTuple):
    """Two labellings of the same rows."""

    first: tuple[str, ...]
    second: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Rows labelled twice."""
        return len(self.first)

    @property
    def observed(self) -> float:
        """Share of rows with the same label."""
        return float(accuracy_score(self.first, self.second))

    @property
    def kappa(self) -> float:
        """Cohen's kappa: agreement beyond chance (Cohen 1960); 1 where both used the same one label."""
        return 1.0 if len({*self.first, *self.second}) == 1 else float(cohen_kappa_score(self.first, self.second))


def read_agreement(path: Path) -> Agreement:
    """Read rows `{"id", "first", "second"}`. Raises `RowError` naming the field, or `InputError`."""
    pairs: list[tuple[str, str]] = []
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
        pairs.append((row["first"], row["second"]))
    if not pairs:
        raise InputError(f"{path} holds no row; give rows with 'first' and 'second'")
    first, second = zip(*pairs, strict=True)
    return Agreement(first, second)


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
    parser = command_parser("benchmarks.labelling", __doc__)
    parser.add_argument("file", nargs="?", type=Path, default=data_dir() / SECOND, help="default: the shipped rows")
    options = parser.parse_args(argv)
    return run_command("benchmarks.labelling", lambda: _print(read_agreement(options.file)), failure=1)


def _print(agreement: Agreement) -> None:
    print(f"{agreement.rows} rows labelled twice: {agreement.observed:.1%} alike, Cohen's kappa {agreement.kappa:.3f}")
    print(f"{'first / second':<16}" + "".join(f"{label:>11}" for label in LABELS))
    counts = confusion_matrix(agreement.first, agreement.second, labels=list(LABELS))
    for label, row in zip(LABELS, counts, strict=True):
        print(f"{label:<16}" + "".join(f"{count:>11}" for count in row))


if __name__ == "__main__":
    sys.exit(main())
