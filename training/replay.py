"""Replay a mix of queries: how long answers take with the router, with hand-written rules, and with each model alone.

    python -m training.replay [--bundle DIR] [--mix simple=.4 moderate=.3 complex=.2 ambiguous=.1]
    python -m training.replay --rate llama3.2:3b-instruct=60 qwen2.5:3b-instruct=55 qwen3:8b=25
    python -m training.replay --bundle DIR --queries Q --outcomes O

A model that can be asked in several ways is replayed once for each of them ("qwen3:8b+think", "qwen3:8b+nothink").

Without outcomes, labelled queries are drawn in the shares of the mix, and each arm takes and gives what its *prior*
in the catalogue says for the query's true label: figures of priors, not measurements. With --rate the seconds are those
of your machine: the tokens that the prior expects, at the rate you measured. With outcomes, each query takes and gives
what was measured.

The same traffic is shown behind an answer cache, as Zipf-like traffic fills it: of --requests requests for --distinct
texts every one but the first of its text is a hit. A last table gives the speed-up for other rates and other hit rates.

The router's price of time is the highest at which its *predicted* success stays level: with that of the most accurate
arm, less `--give`, and with `--floor`. No answer is used to set it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from router_ml.arm import arm_key
from router_ml.catalogue import Catalogue, Model, load_catalogue
from router_ml.decide.features.surface import surface_features
from router_ml.decide.features.tools import TOOL_NAMES
from router_ml.decide.predictors.outcomes import Predictions
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.jsonl import read_outcomes, read_queries
from router_ml.terminal import format_table, run_command
from router_ml.types import LABELS, Label
from training.arrays import Index, Matrix
from training.command import command_parser, write_json
from training.corpus import corpus_path
from training.measuring.baselines import Roles, heuristic_choice, roles
from training.measuring.traffic import (
    HIT_S,
    Machine,
    Traffic,
    at_rates,
    traffic_of_outcomes,
    traffic_of_priors,
    zipf_hit_rate,
)
from training.outcomes.table import outcome_table

DEFAULT_MIX: Mapping[Label, float] = {"simple": 0.4, "moderate": 0.3, "complex": 0.2, "ambiguous": 0.1}
PRICES = np.concatenate(([0.0], np.geomspace(1e-4, 10.0, 200)))  # success exchanged for a second
FLOOR = 0.90  # success
START_S = 0.5
REQUESTS, DISTINCT, EXPONENT = 10_000, 2_000, 1.0
HIT_RATES = (0.0, 0.2, 0.4, 0.6, 0.8)
SPEED_UPS = (4, 6, 8, 10)
REMEMBERED = 8_192  # queries that are read once for all policies and rates
PACES = (10.0, 20.0, 40.0, 80.0, 160.0)  # tokens per second of the reference
POLICIES = ("fast", "balanced", "accurate")


def replay(
    traffic: Traffic,
    router: Router,
    give: float = 0.0,
    floor: float = FLOOR,
    *,
    machine: Machine | None = None,
    hit_rate: float = 0.0,
    predictions: Predictions | None = None,
) -> dict[str, Any]:
    """Return figures of every single arm, the hand-written rules, the policies and the priced router.

    `machine` is what the router knows of the rates; `hit_rate` that of an answer cache, which the reference of the
    speed-ups does not have; `predictions` are the router's of these queries, where they are known."""
    means = [np.average(one, axis=0, weights=traffic.weight) for one in (traffic.latency_s, traffic.success)]
    role = roles(*means)
    choices: dict[str, Index] = {
        f"always {model}": np.full(len(traffic.queries), j) for j, model in enumerate(traffic.models)
    }
    texts, contexts = [q.text for q in traffic.queries], [q.context for q in traffic.queries]
    arms = [_own_arm(router, model) for model in traffic.models]
    index = {arm.key: j for j, arm in enumerate(arms)}
    usual = [j for j, arm in enumerate(arms) if router.catalogue[arm.name].default_arm.key == arm.key]
    choices["hand-written rules"] = _hand_written_rules(traffic, roles(means[0][usual], means[1][usual]), usual)
    for policy in POLICIES:
        state = machine.state() if machine else None
        decisions = [router.decide(text, context, policy, state) for text, context in zip(texts, contexts, strict=True)]
        keys = [[arm_key(c.model, c.think) for c in decision.ranked] for decision in decisions]
        choices[f"router, policy {policy}"] = np.array([next(index[k] for k in own if k in index) for own in keys])
    p, latency = _on_machine(predictions or router.predict_many(texts, contexts)[1], arms, machine)
    level = float(np.average(p[:, role.accurate], weights=traffic.weight)) - give
    prices = {}
    for name, least in (
        ("router, success as the most accurate", level),
        (f"router, success at least {floor:.0%}", floor),
    ):
        prices[name], choices[name] = _priced(p, latency, traffic.weight, least)
    rows = {name: traffic.row(chosen, hit_rate) for name, chosen in choices.items()}
    reference = traffic.models[role.accurate]
    slow = rows[f"always {reference}"]["mean_latency_s"]
    for row in rows.values():
        row["speed_up"] = slow / row["mean_latency_s"]
        if hit_rate:
            row["cached_speed_up"] = slow / row["cached_mean_latency_s"]
    return {
        "reference": reference,
        "source": traffic.source,
        "queries": len(traffic.queries),
        "hit_rate": hit_rate,
        "price_per_s": prices,
        "rows": rows,
    }


def speed_ups(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the speed-up of one row of a replay at several hit rates, and the hit rates that give some speed-ups."""
    row = found["rows"][name]
    slow, mean = found["rows"][f"always {found['reference']}"]["mean_latency_s"], row["mean_latency_s"]
    needed = {times: (mean - slow / times) / (mean - HIT_S) for times in SPEED_UPS}  # of (1 - h) * mean + h * HIT_S
    return {
        "success": row["success"],
        "mean_latency_s": mean,
        "reference_latency_s": slow,
        "speed_up": {str(h): slow / ((1 - h) * mean + h * HIT_S) for h in HIT_RATES},
        "hit_rate_for": {str(times): min(max(h, 0.0), 1.0) for times, h in needed.items()},
    }


def by_pace(
    traffic: Traffic, router: Router, catalogue: Catalogue, give: float, floor: float, start_s: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return, for the router at its success levels and balanced, its speed-ups at several rates of the reference.

    The rates of the other models follow from their size, since a token takes reading every parameter once. Empty where
    the catalogue does not say how large they are."""
    if not all(model.parameters_b for model in catalogue.models):
        return {}
    means = (np.average(one, axis=0, weights=traffic.weight) for one in (traffic.latency_s, traffic.success))
    reference = catalogue.arms[roles(*means).accurate]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    predictions = router.predict_many([q.text for q in traffic.queries], [q.context for q in traffic.queries])[1]
    for pace in tqdm(PACES, "rates", leave=False, disable=not sys.stderr.isatty()):
        size = reference.parameters_b or 1.0
        machine = Machine({m.name: pace * size / (m.parameters_b or 1.0) for m in catalogue.models}, start_s)
        replayed = replay(
            at_rates(traffic, catalogue, machine), router, give, floor, machine=machine, predictions=predictions
        )
        for name in _routed(replayed):
            found.setdefault(name, {})[f"{pace:g} tokens/s"] = speed_ups(replayed, name)
    return found


def _routed(found: Mapping[str, Any]) -> list[str]:
    return ["router, policy balanced", *found["price_per_s"]]


def _own_arm(router: Router, key: str) -> Model:
    arm = router.catalogue.arm(key)
    if arm is None:
        raise InputError(f"the router has no model {key!r}; give --bundle one that was fitted on it")
    return arm


def _hand_written_rules(traffic: Traffic, role: Roles, usual: list[int]) -> Index:
    """Return what rules choose that know nothing of arms: among the `usual` ones, which `role` counts."""
    rows = [surface_features(query.text, query.context) + [0.0] * len(TOOL_NAMES) for query in traffic.queries]
    return np.array(usual)[heuristic_choice(role, np.array(rows, dtype=np.float32))]


def _on_machine(predictions: Predictions, arms: Sequence[Model], machine: Machine | None) -> tuple[Matrix, Matrix]:
    """Return predicted success and median seconds (n, M) of some arms, on a machine at its rates."""
    order = [predictions.models.index(arm.key) for arm in arms]
    p, tokens = (part[:, order].astype(np.float64) for part in (predictions.p_success, predictions.output_tokens))
    latency = predictions.latency_s[:, order, 0].astype(np.float64)
    for j, arm in enumerate(arms):
        if machine is not None and (seconds := machine.seconds(arm, tokens[:, j])) is not None:
            latency[:, j] = seconds
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
    cached = bool(found["hit_rate"])
    head = ("", "mean s", "p95 s", "over 5 s", "success", "speed-up")
    rows = [(*head, *(("cached: mean s", "p95 s", "over 5 s", "speed-up") if cached else ()))]
    for name, row in found["rows"].items():
        mean, p95, over, times = _cells(row, "")
        behind = _cells(row, "cached_") if cached else ()
        rows.append((name, mean, p95, over, f"{row['success']:.3f}", times, *behind))
    lines = [f"{found['queries']} queries; {found['source']}; speed-up is over always {found['reference']}"]
    if cached:
        lines[0] += " without a cache"
        zipf = found.get("zipf", "")
        lines.append(f"cached: behind an answer cache with {found['hit_rate']:.1%} hits{zipf}")
    return "\n".join([*lines, format_table(rows)])


def _cells(row: Mapping[str, float], prefix: str) -> tuple[str, ...]:
    mean, p95 = row[f"{prefix}mean_latency_s"], row[f"{prefix}p95_latency_s"]
    return f"{mean:.2f}", f"{p95:.2f}", f"{row[f'{prefix}share_over_5_s']:.1%}", f"{row[f'{prefix}speed_up']:.2f}x"


def speed_up_table(found: Mapping[str, Any]) -> str:
    """Return the speed-ups at several rates and hit rates as text."""
    hits = [f"{h:.0%} hits" for h in HIT_RATES]
    rows = [("", "seconds by", "success", "always s", "mean s", *hits, *(f"{times}x from" for times in SPEED_UPS))]
    for name, paces in found["speed_ups"].items():
        for pace, cell in paces.items():
            seconds = (f"{cell[key]:.2f}" for key in ("reference_latency_s", "mean_latency_s"))
            times = (f"{value:.1f}x" for value in cell["speed_up"].values())
            needed = (f"{h:.0%} hits" if h else "no cache" for h in cell["hit_rate_for"].values())
            rows.append((name, pace, f"{cell['success']:.3f}", *seconds, *times, *needed))
    head = f"speed-up over always {found['reference']} without a cache, by hit rate; and the hit rate that gives one"
    return f"{head}\n{format_table(rows, left=(0, 1))}"


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
    cli.add_argument(
        "--rate", nargs="+", default=[], metavar="MODEL=TOKENS", help="tokens per second that you measured, per model"
    )
    cli.add_argument(
        "--start",
        type=float,
        default=START_S,
        metavar="S",
        help="seconds before the first token, where rates give the seconds (%(default)s)",
    )
    cli.add_argument("--requests", type=int, default=REQUESTS, help="requests that the cache has seen (%(default)s)")
    cli.add_argument("--distinct", type=int, default=DISTINCT, help="different texts among them (%(default)s)")
    cli.add_argument("--zipf", type=float, default=EXPONENT, help="exponent of their popularity (%(default)s)")
    cli.add_argument("--give", type=float, default=0.0, help="success that may be given up for speed (%(default)s)")
    cli.add_argument("--floor", type=float, default=FLOOR, help="least success of the second router (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write the figures to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run a replay; exit code 2 for bad input, 1 if the bundle cannot be used."""
    options = parser().parse_args(argv)
    return run_command("training.replay", lambda: _run(options), failure=1)


def _run(options: argparse.Namespace) -> None:
    mix = _mix(options.mix) if options.mix else dict(DEFAULT_MIX)
    if options.requests < 1 or options.distinct < 1 or not options.zipf >= 0 or not options.start >= 0:
        raise InputError("--requests and --distinct must be 1 or more, --zipf and --start 0 or more")
    catalogue = load_catalogue(options.catalogue) if options.catalogue or not options.outcomes else None
    known: dict[str, Any] = {"catalogue": catalogue, "remember": REMEMBERED}
    router = Router.load(options.bundle, **known) if options.bundle else Router.load_or_heuristic(**known)
    queries = read_queries(options.queries or corpus_path())
    machine = None
    if options.outcomes:
        if options.rate:
            raise InputError("--rate is for priors; outcomes have the seconds that were measured")
        traffic = traffic_of_outcomes(outcome_table(queries, read_outcomes(options.outcomes)), mix)
    else:
        assert catalogue is not None
        traffic = traffic_of_priors(queries, catalogue, mix)
        if options.rate:
            machine = Machine(_rates(options.rate, catalogue), options.start)
            traffic = at_rates(traffic, catalogue, machine)
    hit_rate = zipf_hit_rate(options.requests, options.distinct, options.zipf)
    found = replay(traffic, router, options.give, options.floor, machine=machine, hit_rate=hit_rate)
    found["zipf"] = f" ({options.requests:,} requests for {options.distinct:,} texts, Zipf exponent {options.zipf:g})"
    now = "rates given" if machine else "outcomes" if options.outcomes else "priors"
    found["speed_ups"] = {name: {now: speed_ups(found, name)} for name in _routed(found)}
    if catalogue is not None and not options.outcomes:
        for name, cells in by_pace(traffic, router, catalogue, options.give, options.floor, options.start).items():
            found["speed_ups"][name] |= cells
    print(f"{summary(found)}\n\n{speed_up_table(found)}")
    if any(len(cells) > 1 for cells in found["speed_ups"].values()):
        note = f"tokens/s are those of {found['reference']}; the other models' follow from their size"
        print(f"{note}; {options.start:g} s before the first token")
    write_json(options.json, found)


def _rates(pairs: Sequence[str], catalogue: Catalogue) -> dict[str, float]:
    rates: dict[str, float] = {}
    for pair in pairs:
        name, _, rate = pair.rpartition("=")
        model = catalogue.find(name)
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if model is None or not 0 < value < 1e6:
            raise InputError(f"--rate takes model=tokens/s with models {', '.join(catalogue.names)}, got {pair!r}")
        rates[model.name] = value
    return rates


if __name__ == "__main__":
    sys.exit(main())
