"""Replays a traffic mix: how fast it is answered by routing, by the old rules, and by the accurate model alone.

    python -m training.replay [--bundle DIR] [--mix simple=.4 moderate=.3 complex=.2 ambiguous=.1]
    python -m training.replay --bundle DIR --queries Q --outcomes O

Without outcomes, labelled queries are drawn in the shares of the mix and each model takes and gives what its prior in
the catalogue says for the query's *true* label: a wrong reading of a query costs what it would cost. With outcomes,
each query takes and gives what was measured.

The router's price on time is the highest at which its *predicted* success stays level: with the accurate model's, less
`--give`, and with the floor the old rules had to keep (`--floor`). No answer is used to set it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.features.extractor import TABLE_NAMES
from router_ml.decide.features.surface import surface_features
from router_ml.decide.features.tools import TOOL_NAMES
from router_ml.decide.predictors.heuristic import HeuristicComplexity
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.files import atomic_write
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.terminal import run_command
from router_ml.types import LABELS, Label, Query
from training.corpus import corpus_path
from training.outcomes.table import OutcomeTable, outcome_table

Matrix = NDArray[np.float64]

DEFAULT_MIX: Mapping[Label, float] = {"simple": 0.4, "moderate": 0.3, "complex": 0.2, "ambiguous": 0.1}
SLOW_S = 5.0
PRICES = np.concatenate(([0.0], np.geomspace(1e-4, 10.0, 200)))  # success given up for a second
BATCH = 512
ROWS_PER_LABEL = 500
FLOOR = 0.90  # the tool accuracy the old rules had to keep


@dataclass(frozen=True)
class World:
    """What every model takes (seconds) and gives (success) for every query, and how much each query counts."""

    queries: tuple[Query, ...]
    models: tuple[str, ...]
    latency_s: Matrix
    success: Matrix
    weight: Matrix

    def row(self, chosen: NDArray[np.intp]) -> dict[str, float]:
        """Mean latency, share over five seconds and success of a choice for each query."""
        rows = np.arange(len(chosen))
        taken, given = self.latency_s[rows, chosen], self.success[rows, chosen]
        return {
            "mean_latency_s": float(np.average(taken, weights=self.weight)),
            "share_over_5_s": float(np.average(taken > SLOW_S, weights=self.weight)),
            "success": float(np.average(given, weights=self.weight)),
        }


def world_of_priors(queries: Sequence[Query], catalogue: Catalogue, mix: Mapping[Label, float]) -> World:
    """The catalogue's word for each query's true label; labels weigh as the mix says.

    Raises `InputError` where a label of the mix has no query."""
    labelled = tuple(query for label in LABELS for query in _drawn(queries, label))
    counts = {label: sum(query.label == label for query in labelled) for label in LABELS}
    missing = [label for label in LABELS if mix.get(label, 0) > 0 and not counts[label]]
    if missing:
        raise InputError(
            f"the mix asks for {', '.join(missing)} but no query has that label; change --mix or --queries"
        )
    models = list(catalogue)
    return World(
        labelled,
        tuple(model.name for model in models),
        np.array([[m.prior.latency_s[_label(q)] for m in models] for q in labelled]),
        np.array([[m.prior.success[_label(q)] for m in models] for q in labelled]),
        np.array([mix.get(_label(q), 0.0) / counts[_label(q)] for q in labelled]),
    )


def _drawn(queries: Sequence[Query], label: Label) -> list[Query]:
    """At most `ROWS_PER_LABEL` queries of a label, the same ones in every run."""
    of_label = [query for query in queries if query.label == label]
    return random.Random(0).sample(of_label, min(len(of_label), ROWS_PER_LABEL))


def _label(query: Query) -> Label:
    if query.label is None:
        raise InputError(f"query {query.id!r} has no label")
    return query.label


def world_of_outcomes(table: OutcomeTable, mix: Mapping[Label, float] | None) -> World:
    """What was measured; only queries for which every model has success and latency count.

    Raises `InputError` where there is no such query."""
    whole = ~(np.isnan(table.success) | np.isnan(table.latency_s)).any(axis=1)
    part = table.rows(np.flatnonzero(whole))
    if not len(part):
        raise InputError("no query has success and latency of every model; measure them with training.benchmark")
    labels = [query.label for query in part.queries]
    weight = np.ones(len(part))
    if mix is not None and all(label is not None for label in labels):
        weight = np.array([mix.get(label, 0.0) / labels.count(label) for label in labels if label is not None])
    return World(part.queries, part.models, part.latency_s, part.success, weight)


def replay(world: World, router: Router, give: float = 0.0, floor: float = FLOOR) -> dict[str, Any]:
    """Rows for the accurate model, every single model, the old rules, the policies and the priced router."""
    role = _roles(world)
    rows: dict[str, dict[str, float]] = {
        f"always {model}": world.row(np.full(len(world.queries), j)) for j, model in enumerate(world.models)
    }
    rows["old rules"] = world.row(_old_rules(world, role))
    texts, contexts = [q.text for q in world.queries], [q.context for q in world.queries]
    index = {_own_name(router, model): j for j, model in enumerate(world.models)}
    for policy in ("fast", "balanced", "accurate"):
        decisions = router.decide_many(texts, contexts, policy)
        chosen = [next(index[c.model] for c in decision.ranked if c.model in index) for decision in decisions]
        rows[f"router, policy {policy}"] = world.row(np.array(chosen))
    p, latency = _predicted(router, texts, contexts, list(index))
    level = float(np.average(p[:, role["accurate"]], weights=world.weight)) - give
    prices = {}
    for name, least in (("router, success level with it", level), (f"router, success kept at {floor:.0%}", floor)):
        prices[name], chosen_models = _priced(p, latency, world.weight, least)
        rows[name] = world.row(chosen_models)
    reference = world.models[role["accurate"]]
    slow = rows[f"always {reference}"]["mean_latency_s"]
    for row in rows.values():
        row["speed_up"] = slow / row["mean_latency_s"]
    return {"reference": reference, "queries": len(world.queries), "price_per_s": prices, "rows": rows}


def _own_name(router: Router, model: str) -> str:
    found = router.catalogue.find(model)
    if found is None:
        raise InputError(f"the router knows no model {model!r}; give the bundle that was fitted on it")
    return found.name


def _roles(world: World) -> dict[str, int]:
    latency = np.average(world.latency_s, axis=0, weights=world.weight)
    success = np.average(world.success, axis=0, weights=world.weight)
    fast, accurate = int(latency.argmin()), int(success.argmax())
    between = [j for j in range(len(latency)) if j not in (fast, accurate) and latency[j] < latency[accurate]]
    return {"fast": fast, "balanced": max(between, key=lambda j: success[j], default=accurate), "accurate": accurate}


def _old_rules(world: World, role: Mapping[str, int]) -> NDArray[np.intp]:
    """The hand-written rules: simple goes to the fast model, everything else to the balanced one."""
    table = np.array(
        [surface_features(q.text, q.context) + [0.0] * len(TOOL_NAMES) for q in world.queries], dtype=np.float32
    )
    labels = HeuristicComplexity(TABLE_NAMES)(None, table).argmax(axis=1)
    of_label = np.array([role["fast"] if label == "simple" else role["balanced"] for label in LABELS], dtype=np.intp)
    chosen: NDArray[np.intp] = of_label[labels]
    return chosen


def _predicted(router: Router, texts: list[str], contexts: list[Any], models: list[str]) -> tuple[Matrix, Matrix]:
    parts = [router.predict_many(texts[i : i + BATCH], contexts[i : i + BATCH])[1] for i in range(0, len(texts), BATCH)]
    order = [parts[0].models.index(model) for model in models]
    p = np.concatenate([part.p_success for part in parts])[:, order].astype(np.float64)
    latency = np.concatenate([part.latency_s for part in parts])[:, order, 0].astype(np.float64)
    return p, latency


def _priced(p: Matrix, latency: Matrix, weight: Matrix, least: float) -> tuple[float, NDArray[np.intp]]:
    """The fastest sweep point whose predicted success is not below `least`; else the most accurate one."""
    rows = np.arange(len(p))
    best_price, best = 0.0, p.argmax(axis=1)
    for price in PRICES:
        chosen = (p - price * latency).argmax(axis=1)
        if float(np.average(p[rows, chosen], weights=weight)) < least - 1e-9:
            break
        best_price, best = float(price), chosen
    return best_price, best


def summary(found: Mapping[str, Any]) -> str:
    """The replay as a person reads it."""
    lines = [f"{found['queries']} queries; speed-up is over always {found['reference']}"]
    lines.append(f"  {'':<36} mean s   over 5 s   success   speed-up")
    for name, row in found["rows"].items():
        lines.append(
            f"  {name:<36} {row['mean_latency_s']:6.2f}   {row['share_over_5_s']:7.1%}   {row['success']:7.3f}"
            f"   {row['speed_up']:6.2f}x"
        )
    limit = max(row["speed_up"] for name, row in found["rows"].items() if name.startswith("always "))
    lines.append(
        f"  The old rules were reported at 5.0x, with a goal of 8 to 10x; the fastest model alone gives {limit:.1f}x."
    )
    return "\n".join(lines)


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
            raise InputError(f"--mix takes label=share with labels {', '.join(LABELS)}, found {pair!r}")
        mix[label] = value
    if not sum(mix.values()) > 0:
        raise InputError("--mix needs at least one share above zero")
    total = sum(mix.values())
    return {label: share / total for label, share in mix.items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    cli = argparse.ArgumentParser(prog="python -m training.replay", description=(__doc__ or "").split("\n", 1)[0])
    cli.add_argument("--bundle", type=Path, help="folder of the bundle (the active one)")
    cli.add_argument("--queries", type=Path, help="labelled queries, JSON Lines (the shipped corpus)")
    cli.add_argument("--outcomes", type=Path, help="measured outcomes on them")
    cli.add_argument("--catalogue", type=Path, help="models and priors, TOML (the packaged three models)")
    cli.add_argument("--mix", nargs="+", default=[], metavar="LABEL=SHARE", help="shares of the four labels")
    cli.add_argument("--give", type=float, default=0.0, help="success that may be given up for speed (%(default)s)")
    cli.add_argument("--floor", type=float, default=FLOOR, help="success to be kept (%(default)s)")
    cli.add_argument("--json", type=Path, help="write the figures here")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a replay; exit status 2 for bad input, 1 where the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("training.replay", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    mix = _mix(options.mix) if options.mix else dict(DEFAULT_MIX)
    router = Router.load(options.bundle) if options.bundle else Router.load_or_heuristic()
    queries = read_queries(options.queries or corpus_path())
    if options.outcomes:
        world = world_of_outcomes(outcome_table(queries, read_outcomes(options.outcomes)), mix)
    else:
        world = world_of_priors(queries, load_catalogue(options.catalogue), mix)
    found = replay(world, router, options.give, options.floor)
    print(summary(found))
    if options.json:
        atomic_write(options.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
