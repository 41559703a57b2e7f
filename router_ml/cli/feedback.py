"""router-ml feedback: say what an answer was worth."""

from __future__ import annotations

import argparse

from router_ml.cli.events import event_store
from router_ml.config import load_settings
from router_ml.errors import InputError
from router_ml.telemetry.event import FeedbackEvent, FeedbackKind


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("feedback", help="record what an answer was worth: router-ml feedback ID up|down|0..1")
    verb.add_argument("decision_id", help="the decision's id, as `route --json` and the gateway's answers give it")
    verb.add_argument("verdict", help="up, down, or a score between 0 and 1")
    verb.add_argument("--comment", help="why; stored only where text is enabled")
    verb.set_defaults(func=_feedback)


def _feedback(options: argparse.Namespace) -> int:
    score = _score(options.verdict)
    kind: FeedbackKind = "thumb" if options.verdict in ("up", "down") else "score"
    store = event_store(load_settings(), read_only=False)
    try:
        store.append([FeedbackEvent(options.decision_id, kind, score, options.comment)])
    finally:
        store.close()
    print(f"recorded {score:g} for {options.decision_id}")
    return 0


def _score(verdict: str) -> float:
    try:
        score = {"up": 1.0, "down": 0.0}.get(verdict) if verdict in ("up", "down") else float(verdict)
    except ValueError:
        score = None
    if score is None or not 0 <= score <= 1:
        raise InputError(f"a verdict is up, down or a number between 0 and 1, found {verdict!r}")
    return score
