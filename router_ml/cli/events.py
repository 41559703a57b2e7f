"""router-ml events: export recorded events, or delete old ones."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from router_ml.errors import InputError
from router_ml.events.connect import settings_store
from router_ml.events.export import export_bandit, export_events, export_features, export_outcomes, export_queries
from router_ml.events.retention import Retention
from router_ml.events.store import EventFilter, EventStore
from router_ml.jsonl import STANDARD_OUTPUT
from router_ml.settings import load_settings

event_store = settings_store  # verbs import it from here

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_EXPORTS: Mapping[str, Callable[[EventStore, Path, EventFilter], int]] = {
    "outcomes": export_outcomes,
    "bandit": export_bandit,
    "queries": lambda store, path, _: export_queries(store, path),
    "features": lambda store, path, _: export_features(store, path),
    "events": export_events,
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("events", help="export or prune recorded events")
    verbs = verb.add_subparsers(dest="what", required=True)
    export = verbs.add_parser(
        "export", help="write outcomes (for training), decisions with rewards, queries or events as JSON Lines"
    )
    export.add_argument("--out", type=Path, default=Path("-"), help="the file to write (default -: standard output)")
    export.add_argument(
        "--what",
        dest="content",
        choices=tuple(_EXPORTS),
        default="outcomes",
        help="outcomes for training, bandit (one row a decision, with its reward), queries, features or events",
    )
    export.add_argument("--since", type=age_s, metavar="AGE", help="only the last 30m, 12h, 7d ...")
    export.set_defaults(func=_export)
    prune = verbs.add_parser("prune", help="delete traffic events that are older than the retention")
    prune.add_argument(
        "--days", type=float, default=Retention().traffic_days, help="days to keep (default %(default)s)"
    )
    prune.set_defaults(func=_prune)


def duration_s(text: str) -> float:
    """Return the seconds of a duration such as `90`, `15m`, `12h`, `7d`. Raises `InputError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if found is None:
        raise InputError(f"{text!r} is not a duration; write 90s, 15m, 12h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2] or "s"]


def age_s(text: str) -> float:
    """Return `duration_s` of a text of the command line."""
    try:
        return duration_s(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _export(options: argparse.Namespace) -> int:
    store = event_store(load_settings())
    selection = EventFilter(since_s=None if options.since is None else time.time() - options.since)
    try:
        count = _EXPORTS[options.content](store, options.out, selection)
    finally:
        store.close()
    notes = sys.stderr if str(options.out) == STANDARD_OUTPUT else sys.stdout
    print(f"{count} {options.content} written to {options.out}", file=notes)
    if options.content in ("queries", "features") and not count:
        kept = {"queries": "text", "features": "features"}[options.content]
        print(f"No {kept} is stored by default; set ROUTER_ML_KEEP={kept} to store it for 30 days.", file=notes)
    return 0


def _prune(options: argparse.Namespace) -> int:
    store = event_store(load_settings(), read_only=False)
    try:
        gone = store.prune(Retention(traffic_days=options.days).before(time.time()))
    finally:
        store.close()
    print(f"{gone} events deleted")
    return 0
