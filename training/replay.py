"""Replay a mix of queries: how long answers take with the router, with hand-written rules, and with each model alone.

    python -m training.replay [--bundle DIR] [--mix simple=.4 moderate=.3 complex=.2 ambiguous=.1]
    python -m training.replay --bundle DIR --queries Q --outcomes O

Without outcomes, labelled queries are drawn in the shares of the mix, and each model takes and gives what its *prior*
in the catalogue says for the query's true label: figures of priors, not measurements. With outcomes, each query takes
and gives what was measured.

The router's price of time is the highest at which its *predicted* success stays level: with that of the most accurate
model, less `--give`, and with `--floor`. No answer is used to set it.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.features.surface import surface_features
from router_ml.decide.features.tools import TOOL_NAMES
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.terminal import format_table, run_command
from router_ml.types import LABELS, Label, Query
from training.arrays import Index, Matrix
from training.command import command_parser, write_json
from training.corpus import corpus_path
from training.measuring.baselines import Roles, heuristic_choice, roles
from training.outcomes.table import OutcomeTable, outcome_table

DEFAULT_MIX: Mapping[Label, float] = {"simple": 0.4, "moderate": 0.3, "complex": 0.2, "ambiguous": 0.1}
SLOW_S = 5.0
PRICES = np.concatenate(([0.0], np.geomspace(1e-4, 10.0, 200)))  # success exchanged for a second
BATCH = 512
ROWS_PER_LABEL = 500
FLOOR = 0.90  # success


@dataclass(frozen=True)
class Traffic:
    """Seconds and success of every model for every query (n, M), and the weight of each query (n,)."""

    queries: tuple[Query, ...]
    models: tuple[str, ...]
    latency_s: Matrix
    success: Matrix
    weight: Matrix
    source: str  # of seconds and success

    def row(self, chosen: Index) -> dict[str, float]:
        """Return mean latency, share over five seconds and success of a choice (n,)."""
        rows = np.arange(len(chosen))
        taken, given = self.latency_s[rows, chosen], self.success[rows, chosen]
        return {
            "mean_latency_s": float(np.average(taken, weights=self.weight)),
            "share_over_5_s": float(np.average(taken > SLOW_S, weights=self.weight)),
            "success": float(np.average(given, weights=self.weight)),
        }


def traffic_of_priors(queries: Sequence[Query], catalogue: Catalogue, mix: Mapping[Label, float]) -> Traffic:
    """Return the priors of each query's true label; labels are weighted by the mix.

    Raises `InputError` if a label of the mix has no query."""
    labelled = tuple(query for label in LABELS for query in _drawn(queries, label))
    counts = {label: sum(query.label == label for query in labelled) for label in LABELS}
    missing = [label for label in LABELS if mix.get(label, 0) > 0 and not counts[label]]
    if missing:
        raise InputError(f"no query is labelled {', '.join(missing)}, which --mix asks for; change --mix or --queries")
    models = list(catalogue)
    return Traffic(
        labelled,
        tuple(model.name for model in models),
        np.array([[m.prior.latency_s[_label(q)] for m in models] for q in labelled]),
        np.array([[m.prior.success[_label(q)] for m in models] for q in labelled]),
        np.array([mix.get(_label(q), 0.0) / counts[_label(q)] for q in labelled]),
        "priors of the catalogue",
    )


def _drawn(queries: Sequence[Query], label: Label) -> list[Query]:
    """Return at most `ROWS_PER_LABEL` queries of a label, the same ones in every run."""
    of_label = [query for query in queries if query.label == label]
    return random.Random(0).sample(of_label, min(len(of_label), ROWS_PER_LABEL))


def _label(query: Query) -> Label:
    if query.label is None:
        raise InputError(f"query {query.id!r} has no label; add one, or give --outcomes")
    return query.label


def traffic_of_outcomes(table: OutcomeTable, mix: Mapping[Label, float] | None) -> Traffic:
    """Return what was measured, of the queries for which every model has success and latency.

    Raises `InputError` if there is no such query."""
    whole = ~(np.isnan(table.success) | np.isnan(table.latency_s)).any(axis=1)
    part = table.rows(np.flatnonzero(whole))
    if not len(part):
        raise InputError("no query has success and latency of every model; run 'python -m training.benchmark'")
    labels = [query.label for query in part.queries]
    weight = np.ones(len(part))
    if mix is not None and all(label is not None for label in labels):
        weight = np.array([mix.get(label, 0.0) / labels.count(label) for label in labels if label is not None])
    return Traffic(part.queries, part.models, part.latency_s, part.success, weight, "measured outcomes")


def replay(traffic: Traffic, router: Router, give: float = 0.0, floor: float = FLOOR) -> dict[str, Any]:
    """Return figures of every single model, the hand-written rules, the policies and the priced router."""
    means = (np.average(one, axis=0, weights=traffic.weight) for one in (traffic.latency_s, traffic.success))
    role = roles(*means)
    rows: dict[str, dict[str, float]] = {
        f"always {model}": traffic.row(np.full(len(traffic.queries), j)) for j, model in enumerate(traffic.models)
    }
    rows["hand-written rules"] = traffic.row(_hand_written_rules(traffic, role))
    texts, contexts = [q.text for q in traffic.queries], [q.context for q in traffic.queries]
    index = {_own_name(router, model): j for j, model in enumerate(traffic.models)}
    for policy in ("fast", "balanced", "accurate"):
        decisions = router.decide_many(texts, contexts, policy)
        chosen = [next(index[c.model] for c in decision.ranked if c.model in index) for decision in decisions]
        rows[f"router, policy {policy}"] = traffic.row(np.array(chosen))
    p, latency = _predicted(router, texts, contexts, list(index))
    level = float(np.average(p[:, role.accurate], weights=traffic.weight)) - give
    prices = {}
    for name, least in (
        ("router, success as the most accurate", level),
        (f"router, success at least {floor:.0%}", floor),
    ):
        prices[name], chosen_models = _priced(p, latency, traffic.weight, least)
        rows[name] = traffic.row(chosen_models)
    reference = traffic.models[role.accurate]
    slow = rows[f"always {reference}"]["mean_latency_s"]
    for row in rows.values():
        row["speed_up"] = slow / row["mean_latency_s"]
    return {
        "reference": reference,
        "source": traffic.source,
        "queries": len(traffic.queries),
        "price_per_s": prices,
        "rows": rows,
    }


def _own_name(router: Router, model: str) -> str:
    found = router.catalogue.find(model)
    if found is None:
        raise InputError(f"the router has no model {model!r}; give --bundle one that was fitted on it")
    return found.name


def _hand_written_rules(traffic: Traffic, role: Roles) -> Index:
    rows = [surface_features(query.text, query.context) + [0.0] * len(TOOL_NAMES) for query in traffic.queries]
    return heuristic_choice(role, np.array(rows, dtype=np.float32))


def _predicted(router: Router, texts: list[str], contexts: list[Any], models: list[str]) -> tuple[Matrix, Matrix]:
    parts = [router.predict_many(texts[i : i + BATCH], contexts[i : i + BATCH])[1] for i in range(0, len(texts), BATCH)]
    order = [parts[0].models.index(model) for model in models]
    p = np.concatenate([part.p_success for part in parts])[:, order].astype(np.float64)
    latency = np.concatenate([part.latency_s for part in parts])[:, order, 0].astype(np.float64)
    return p, latency


def _priced(p: Matrix, latency: Matrix, weight: Matrix, least: float) -> tuple[float, Index]:
    """Return price and choice (n,) of the fastest point with a predicted success of `least`, else the best."""
    rows = np.arange(len(p))
    best_price, best = 0.0, p.argmax(axis=1)
    for price in PRICES:
        chosen = (p - price * latency).argmax(axis=1)
        if float(np.average(p[rows, chosen], weights=weight)) < least - 1e-9:
            break
        best_price, best = float(price), chosen
    return best_price, best


def summary(found: Mapping[str, Any]) -> str:
    """Return the replay as text."""
    rows = [("", "mean s", "over 5 s", "success", "speed-up")]
    for name, row in found["rows"].items():
        shares = f"{row['share_over_5_s']:.1%}", f"{row['success']:.3f}"
        rows.append((name, f"{row['mean_latency_s']:.2f}", *shares, f"{row['speed_up']:.2f}x"))
    head = f"{found['queries']} queries; {found['source']}; speed-up is over always {found['reference']}"
    return f"{head}\n{format_table(rows)}"


def _mix(pairs: Sequence[str]) -> dict[Label, float]:
    mix: dict[Label, float] = {}
    for pair in pairs:
        name, _, share = pair.partition("=")
        label = next((label for label in LABELS if label == name), None)
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if label is None or not 0 <= value <= 1:
            raise InputError(f"--mix takes label=share with labels {', '.join(LABELS)}, got {pair!r}")
        mix[label] = value
    if not sum(mix.values()) > 0:
        raise InputError("--mix needs at least one share above zero")
    total = sum(mix.values())
    return {label: share / total for label, share in mix.items()}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.replay", __doc__)
    cli.add_argument("--bundle", type=Path, help="folder of the bundle (default: the active one)")
    cli.add_argument("--queries", type=Path, help="labelled queries, JSON Lines (default: the shipped corpus)")
    cli.add_argument("--outcomes", type=Path, help="measured outcomes on them, JSON Lines")
    cli.add_argument("--catalogue", type=Path, help="models and priors, TOML (default: the packaged models)")
    cli.add_argument("--mix", nargs="+", default=[], metavar="LABEL=SHARE", help="shares of the four labels")
    cli.add_argument("--give", type=float, default=0.0, help="success that may be given up for speed (%(default)s)")
    cli.add_argument("--floor", type=float, default=FLOOR, help="least success of the second router (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write the figures to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a replay; exit code 2 for bad input, 1 where the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("training.replay", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    mix = _mix(options.mix) if options.mix else dict(DEFAULT_MIX)
    router = Router.load(options.bundle) if options.bundle else Router.load_or_heuristic()
    queries = read_queries(options.queries or corpus_path())
    if options.outcomes:
        traffic = traffic_of_outcomes(outcome_table(queries, read_outcomes(options.outcomes)), mix)
    else:
        traffic = traffic_of_priors(queries, load_catalogue(options.catalogue), mix)
    found = replay(traffic, router, options.give, options.floor)
    print(summary(found))
    write_json(options.json, found)


if __name__ == "__main__":
    sys.exit(main())
