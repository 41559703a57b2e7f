"""The headers in which every answer says who gave it and why."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from router_ml.arm import think_text
from router_ml.types import Candidate, Decision, Think

_MAX_REASON = 300  # characters
_UNPRINTABLE = re.compile(r"[^ -~]")


def decision_headers(decision: Decision, model: str, think: Think | None = None) -> dict[str, str]:
    """Return the `x-router-ml-*` headers of a decision, the model that answered ("" for a clarifying question), and how
    it was asked."""
    own = [candidate for candidate in decision.ranked if candidate.model == model]
    candidate = next((c for c in own if c.think == think), own[0] if own else None)
    arm = model if think is None else f"{model};think={think_text(think)}"
    found = {
        "model": model,
        "decision-id": decision.decision_id,
        "complexity": decision.complexity,
        "arm": arm,
        "reason": decision.reason,
        **(_predictions(candidate) if candidate else {}),
    }
    return {f"x-router-ml-{name}": header_text(value) for name, value in found.items() if value}


def _predictions(candidate: Candidate) -> dict[str, str]:
    predicted = {"p-success": candidate.p_success, "latency-p50-s": candidate.latency_s.p50}
    return {name: f"{value:.4g}" for name, value in predicted.items() if value == value}


def without_credentials(url: str) -> str:
    """Return a URL without user and password, so that it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def header_text(value: str) -> str:
    """Return a text as a header can carry it: one line of ASCII."""
    return _UNPRINTABLE.sub("?", value[:_MAX_REASON]).strip()
