"""Learning from kept features against learning from text: is the router as good, and how large is a decision?

    python -m benchmarks.keep_features --bench DIR [--bundle DIR] [--only bfcl-a mmlu ...] [--json OUT]

DIR is that of `benchmarks.study`. Each data set is learned twice by the same grouped cross-validation: from the
features of its texts, and from those features after they went through the event store's form (8 bits a number, see
`router_ml.events.features`). Both are judged on the features of the texts, as a query is read when it is served. The
target is an AIQ within .005.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study import FOLDS, SETS, Data, Reader, fit_and_judge, joined
from router_ml.bundles.registry import active_bundle
from router_ml.decide.features.extractor import Features
from router_ml.events.features import KeptFeatures, pack, unpack
from router_ml.settings import load_settings
from router_ml.terminal import format_table, run_command
from training.command import command_parser, write_json
from training.evaluate import JudgedOutcomes, report
from training.kept_features import stacked
from training.splits import permuted_folds

FIGURES = ("aiq", "aiq_normalised", "accuracy")
TARGET = 0.005


def kept(features: Features) -> tuple[Features, float]:
    """Return features as they come back from the event store, and the mean size of one in characters."""
    packed = [pack(KeptFeatures("k", *row)) for row in zip(features.embedding, features.table, strict=True)]
    return stacked(unpack(one, "k") for one in packed), float(np.mean([len(one) for one in packed]))


def compare(data: Data, seed: int) -> dict[str, Any]:
    """Return the figures of both ways, their difference, and the size of a decision's features."""
    features, size = kept(data.features)
    ways = {"text": data, "features": replace(data, features=features)}
    found = {name: _judged(learned, data, seed) for name, learned in ways.items()}
    rows = {name: report(judged, resamples=1)["figures"] for name, judged in found.items()}
    figures = {name: {key: rows[name][key]["value"] for key in FIGURES} for name in rows}
    return {
        **figures,
        "difference": {key: figures["features"][key] - figures["text"][key] for key in FIGURES},
        "queries": len(data.queries),
        "chars": size,
    }


def _judged(learned: Data, read: Data, seed: int) -> JudgedOutcomes:
    folds = list(permuted_folds(read.groups, FOLDS, seed))
    parts = [(test, fit_and_judge(learned, train, test, seed, read)[0]) for train, test in folds]
    return joined(read, parts)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.keep_features", __doc__)
    cli.add_argument("--bench", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, metavar="DIR", help="its encoder is used (default: the active bundle)")
    cli.add_argument("--only", nargs="+", choices=tuple(SETS), default=list(SETS), help="these data sets alone")
    cli.add_argument("--seed", type=int, default=0, help="of folds and fits (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write the figures to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; exit code 1 if a data set misses the target."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.keep_features", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    reader = Reader(options.bench, options.bundle or active_bundle(load_settings()))
    found = {name: compare(data, options.seed) for name in options.only if (data := reader.read(name)) is not None}
    rows = [("", "queries", "AIQ from text", "from features", "difference", "chars a decision")]
    for name, row in found.items():
        aiq = (f"{row[way]['aiq']:.4f}" for way in ("text", "features"))
        rows.append((name, str(row["queries"]), *aiq, f"{row['difference']['aiq']:+.4f}", f"{row['chars']:.0f}"))
    print(format_table(rows))
    write_json(options.json, found)
    return int(any(abs(row["difference"]["aiq"]) > TARGET for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
