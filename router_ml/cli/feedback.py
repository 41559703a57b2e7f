"""router-ml feedback: record feedback on an answer."""

from __future__ import annotations

import argparse
import sys

from router_ml.cli.events import event_store
from router_ml.errors import InputError
from router_ml.events.event import feedback_event
from router_ml.events.store import EventFilter, EventStore
from router_ml.settings import load_settings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "feedback",
        help="record feedback on an answer: router-ml feedback ID up|down|0..1",
        description="Records feedback on an answer. Exit status 1 where no such decision was recorded (yet): the "
        "feedback is stored, and counts once its decision is there.",
    )
    verb.add_argument(
        "decision_id",
        help="answer.decision.decision_id of a gateway's answer, or state['routing']['decision_id'] of a coordinator",
    )
    verb.add_argument("verdict", help="up, down, or a score between 0 and 1")
    verb.add_argument("--comment", help="why; stored only where text is enabled")
    verb.set_defaults(func=_feedback)


def _feedback(options: argparse.Namespace) -> int:
    score = _score(options.verdict)
    feedback = feedback_event(
        options.decision_id, score, options.comment, "thumb" if options.verdict in ("up", "down") else "score"
    )
    store = event_store(load_settings(), read_only=False)
    try:
        store.append([feedback])
        known = _known(store, options.decision_id)
    finally:
        store.close()
    print(f"recorded {score:g} for {options.decision_id}")
    if known:
        return 0
    print(
        f"router-ml: no decision {options.decision_id} is in the event store; check the id, unless it was made in the "
        "last seconds (only the gateway and a built coordinator node record decisions)",
        file=sys.stderr,
    )
    return 1


def _known(store: EventStore, decision_id: str) -> bool:
    """Return whether a decision was recorded; an answer from the cache has its outcome only."""
    return any(store.read(EventFilter(("decision", "outcome"), decision_id=decision_id), limit=1))


def _score(verdict: str) -> float:
    try:
        score = {"up": 1.0, "down": 0.0}.get(verdict) if verdict in ("up", "down") else float(verdict)
    except ValueError:
        score = None
    if score is None or not 0 <= score <= 1:
        raise InputError(f"a verdict is up, down or a number between 0 and 1, found {verdict!r}")
    return score
