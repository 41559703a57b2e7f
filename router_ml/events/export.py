"""Exports of the event store to files: training data, rows for off-policy evaluation, and the events themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from router_ml.arm import arm_key
from router_ml.events.event import (
    AttemptEvent,
    DecisionEvent,
    FeedbackEvent,
    OutcomeEvent,
    as_dict,
    json_value,
    outcome_of,
    unserved_outcome,
)
from router_ml.events.judgement import Judged, Judgement, counts, judge_agreement, note_feedback, source_of, success_of
from router_ml.events.store import EventFilter, EventStore
from router_ml.jsonl import outcome_row, write_rows
from router_ml.types import Outcome

# Kinds of failed attempts caused by the machine or the request, not by the model: they are not training data.
_NOT_THE_MODEL = frozenset(
    ("refused", "connection", "cold_timeout", "cut_short", "busy", "missing", "rejected", "invalid", "wrong_model",
     "shed", "open", "absent", "cancelled")
)  # fmt: skip


def outcomes(store: EventStore, selection: EventFilter | None = None) -> Iterator[Outcome]:
    """Yield one outcome per decision and arm (model and `think`) that was called, oldest first.

    Success is the last explicit feedback, else the outcome's own, else what was inferred; `weight` and `judged_by` say
    how much it weighs and where it comes from (see `judgement`). An attempt that failed by the
    model's own fault (it timed out, or returned nothing usable) counts as an outcome of that model with success 0.
    Answers from the cache and clarifying questions are left out, since no model generated them. Where a judged request
    was escalated, the answer that was not served counts with its probability of being right: else a cascade would leave
    a model only its likeliest answers to be judged by."""
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
            outcome = None if event.cache_hit or event.clarified else judged_outcome(event, judged)
        else:
            continue  # a request without an answer is represented by its attempts
        if outcome is None:
            continue
        unserved = unserved_outcome(event) if isinstance(event, OutcomeEvent) and _is_judged(outcome) else None
        for one in (outcome, unserved):
            key = (one.query_id, arm_key(one.model, one.think)) if one is not None else ("", "")
            if one is not None and key not in seen:
                seen.add(key)
                yield one


def judged_outcome(event: OutcomeEvent, judged: Judged) -> Outcome:
    """Return the training row of an outcome: success, weight and source of the judgement that counts."""
    judgement = judged.get(event.decision_id)
    if judgement is None or (event.success is not None and not judgement.explicit):
        weight = 1.0 if event.invalid is None else source_of(event.invalid).weight
        return outcome_of(event, event.success, weight, event.invalid)
    return outcome_of(event, judgement.score, judgement.weight, judgement.kind)


def _is_judged(outcome: Outcome) -> bool:
    """Return whether an outcome says what a right answer would have said, too."""
    return outcome.success is not None and (outcome.judged_by is None or counts(outcome.judged_by))


def _failed_attempt(event: AttemptEvent) -> Outcome | None:
    if event.ok or event.error in _NOT_THE_MODEL:
        return None
    error = event.error or "failed"
    return Outcome(event.decision_id, event.model, 0.0, event.latency_s, error=error, think=event.think)


def _judged(store: EventStore, selection: EventFilter) -> Judged:
    judged: dict[str, Judgement] = {}
    read = store.read(EventFilter(("feedback",), selection.after_seq, selection.since_s))
    feedback = [event for _, event in read if isinstance(event, FeedbackEvent)]
    for event in feedback:
        note_feedback(judged, event)
    weight = judge_agreement(feedback).weight
    return {key: one._replace(weight=weight) if one.kind == "judge" else one for key, one in judged.items()}


def bandit_rows(store: EventStore, selection: EventFilter | None = None) -> Iterator[dict[str, Any]]:
    """Yield one row per served decision, oldest first, for off-policy evaluation.

    `propensity` is the probability of `chosen` among the admissible candidates. `reward` is the success that counts
    (see `outcomes`), and null if the answer was not judged. `judged_by` says where it comes from: "explicit" or
    "inferred" feedback, or the "outcome" itself, such as a request without an answer. A weak sign that an answer was
    wrong is named in `judgement` and is no reward, since nothing would be sent for a right answer."""
    selection = selection or EventFilter()
    judged = _judged(store, selection)
    later = EventFilter(("outcome",), selection.after_seq, selection.since_s)  # may come after the window's end
    done = {e.decision_id: e for _, e in store.read(later) if isinstance(e, OutcomeEvent)}
    for _, event in store.read(replace(selection, kinds=("decision",))):
        if isinstance(event, DecisionEvent) and not event.shadow:
            yield _bandit_row(event, done.get(event.decision_id), judged)


def _bandit_row(decision: DecisionEvent, outcome: OutcomeEvent | None, judged: Judged) -> dict[str, Any]:
    feedback = judged.get(decision.decision_id)
    reward = outcome and success_of(outcome, judged)
    if outcome is None and feedback is not None and counts(feedback.kind):
        reward = feedback.score
    source = None if reward is None else "outcome"
    weight = 1.0
    if source and feedback is not None and (feedback.explicit or outcome is None or outcome.success is None):
        source, weight = "explicit" if feedback.explicit else "inferred", feedback.weight
    row = as_dict(decision)
    return {
        **{key: row.get(key) for key in _BANDIT_KEYS},
        "candidates": [_finite(candidate) for candidate in row.get("candidates", ())],
        "chosen": decision.model,
        "think": decision.candidates[0].think if decision.candidates else None,
        "answered": None if outcome is None else outcome.ok,
        "answered_by": outcome.model if outcome is not None and outcome.ok else None,
        "answered_think": outcome.think if outcome is not None and outcome.ok else None,
        "fallback": outcome is not None and outcome.fallback,
        "escalated": outcome is not None and outcome.escalated_from is not None,
        "cached": outcome is not None and outcome.cache_hit,
        "latency_s": outcome and outcome.latency_s,
        "cost_usd": outcome and outcome.cost_usd,
        "reward": reward,
        "judged": source is not None and (source != "outcome" or bool(outcome and outcome.ok)),
        "judged_by": source,
        "judgement": feedback.kind if feedback else None,
        "weight": weight if source else None,
    }


_BANDIT_KEYS = (
    "decision_id", "at_s", "unit", "query_key", "complexity", "complexity_probabilities", "novelty", "action",
    "excluded", "propensity", "policy", "policy_parameters", "bundle", "experiment", "variant", "pinned", "degraded",
    "prompt_tokens",
)  # fmt: skip


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def export_outcomes(store: EventStore, path: Path, selection: EventFilter | None = None) -> int:
    """Write outcomes as JSON Lines; return how many. Raises `StoreError` if the store cannot be read."""
    return _export(path, (outcome_row(outcome) for outcome in outcomes(store, selection)))


def export_bandit(store: EventStore, path: Path, selection: EventFilter | None = None) -> int:
    """Write one row per decision (see `bandit_rows`) as JSON Lines; return how many."""
    return _export(path, bandit_rows(store, selection))


def export_queries(store: EventStore, path: Path) -> int:
    """Write the queries whose (redacted) text was stored, with their contexts and unlabelled; return how many."""
    return _export(
        path,
        (
            {"id": stored.decision_id, "text": stored.text, "context": stored.context, "label": None}
            for stored in store.texts()
        ),
    )


def export_features(store: EventStore, path: Path) -> int:
    """Write the features that were stored instead of text (see `features.pack`) as JSON Lines; return how many."""
    return _export(
        path, ({"id": one.decision_id, "encoder": one.encoder, "packed": one.packed} for one in store.features())
    )


def export_events(store: EventStore, path: Path, selection: EventFilter | None = None) -> int:
    """Write the events themselves as JSON Lines; return how many."""
    return _export(path, ({"seq": seq, **as_dict(event)} for seq, event in store.read(selection or EventFilter())))


def _export(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0

    def plain() -> Iterator[dict[str, Any]]:
        nonlocal count
        for row in rows:
            count += 1
            text = json.dumps(row, ensure_ascii=False, default=json_value)
            yield json.loads(text.encode("utf-8", "replace"))  # an unpaired surrogate fits in no file

    write_rows(path, plain())
    return count
