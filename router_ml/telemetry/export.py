"""From the store back to the files training reads: the loop closes here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router_ml.rows import outcome_row, write_rows
from router_ml.schema import Outcome
from router_ml.telemetry.event import AttemptEvent, FeedbackEvent, OutcomeEvent, as_dict, outcome_of
from router_ml.telemetry.store import EventStore, Selection
from router_ml.telemetry.summary import Judged, note_feedback, success_of


def outcomes(store: EventStore, selection: Selection | None = None) -> Iterator[Outcome]:
    """One outcome per decision and model that was really called, oldest first.

    Success comes from people first (their last word counts), then from the event itself, then from what was inferred
    (tool error, retry, rephrasing). A failed attempt of a model counts as an outcome of that model with success 0.
    Answers from the cache are left out: no model gave them."""
    selection = selection or Selection()
    judged = _judged(store, selection)
    seen: set[tuple[str, str]] = set()
    kinds = Selection(("attempt", "outcome"), selection.after_seq, selection.since_s, selection.until_s)
    for _, event in store.read(kinds):
        outcome = _outcome(event, judged)
        if outcome is None or (outcome.query_id, outcome.model) in seen:
            continue
        seen.add((outcome.query_id, outcome.model))
        yield outcome


def _outcome(event: object, judged: Judged) -> Outcome | None:
    if isinstance(event, OutcomeEvent):
        return None if event.cache_hit else outcome_of(event, success_of(event, judged))
    if isinstance(event, AttemptEvent) and not event.ok:
        return Outcome(event.decision_id, event.model, 0.0, event.latency_s, error=event.error or "failed")
    return None


def _judged(store: EventStore, selection: Selection) -> Judged:
    judged: dict[str, tuple[bool, float]] = {}
    for _, event in store.read(Selection(("feedback",), selection.after_seq, selection.since_s)):
        if isinstance(event, FeedbackEvent):
            note_feedback(judged, event)
    return judged


def export_outcomes(store: EventStore, path: Path, selection: Selection | None = None) -> int:
    """Write outcomes as JSON Lines; how many there were. Raises `StoreError` where the store cannot be read."""
    rows = [outcome_row(outcome) for outcome in outcomes(store, selection)]
    write_rows(path, rows)
    return len(rows)


def export_queries(store: EventStore, path: Path) -> int:
    """Write the queries whose (redacted) text was kept, unlabelled; how many there were."""
    rows: list[dict[str, Any]] = [
        {"id": decision_id, "text": text, "context": None, "label": None} for decision_id, text in store.texts()
    ]
    write_rows(path, rows)
    return len(rows)


def export_events(store: EventStore, path: Path, selection: Selection | None = None) -> int:
    """Write the events themselves as JSON Lines; how many there were."""
    rows = [{"seq": seq, **as_dict(event)} for seq, event in store.read(selection or Selection())]
    write_rows(path, json.loads(json.dumps(rows, default=str)))
    return len(rows)
