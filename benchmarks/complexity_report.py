"""How well a bundle reads complexity, through the serving code.

    python -m benchmarks.complexity_report                               the default bundle on the corpus's test groups
    python -m benchmarks.complexity_report --queries data/heldout.jsonl --all     on every row of a file

The test groups are those no fit on the corpus trains on; `--all` takes every row, for files that no bundle learned.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.decide.router import Router
from router_ml.errors import InputError, RouterError
from router_ml.jsonl import read_queries
from router_ml.types import LABELS, Query
from training.corpus import corpus_path
from training.measuring.classification import classification_figures
from training.splits import group_of, is_test


def report(router: Router, queries: Sequence[Query]) -> dict[str, float]:
    """Accuracy, macro-F1, F1 per label, calibration error and Brier score on labelled queries."""
    labelled = [query for query in queries if query.label is not None]
    if not labelled:
        raise InputError("no labelled queries among them; --all takes every row of the file")
    probabilities, _ = router.predict_many([q.text for q in labelled], [q.context for q in labelled])
    labels = np.array([LABELS.index(query.label) for query in labelled if query.label is not None])
    return {"rows": float(len(labelled)), **classification_figures(probabilities, labels)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures, one a line."""
    text = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.complexity_report",
        description=text[0],
        epilog=text[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (the active one)")
    parser.add_argument("--queries", type=Path, default=corpus_path(), help="labelled queries (the shipped corpus)")
    parser.add_argument("--all", action="store_true", help="every row, not the test groups alone")
    options = parser.parse_args(argv)
    try:
        queries = [q for q in read_queries(options.queries) if options.all or is_test(group_of(q))]
        figures = report(Router.load(options.bundle), queries)
    except RouterError as error:
        print(error, file=sys.stderr)
        return 2
    for name, value in figures.items():
        print(f"{name:<16}{value:.3f}" if name != "rows" else f"{name:<16}{value:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
