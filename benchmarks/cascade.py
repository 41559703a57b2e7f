"""Simulate `policy.cascade` on recorded outcomes: quality and cost side by side with and without it.

    python -m benchmarks.cascade --bench DIR [--price 0.1] [--seed 0]

THE LOG-PROBABILITIES ARE SIMULATED. The recorded outcomes have none, so each answer gets a number drawn from a normal
distribution, with the mean of right answers as far above that of wrong ones as gives a stated AUROC: .65, .72 and .83
(arXiv:2605.02241 reports .72 to .83 for the mean token log-probability). Given right or wrong, a simulated number knows
nothing more of the question; a real one does, and predictions from the question know some of that already. So read the
figures as what a signal of that strength would be worth, not as a measurement of any model.

Everything else is what a fit and the gateway do. In five folds of whole groups, a light predictor (ridge regression and
100 nearest neighbours on the bundle's sentence vectors) and the maps of `training.outcomes.cascade_fit` are learned on
four folds, and the fifth is routed by the selector and the gateway's rule. Both ways have one policy: no limits, and a
price at which an average answer of the dearest model costs `--price` of success. A request that is escalated pays for
both answers. *utility* is success less that price; its standard error is that of the paired difference, by group.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from router_ml.bundles.registry import active_bundle
from router_ml.decide.selection.cascade import Cascade
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.utility import utility
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.settings import load_settings
from router_ml.terminal import format_table, run_command, track
from router_ml.types import Candidate, Context, Quantiles
from training.arrays import Index, Matrix
from training.command import command_parser
from training.embeddings import CachedEmbedder
from training.outcomes.cascade_fit import cascade_config
from training.outcomes.cross_fitting import FOLDS
from training.outcomes.ridge_learner import fit_ridge
from training.outcomes.table import outcome_table
from training.splits import permuted_folds

SETS = {  # folder, and its file of outcomes
    "local5": ("local5", "outcomes.jsonl"),
    "bfcl-a": ("bfcl", "outcomes-a.jsonl"),
    "routellm-gsm8k": ("routellm-gsm8k", "outcomes.jsonl"),
    "routellm-mmlu": ("routellm-mmlu", "outcomes.jsonl"),
    "llmrouter9": ("llmrouter9", "outcomes.jsonl"),
}
AUROCS = (0.65, 0.72, 0.83)
_PENALTY, _NEIGHBOURS = 3.0, 100
_JUDGED = Context(judged=True)


class Pool(NamedTuple):
    """Queries with outcomes of some models, all of them known."""

    arms: tuple[str, ...]
    vectors: Matrix  # (n, d)
    alike: Matrix  # (n, n) cosines
    success: Matrix  # (n, M)
    cost: Matrix  # (n, M) seconds or dollars
    groups: Index  # (n,)
    unit: str

    def predicted(self, train: Index, test: Index) -> Matrix:
        """Return the probability of success (len(test), M), learned from some rows."""
        ridge = fit_ridge(self.vectors[train], self.success[train], _PENALTY)
        alike = self.alike[np.ix_(test, train)]
        nearest = np.argpartition(-alike, min(_NEIGHBOURS, len(train) - 1), axis=1)[:, :_NEIGHBOURS]
        p = (self.vectors[test] @ ridge.weights + ridge.bias + self.success[train][nearest].mean(axis=1)) / 2.0
        return np.asarray(np.clip(p, 0.005, 0.995))


class Served(NamedTuple):
    """What became of a query."""

    success: float
    cost: float
    asked: int  # index of the arm that was asked first
    escalated: bool = False


def simulated_signal(success: Matrix, auroc: float, seed: int) -> Matrix:
    """Return numbers that tell right answers (success of one half or more) from wrong ones with this AUROC."""
    apart = math.sqrt(2.0) * NormalDist().inv_cdf(auroc)
    noise = np.random.default_rng(seed).standard_normal(success.shape)
    return np.asarray(noise + apart * (success >= 0.5) - 5.0)


def read_pool(folder: Path, file: str, embedder: CachedEmbedder) -> Pool | None:
    """Return a data set; None where it is absent."""
    queries, outcomes = folder / "queries.jsonl", folder / file
    if not (queries.is_file() and outcomes.is_file()):
        print(f"skipped {folder.name}: no queries.jsonl or {file} in it", file=sys.stderr)
        return None
    table = outcome_table(read_queries(queries), read_outcomes(outcomes))
    axis, cost = table.cost_axis
    priced = np.flatnonzero(~np.isnan(cost).all(axis=0))
    table, cost = table.columns(priced.tolist()), cost[:, priced]
    cost = np.where(np.isnan(cost), np.nanmean(cost, axis=0), cost)
    rows = np.flatnonzero(~np.isnan(table.success).any(axis=1))
    table, cost = table.rows(rows), cost[rows]
    vectors = np.asarray(embedder.embed([query.text for query in table.queries]), np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = np.unique(table.groups, return_inverse=True)[1].astype(np.intp)
    return Pool(table.models, vectors, vectors @ vectors.T, table.success, cost, groups, axis.rpartition("_")[2])


class Fold(NamedTuple):
    """The queries of one fold with what was learned on the others."""

    test: Index
    train: Index
    p: Matrix  # (len(test), M)
    p_train: Matrix  # (len(train), M), held out
    groups: Index  # (len(train),)


def folds_of(pool: Pool, seed: int) -> list[Fold]:
    """Return the five folds, predictions within the training rows held out by group, too."""
    found = []
    for train, test in permuted_folds(pool.groups, FOLDS, seed):
        groups = np.unique(pool.groups[train], return_inverse=True)[1].astype(np.intp)
        p_train = np.zeros((len(train), len(pool.arms)))
        for inner, held in permuted_folds(groups, FOLDS, seed):
            p_train[held] = pool.predicted(train[inner], train[held])
        found.append(Fold(test, train, pool.predicted(train, test), p_train, groups))
    return found


def policy_of(pool: Pool, price: float, cascade: bool) -> Policy:
    """Return the policy under which an average answer of the dearest arm costs so much success."""
    weight = price / float(pool.cost.mean(axis=0).max())
    seconds = pool.unit == "s"
    return Policy(
        "simulated",
        latency_weight_per_s=weight if seconds else 0.0,
        cost_weight_per_usd=0.0 if seconds else weight,
        latency_budget_s=None,
        cascade=cascade,
    )


def route(pool: Pool, fold: Fold, policy: Policy, cascade: Cascade, signal: Matrix) -> list[Served]:
    """Return what becomes of the queries of a fold."""
    expected = pool.cost[fold.train].mean(axis=0)
    return [
        _routed(_candidates(pool, fold.p[i], expected, policy), pool, row, policy, cascade, signal)
        for i, row in enumerate(fold.test)
    ]


def _candidates(pool: Pool, p: Matrix, expected: Matrix, policy: Policy) -> list[Candidate]:
    seconds = expected if pool.unit == "s" else np.zeros(len(expected))
    dollars = np.zeros(len(expected)) if pool.unit == "s" else expected
    made = [
        Candidate(arm, q, Quantiles(s, s, s), usd, utility(policy, q, s, usd))
        for arm, q, s, usd in zip(pool.arms, p.tolist(), seconds.tolist(), dollars.tolist(), strict=True)
    ]
    return sorted(made, key=lambda candidate: -candidate.utility)


def _routed(ranked: list[Candidate], pool: Pool, row: int, policy: Policy, cascade: Cascade, signal: Matrix) -> Served:
    if policy.cascade:
        ranked = cascade.order(ranked, policy, _JUDGED, [])
    first = ranked[0]
    arm = pool.arms.index(first.model)
    success, cost = float(pool.success[row, arm]), float(pool.cost[row, arm])
    if not policy.cascade or cascade.check(first) is None:
        return Served(success, cost, arm)
    _, ruling = cascade.rule(first, signal[row, arm], ranked[1:], policy, _JUDGED, 0.0, math.inf)
    if ruling.second is None:
        return Served(success, cost, arm)
    other = pool.arms.index(ruling.second.candidate.model)
    return Served(float(pool.success[row, other]), cost + float(pool.cost[row, other]), arm, escalated=True)


class Figures(NamedTuple):
    """The means over all queries of a data set."""

    success: Matrix  # (n,) and so on, in the order of the folds
    cost: Matrix
    asked: Matrix
    escalated: Matrix
    maps: int  # arms with a map, of all folds

    def utility(self, price: float, dearest: float) -> Matrix:
        """Return success less what the answers cost, (n,)."""
        return np.asarray(self.success - price * self.cost / dearest)


def simulate(pool: Pool, folds: Sequence[Fold], policy: Policy, auroc: float, seed: int) -> Figures:
    """Route every query with what was learned on the other folds."""
    signal = simulated_signal(pool.success, auroc, seed)
    served: list[Served] = []
    maps = 0
    for fold in folds:
        cascade = Cascade()
        if policy.cascade:
            own = pool.success[fold.train], signal[fold.train]
            cascade = Cascade.from_config(cascade_config(fold.p_train, *own, fold.groups, seed), pool.arms)
        maps += len(cascade.checks)
        served += route(pool, fold, policy, cascade, signal)
    success, cost, asked, escalated = np.array(served, float).T
    return Figures(success, cost, asked, escalated, maps)


def rows_of(pool: Pool, name: str, price: float, seed: int) -> list[tuple[str, ...]]:
    """Return the lines of a data set: without, then with a signal of each strength."""
    folds, dearest = folds_of(pool, seed), float(pool.cost.mean(axis=0).max())
    groups = pool.groups[np.concatenate([fold.test for fold in folds])]
    plain = simulate(pool, folds, policy_of(pool, price, cascade=False), 0.5, seed)
    base = plain.utility(price, dearest)
    lines = [_line(name, "without", plain, base, None, dearest, 0)]
    for auroc in AUROCS:
        found = simulate(pool, folds, policy_of(pool, price, cascade=True), auroc, seed)
        gain = found.utility(price, dearest) - base
        by_group = np.bincount(groups, gain)
        error = float(by_group.std() * math.sqrt(len(by_group)) / len(gain))
        of = FOLDS * len(pool.arms)
        lines.append(_line("", f"{auroc:.2f}", found, base + gain, error, dearest, of, plain))
    return lines


def _line(
    name: str,
    auroc: str,
    found: Figures,
    worth: Matrix,
    error: float | None,
    dearest: float,
    maps: int,
    plain: Figures | None = None,
) -> tuple[str, ...]:
    return (
        name,
        auroc,
        f"{found.success.mean():.3f}",
        f"{found.cost.mean() / dearest:.3f}",
        f"{worth.mean():.3f}" + ("" if error is None else f" (se {error:.3f})"),
        "" if plain is None else f"{found.escalated.mean():.0%}",
        "" if plain is None else f"{(found.asked != plain.asked).mean():.0%}",
        "" if plain is None else f"{found.maps}/{maps}",
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.cascade", __doc__)
    cli.add_argument("--bench", type=Path, required=True, help="folder of the data sets")
    cli.add_argument("--bundle", type=Path, help="whose sentence vectors are used (default: the active bundle)")
    cli.add_argument("--price", type=float, default=0.1, help="success that the dearest answer costs (default: 0.1)")
    cli.add_argument("--seed", type=int, default=0, help="of the folds and the simulated signal (default: 0)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation; exit code 2 if the folder is absent."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.cascade", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if not options.bench.is_dir():
        raise InputError(f"{options.bench} is not a folder; give the one that holds the data sets")
    embedder = CachedEmbedder(options.bundle or active_bundle(load_settings()))
    rows: list[tuple[str, ...]] = [
        ("data set", "AUROC", "success", "cost", "utility", "escalated", "asked another first", "maps")
    ]
    for name, (folder, file) in track(list(SETS.items()), "data sets"):
        pool = read_pool(options.bench / folder, file, embedder)
        if pool is not None:
            rows += rows_of(pool, name, options.price, options.seed)
    print("simulated log-probabilities; cost: 1 is an average answer of the dearest model")
    print(format_table(rows))


if __name__ == "__main__":
    sys.exit(main())
