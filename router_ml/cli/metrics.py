"""router-ml metrics: success, latency and savings of the last hours, computed from the event store."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from router_ml.cli.events import age_s, event_store
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent
from router_ml.events.judgement import judge_agreement, source_of
from router_ml.events.store import EventFilter
from router_ml.monitor.summary import Summary, summarise
from router_ml.settings import load_settings
from router_ml.terminal import print_table as print_table  # experiments import it from here

_HEAD = (
    "",
    "requests",
    "answered",
    "right",
    "p50 s",
    "p90 s",
    "p95 s",
    "tokens/s",
    "cached",
    "fallback",
    "over",
    "under",
    "saved (predicted)",
)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("metrics", help="success, latency and savings per model and variant")
    verb.add_argument("--window", type=age_s, default=86_400.0, metavar="AGE", help="15m, 12h, 7d (default 1d)")
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_metrics)


def _metrics(options: argparse.Namespace) -> int:
    now_s = time.time()
    store = event_store(load_settings())
    try:
        kinds = ("decision", "outcome", "feedback")
        # A decision comes shortly before its outcome; an hour is more than any request may take.
        events = [stored.event for stored in store.read(EventFilter(kinds, since_s=now_s - options.window - 3600))]
    finally:
        store.close()
    snapshot = summarise(events, now_s - options.window, now_s)
    sources = _sources(events, now_s - options.window)
    if options.json:
        print(json.dumps({**snapshot.as_dict(), "sources": sources}))
        return 0
    if not snapshot.total.requests:
        print("No requests in this window.")
        return 0
    _table("model", snapshot.by_model, snapshot.total)
    if snapshot.by_arm:
        print()
        _table("arm", snapshot.by_arm, None)
    if snapshot.total.saved_share is not None:
        print(
            "saved: seconds spent against those predicted for the most accurate model. The decisions' predictions rest "
            f"on: success {_counts(sources['success'])}; seconds {_counts(sources['latency'])}."
        )
    _judging(events)
    if snapshot.by_variant:
        print()
        _table("variant", snapshot.by_variant, None)
    return 0


def _sources(events: Iterable[Event], since_s: float) -> dict[str, dict[str, int]]:
    """Return how many candidates of the decisions had each source: prior, measured or learned."""
    candidates = [
        candidate
        for event in events
        if isinstance(event, DecisionEvent) and not event.shadow and event.at_s >= since_s
        for candidate in event.candidates
    ]
    return {"success": Counter(c.source for c in candidates), "latency": Counter(c.latency_source for c in candidates)}


def _counts(sources: Mapping[str, int]) -> str:
    total = sum(sources.values())
    return ", ".join(f"{name} {n / total:.0%}" for name, n in sorted(sources.items())) or "unknown"


def _judging(events: Sequence[Event]) -> None:
    """Print what the judgements come from, and how far the judge agrees with people."""
    feedback = [event for event in events if isinstance(event, FeedbackEvent)]
    kinds = Counter(event.kind for event in feedback)
    if kinds:
        print("judged by:")
        for kind, n in kinds.most_common():
            print(f"  {kind:<15}{n:>8,}  weight {source_of(kind).weight:g}: {source_of(kind).meaning}")
    found = judge_agreement(feedback)
    if found.compared:
        print(
            f"the judge agrees with people on {found.same} of {found.compared} answers both judged (kappa "
            f"{found.kappa:.2f}), so its judgements weigh {found.weight:.2f}"
        )


def _table(title: str, groups: Mapping[str, Summary], total: Summary | None) -> None:
    rows = [(title, *_HEAD[1:]), *((name, *_cells(summary)) for name, summary in groups.items())]
    if total is not None:
        rows.append(("all", *_cells(total)))
    print_table(rows)


def _cells(s: Summary) -> tuple[str, ...]:
    return (
        f"{s.requests:,}",
        _percent(s.answered_share),
        "-" if s.success_rate is None else f"{s.success_rate:.1%} of {s.judged:,} judged",
        _number(s.latency_p50_s),
        _number(s.latency_p90_s),
        _number(s.latency_p95_s),
        _number(s.output_tokens_per_s, 0),
        _percent(s.cache_hit_rate),
        _percent(s.fallback_rate),
        _percent(s.over_routing_rate),
        _percent(s.under_routing_rate),
        _percent(s.saved_share),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
