"""Measure how well a bundle reads complexity, through the serving code.

    python -m benchmarks.complexity_report                               the default bundle on the corpus's test groups
    python -m benchmarks.complexity_report --queries data/heldout.jsonl --all     every row of a file

No fit on the corpus trains on its test groups; `--all` takes every row, for files that no bundle was fitted on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.jsonl import read_queries
from router_ml.terminal import run_command
from router_ml.types import LABELS, Query
from training.command import command_parser
from training.corpus import corpus_path
from training.measuring.classification import classification_figures
from training.splits import group_of, is_test


def report(router: Router, queries: Sequence[Query]) -> dict[str, float]:
    """Return accuracy, macro-F1, F1 per label, calibration error and Brier score on labelled queries."""
    labelled = [query for query in queries if query.label is not None]
    if not labelled:
        raise InputError("no labelled queries in the test groups; --all takes every row of the file")
    probabilities, _ = router.predict_many([q.text for q in labelled], [q.context for q in labelled])
    labels = np.array([LABELS.index(query.label) for query in labelled if query.label is not None])
    return {"rows": float(len(labelled)), **classification_figures(probabilities, labels)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures, one a line."""
    parser = command_parser("benchmarks.complexity_report", __doc__)
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (default: the active one)")
    parser.add_argument("--queries", type=Path, default=corpus_path(), help="labelled queries (default: the corpus)")
    parser.add_argument("--all", action="store_true", help="every row, not only those of the test groups")
    options = parser.parse_args(argv)
    return run_command(
        "benchmarks.complexity_report",
        lambda: _print(options.bundle, options.queries, every_row=options.all),
        failure=1,
    )


def _print(bundle: Path | None, path: Path, *, every_row: bool) -> None:
    queries = [query for query in read_queries(path) if every_row or is_test(group_of(query))]
    for name, value in report(Router.load(bundle), queries).items():
        print(f"{name:<16}{value:.3f}" if name != "rows" else f"{name:<16}{value:.0f}")


if __name__ == "__main__":
    sys.exit(main())
