"""What there is to learn from: decisions of the event store joined with attempts, outcomes, feedback and features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.bundles.format import Bundle
from router_ml.context import parse_context
from router_ml.decide.features.extractor import TABLE_NAMES, Extractor, Features
from router_ml.engines.engine import Engine
from router_ml.errors import InputError
from router_ml.events.event import DecisionEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.export import bandit_rows, outcomes
from router_ml.events.features import KeptFeatures, encoder_key, unpack
from router_ml.events.judgement import counts
from router_ml.events.store import EventFilter, EventStore
from router_ml.jsonl import outcome_row, read_outcomes, read_queries
from router_ml.types import Outcome, Query
from training.embeddings import CachedEmbedder
from training.kept_features import stacked
from training.learning.policy import LearnPolicy
from training.splits import unit_interval


@dataclass(frozen=True)
class Part:
    """Queries with their outcomes; `features` (n, ...) are theirs, row by row."""

    queries: tuple[Query, ...]
    outcomes: tuple[Outcome, ...]
    features: Features

    @property
    def judged(self) -> int:
        """Outcomes whose success is known."""
        return sum(outcome.success is not None for outcome in self.outcomes)


@dataclass(frozen=True)
class LearningRows:
    """The rows of one window of events."""

    train: Part
    held_out: Part  # for the gate
    logged: tuple[Mapping[str, Any], ...] = field(repr=False)  # bandit rows of the held-out decisions, in order
    new_judged: int  # judged since the watermark
    without_features: int  # judged, but neither text nor features of this encoder are there
    until_seq: int
    from_s: float = 0.0
    until_s: float = 0.0

    @property
    def sha256(self) -> str:
        """Return a digest of all outcomes that are learned from."""
        lines = (json.dumps(outcome_row(outcome), sort_keys=True) for outcome in self.train.outcomes)
        return hashlib.sha256("\n".join(lines).encode("utf-8", "replace")).hexdigest()


def collect(
    store: EventStore, bundle: Bundle, policy: LearnPolicy, after_seq: int, engine: Engine | None = None
) -> LearningRows:
    """Return what can be learned now, all of it: `after_seq` decides only what counts as new.

    `engine` computes the vectors of kept texts; None: threads of this process.

    Whole sessions go to the fit or to the gate, by the hash of their unit, and never change sides. Raises `StoreError`,
    and `InputError` for the policy's own files."""
    until_seq = store.last_seq()
    units, new = _units(store, after_seq)
    known = [outcome for outcome in outcomes(store) if outcome.query_id in units]
    judged = {outcome.query_id for outcome in known if outcome.success is not None}
    held = {key for key, one in units.items() if unit_interval(one.unit or key, "gate") < policy.gate_share}
    wanted = set()
    for side in (held, judged - held):  # the gate reads answers that nobody judged, too
        wanted |= set(sorted(side, key=lambda key: units[key].at_s)[-policy.max_rows :])
    features = _features(store, bundle, wanted, engine)
    rows = [outcome for outcome in known if outcome.query_id in features]
    order = [key for key in units if key in features]
    logged = {row["decision_id"]: row for row in bandit_rows(store) if row["decision_id"] in held}
    train = _part([key for key in order if key not in held], rows, units, features)
    times = [units[key].at_s for key in order]
    return LearningRows(
        _with_files(train, policy, bundle, engine),
        _part([key for key in order if key in logged], rows, units, features),
        tuple(logged[key] for key in order if key in logged),
        len(new & judged & features.keys()),
        len((judged & wanted) - features.keys()),
        until_seq,
        min(times, default=0.0),
        max(times, default=0.0),
    )


def _units(store: EventStore, after_seq: int) -> tuple[dict[str, DecisionEvent], set[str]]:
    """Return served decisions in their order, and the ids of those that were judged after a place in the store."""
    decisions: dict[str, DecisionEvent] = {}
    new: set[str] = set()
    for seq, event in store.read(EventFilter(("decision", "outcome", "feedback"))):
        if isinstance(event, DecisionEvent):
            if not event.shadow:
                decisions[event.decision_id] = replace(event, candidates=(), excluded={})
        elif seq > after_seq and (
            (isinstance(event, FeedbackEvent) and counts(event.kind))
            or (isinstance(event, OutcomeEvent) and event.success is not None and not event.cache_hit)
        ):
            new.add(event.decision_id)
    return decisions, new


def _features(store: EventStore, bundle: Bundle, wanted: set[str], engine: Engine | None) -> dict[str, KeptFeatures]:
    """Return the features of decisions, kept ones or read anew from kept texts."""
    key = encoder_key(bundle.manifest, TABLE_NAMES)
    found = {}
    for stored in store.features():
        if stored.encoder == key and stored.decision_id in wanted:
            found[stored.decision_id] = unpack(stored.packed, key)
    texts = [one for one in store.texts() if one.decision_id in wanted and one.decision_id not in found]
    if texts:
        extractor = Extractor(CachedEmbedder(bundle.path, engine=engine))
        read = extractor.extract([one.text for one in texts], [parse_context(one.context) for one in texts])
        for i, one in enumerate(texts):
            found[one.decision_id] = KeptFeatures(key, read.embedding[i], read.table[i])
    return found


def _part(
    keys: list[str], rows: list[Outcome], units: Mapping[str, DecisionEvent], features: Mapping[str, KeptFeatures]
) -> Part:
    queries = tuple(Query(key, "", group=units[key].unit) for key in keys)
    known = set(keys)
    kept = tuple(outcome for outcome in rows if outcome.query_id in known)
    return Part(queries, kept, stacked(features[key] for key in keys))


def _with_files(part: Part, policy: LearnPolicy, bundle: Bundle, engine: Engine | None) -> Part:
    """Return the part with the measured rows of the policy's files before it."""
    if policy.queries is None or policy.outcomes is None:
        return part
    measured = read_outcomes(policy.outcomes)
    known = {outcome.query_id for outcome in measured}
    queries = tuple(query for query in read_queries(policy.queries) if query.id in known)
    if shared := {query.id for query in queries} & {query.id for query in part.queries}:
        raise InputError(f"{policy.queries}: the id {min(shared)!r} is that of a decision, too; rename it")
    extractor = Extractor(CachedEmbedder(bundle.path, engine=engine))
    read = extractor.extract([q.text for q in queries], [q.context for q in queries])
    stacked_rows = (read, part.features) if part.queries else (read,)
    joined = Features(*(np.concatenate(arrays) for arrays in zip(*stacked_rows, strict=True)))
    return Part((*queries, *part.queries), (*measured, *part.outcomes), joined)


def encoder_note(bundle: Path, rows: LearningRows) -> str:
    """Return why judged answers could not be used, or ""."""
    if not rows.without_features:
        return ""
    return (
        f"{rows.without_features} judged answers have neither text nor features of the encoder in {bundle.name}: "
        "set ROUTER_ML_KEEP=features (or text) where the router runs"
    )
