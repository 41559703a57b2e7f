"""Feedback and outcomes combined into one success value per decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from router_ml.events.event import FeedbackEvent, OutcomeEvent

RIGHT = 0.5  # a success of at least this counts as right

Judgement: TypeAlias = tuple[bool, float]  # whether it is explicit, and the score
Judged: TypeAlias = Mapping[str, Judgement]  # by decision id


def judgement_of(event: FeedbackEvent, known: Judgement | None = None) -> Judgement:
    """Return the judgement that counts: explicit feedback before inferred, and later before earlier."""
    return known if known is not None and known[0] and not event.explicit else (event.explicit, event.score)


def note_feedback(judged: dict[str, Judgement], event: FeedbackEvent) -> None:
    """Add feedback under its decision."""
    judged[event.decision_id] = judgement_of(event, judged.get(event.decision_id))


def success_of(outcome: OutcomeEvent, judged: Judged) -> float | None:
    """Return the success that counts: explicit feedback, else the outcome's own, else inferred; None if unknown."""
    explicit, score = judged.get(outcome.decision_id, (False, None))
    if explicit or outcome.success is None:
        return score
    return outcome.success
