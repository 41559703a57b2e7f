"""Measure what choosing by expected utility is worth against choosing by the likeliest label.

    python -m benchmarks.expected_utility [--queries data/heldout.jsonl ...] [--bundle D] [--policy balanced]

The catalogue's priors for the true label stand for the truth. Regret: utility of the best model for the true label less
that of the chosen model, in points (1/100) of utility, averaged over the queries. Of the corpus that bundles are
fitted on, only the groups of its test split are read. Files of other queries are read whole.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from router_ml.bundles.registry import active_bundle
from router_ml.catalogue import load_catalogue
from router_ml.decide.predictors.priors import LabelPriors
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.decide.selection.utility import utility
from router_ml.jsonl import read_queries
from router_ml.settings import load_settings
from router_ml.terminal import format_table, run_command
from router_ml.types import LABELS, Query
from training.arrays import Floats, Matrix
from training.command import command_parser
from training.corpus import corpus_path
from training.splits import group_of, is_test


def regrets(priors: LabelPriors, policy: Policy, complexity: Floats, truth: Sequence[int]) -> dict[str, Matrix]:
    """Return the regret (n,) of each way to choose, given label probabilities (n, 4) and true labels (n,)."""
    sure = np.eye(len(LABELS), dtype=np.float32)
    true = np.array([_utilities(priors, policy, sure[label]) for label in truth])
    n_models = true.shape[1]
    choices = {
        "likeliest label": [_choice(priors, policy, sure[row.argmax()]) for row in complexity],
        "expected utility": [_choice(priors, policy, row) for row in complexity],
        **{f"always model {j}": [j] * len(true) for j in range(n_models)},
    }
    rows, best = np.arange(len(true)), true.max(axis=1)
    return {name: 100 * (best - true[rows, chosen]) for name, chosen in choices.items()}


def _choice(priors: LabelPriors, policy: Policy, complexity: Floats) -> int:
    return int(np.argmax(_utilities(priors, policy, complexity)))


def _utilities(priors: LabelPriors, policy: Policy, complexity: Floats) -> list[float]:
    """Return utilities; of a model over the latency budget -inf."""
    expected, budget = priors(complexity), policy.latency_budget_s or np.inf
    pairs = zip(expected.p_success, expected.latency_s, strict=True)
    return [utility(policy, p, latency[0], 0.0) if latency[2] <= budget else -np.inf for p, latency in pairs]


def _rows(path: Path) -> list[Query]:
    queries = [query for query in read_queries(path) if query.label is not None]
    return [q for q in queries if is_test(group_of(q))] if path.resolve() == corpus_path().resolve() else queries


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.expected_utility", __doc__)
    cli.add_argument("--queries", type=Path, nargs="+", default=[corpus_path()], help="labelled queries, JSON Lines")
    cli.add_argument("--bundle", type=Path, help="bundle that reads the labels (default: the active one)")
    cli.add_argument("--policy", default="balanced", help="policy (%(default)s)")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 2 for bad input."""
    options = parser().parse_args(argv)
    return run_command("benchmarks.expected_utility", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    router = Router.load(options.bundle or active_bundle(load_settings()))
    catalogue, policy = load_catalogue(), resolve_policy(options.policy)
    priors = LabelPriors(list(catalogue))
    for path in options.queries:
        queries = _rows(path)
        texts, contexts = [query.text for query in queries], [query.context for query in queries]
        parts = [router.predict_many(texts[i : i + 256], contexts[i : i + 256])[0] for i in range(0, len(texts), 256)]
        truth = [LABELS.index(query.label) for query in queries if query.label is not None]
        found = regrets(priors, policy, np.concatenate(parts), truth)
        names = {f"always model {j}": f"always {name}" for j, name in enumerate(catalogue.names)}
        rows = [(path.name, f"regret of {len(queries)}", "standard error")]
        for name, regret in found.items():
            if np.isfinite(regret).all():  # else over the latency budget
                rows.append((names.get(name, name), f"{regret.mean():.3f}", f"{regret.std() / len(regret) ** 0.5:.3f}"))
        print(format_table(rows))


if __name__ == "__main__":
    sys.exit(main())
