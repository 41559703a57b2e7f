"""Combine feedback and outcomes into one success value per decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from router_ml.events.event import FeedbackEvent, OutcomeEvent

RIGHT = 0.5  # a success of at least this counts as right

Judged: TypeAlias = Mapping[str, tuple[bool, float]]  # by decision id: explicit feedback?, score


def note_feedback(judged: dict[str, tuple[bool, float]], event: FeedbackEvent) -> None:
    """Keep what counts: a person's word over an inferred one, and the later over the earlier."""
    known = judged.get(event.decision_id)
    if known is None or event.explicit or not known[0]:
        judged[event.decision_id] = (event.explicit, event.score)


def success_of(outcome: OutcomeEvent, judged: Judged) -> float | None:
    """The success that counts: a person's word, else the event's own, else what was inferred; None if unknown."""
    explicit, score = judged.get(outcome.decision_id, (False, None))
    if explicit or outcome.success is None:
        return score
    return outcome.success
