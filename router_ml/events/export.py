"""From the store back to the files training reads: the loop closes here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router_ml.events.event import AttemptEvent, FeedbackEvent, OutcomeEvent, as_dict, outcome_of
from router_ml.events.judgement import Judged, note_feedback, success_of
from router_ml.events.store import EventFilter, EventStore
from router_ml.jsonl import outcome_row, write_rows
from router_ml.types import Outcome

# Kinds of failed attempts that tell of the machine or the request, not of what the model can do: nothing to learn from.
_NOT_THE_MODEL = frozenset(
    ("refused", "connection", "cold_timeout", "cut_short", "busy", "missing", "rejected", "invalid", "wrong_model",
     "shed", "open", "absent", "cancelled")
)  # fmt: skip


def outcomes(store: EventStore, selection: EventFilter | None = None) -> Iterator[Outcome]:
    """One outcome per decision and model that was really called, oldest first.

    Success comes from people first (their last word counts), then from the event itself, then from what was inferred
    (tool error, retry, rephrasing). An attempt that failed by the model's own fault (it timed out, or gave nothing of
    use) counts as an outcome of that model with success 0. Answers from the cache and questions to the user are left
    out: no model gave them."""
    selection = selection or EventFilter()
    judged = _judged(store, selection)
    seen: set[tuple[str, str]] = set()
    attempted: set[str] = set()
    kinds = EventFilter(("attempt", "outcome"), selection.after_seq, selection.since_s, selection.until_s)
    for _, event in store.read(kinds):
        if isinstance(event, AttemptEvent):
            attempted.add(event.decision_id)
            outcome = _failed_attempt(event)
        elif isinstance(event, OutcomeEvent) and (event.ok or event.decision_id not in attempted):
            outcome = None if event.cache_hit or event.clarified else outcome_of(event, success_of(event, judged))
        else:
            continue  # a request without an answer is told by its attempts
        if outcome is not None and (outcome.query_id, outcome.model) not in seen:
            seen.add((outcome.query_id, outcome.model))
            yield outcome


def _failed_attempt(event: AttemptEvent) -> Outcome | None:
    if event.ok or event.error in _NOT_THE_MODEL:
        return None
    return Outcome(event.decision_id, event.model, 0.0, event.latency_s, error=event.error or "failed")


def _judged(store: EventStore, selection: EventFilter) -> Judged:
    judged: dict[str, tuple[bool, float]] = {}
    for _, event in store.read(EventFilter(("feedback",), selection.after_seq, selection.since_s)):
        if isinstance(event, FeedbackEvent):
            note_feedback(judged, event)
    return judged


def export_outcomes(store: EventStore, path: Path, selection: EventFilter | None = None) -> int:
    """Write outcomes as JSON Lines; how many there were. Raises `StoreError` where the store cannot be read."""
    rows = [outcome_row(outcome) for outcome in outcomes(store, selection)]
    write_rows(path, rows)
    return len(rows)


def export_queries(store: EventStore, path: Path) -> int:
    """Write the queries whose (redacted) text was kept, with their contexts and unlabelled; how many there were."""
    rows: list[dict[str, Any]] = [
        {"id": kept.decision_id, "text": kept.text, "context": kept.context, "label": None} for kept in store.texts()
    ]
    write_rows(path, rows)
    return len(rows)


def export_events(store: EventStore, path: Path, selection: EventFilter | None = None) -> int:
    """Write the events themselves as JSON Lines; how many there were."""
    rows = [{"seq": seq, **as_dict(event)} for seq, event in store.read(selection or EventFilter())]
    write_rows(path, json.loads(json.dumps(rows, default=str)))
    return len(rows)
