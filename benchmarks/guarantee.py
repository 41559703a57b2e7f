"""Measure how often the bound of `policy.max_loss` is broken on rows kept back, and what it saves.

    python -m benchmarks.guarantee --bench DIR [--splits 200] [--max-loss 0.05] [--confidence 0.95]

Each data set of a weak and a strong model (routellm-mmlu, routellm-gsm8k) is split in two halves at random, many times.
The first half fits a light predictor (ridge regression and 100 nearest neighbours on the main directions of the
bundle's sentence vectors), predicts itself in five folds and makes the table of losses, as a fit does; the second half
is routed with the certified margin. *broken* is the share of splits in which the mean loss there, beside always asking
the strong model, exceeds the bound: the noise of that half counts as well, so it overstates how often the true loss
does. Takes about a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from router_ml.bundles.registry import active_bundle
from router_ml.decide.selection.guarantee import Guarantee
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.terminal import format_table, run_command, track
from training.arrays import Index, Matrix, Singles
from training.command import command_parser
from training.embeddings import CachedEmbedder
from training.outcomes.cross_fitting import FOLDS
from training.outcomes.guarantee_table import guarantee_table
from training.outcomes.ridge_learner import fit_ridge
from training.outcomes.table import outcome_table
from training.splits import permuted_folds

PAIRS = ("routellm-mmlu", "routellm-gsm8k")
_DIRECTIONS = 96  # of the sentence vectors of all rows; no outcomes enter, and all columns would take ten times as long
_PENALTY, _NEIGHBOURS = 3.0, 100


class Pair(NamedTuple):
    """Queries with outcomes of two models."""

    vectors: Matrix  # (n, d), in the main directions
    alike: Singles  # (n, n) cosines
    success: Matrix  # (n, 2)
    cost: Matrix  # (n, 2) the models' mean cost
    groups: Index  # (n,)
    strong: int

    def predicted(self, train: Index, test: Index) -> Matrix:
        """Return the probability of success (len(test), 2), learned from some rows."""
        ridge = fit_ridge(self.vectors[train], self.success[train], _PENALTY)
        alike = self.alike[np.ix_(test, train)]
        nearest = np.argpartition(-alike, min(_NEIGHBOURS, len(train) - 1), axis=1)[:, :_NEIGHBOURS]
        near = self.success[train][nearest].mean(axis=1)
        return np.asarray((self.vectors[test] @ ridge.weights + ridge.bias + near) / 2.0)


class Split(NamedTuple):
    """What one split gave on the half kept back."""

    loss: float
    saved: float  # share of queries that the strong model did not have to answer
    certified: bool


def read_pair(folder: Path, embedder: CachedEmbedder) -> Pair | None:
    """Return a data set; None where it is absent."""
    queries, outcomes = folder / "queries.jsonl", folder / "outcomes.jsonl"
    if not (queries.is_file() and outcomes.is_file()):
        print(f"skipped {folder.name}: no queries.jsonl or outcomes.jsonl in it", file=sys.stderr)
        return None
    table = outcome_table(read_queries(queries), read_outcomes(outcomes))
    vectors = np.asarray(embedder.embed([query.text for query in table.queries]), np.float64)
    vectors = PCA(min(_DIRECTIONS, *vectors.shape), svd_solver="randomized", random_state=0).fit_transform(vectors)
    near = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cost = np.broadcast_to(np.nanmean(table.cost_usd, axis=0), table.success.shape)
    strong = int(table.success.mean(axis=0).argmax())
    return Pair(vectors, near @ near.T, table.success, cost, table.groups, strong)


def split_once(pair: Pair, max_loss: float, confidence: float, seed: int) -> Split:
    """Certify a margin on one half of the groups and route the other half with it."""
    own, test = next(permuted_folds(pair.groups, 2, seed))
    p = np.zeros((len(own), 2))
    _, groups = np.unique(pair.groups[own], return_inverse=True)
    for inner, held in permuted_folds(groups, FOLDS, seed):
        p[held] = pair.predicted(own[inner], own[held])
    table = guarantee_table(p, pair.success[own], pair.cost[own], groups, pair.strong)
    margin = Guarantee.from_config(table).certificate(max_loss, confidence).margin
    if margin is None:
        return Split(0.0, 0.0, False)
    served, weak = pair.predicted(own, test), 1 - pair.strong
    moved = served[:, weak] >= served[:, pair.strong] - margin
    loss = np.where(moved, pair.success[test, pair.strong] - pair.success[test, weak], 0.0)
    return Split(float(loss.mean()), float(moved.mean()), True)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.guarantee", __doc__)
    cli.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, help="whose sentence vectors are used (default: the active bundle)")
    cli.add_argument("--splits", type=int, default=200, help="random splits of each data set (default: 200)")
    cli.add_argument("--max-loss", type=float, default=0.05, help="the bound on the mean loss (default: 0.05)")
    cli.add_argument("--confidence", type=float, default=0.95, help="with which it should hold (default: 0.95)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; exit code 2 if the folder is absent."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.guarantee", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if not options.bench.is_dir():
        raise InputError(f"{options.bench} is not a folder; give the one that holds the data sets")
    embedder = CachedEmbedder(options.bundle or active_bundle(load_settings()))
    rows = [("data set", "rows", "certified", "broken", "mean loss", "strong calls saved")]
    for name in PAIRS:
        if (pair := read_pair(options.bench / name, embedder)) is None:
            continue
        seeds = track(range(options.splits), f"splits of {name}")
        found = [split_once(pair, options.max_loss, options.confidence, seed) for seed in seeds]
        rows.append((
            name,
            str(len(pair.success)),
            f"{np.mean([one.certified for one in found]):.1%}",
            f"{np.mean([one.loss > options.max_loss for one in found]):.1%}",
            f"{np.mean([one.loss for one in found]):.3f}",
            f"{np.mean([one.saved for one in found]):.1%}",
        ))  # fmt: skip
    print(format_table(rows))


if __name__ == "__main__":
    sys.exit(main())
