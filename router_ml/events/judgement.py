"""Judgement: what says that an answer was right or wrong, how much each source weighs, and which one counts.

Sources differ in two ways. *Weight* is how far a source moves the success of an answer from what is expected of its
model towards the source's score: 1 for a person, less for a sign. A *one-sided* source only ever says "wrong" (nobody
sends a signal for an answer that was not asked again): its share is no rate of wrong answers, so weak one-sided signs
teach the fits and are counted apart, but are left out of success rates and experiments.

Explicit feedback outranks every inference, a heavier source a lighter one, and later feedback earlier of equal weight.
An answer that nobody judged is not right: it is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from router_ml.events.event import EXPLICIT_KINDS, UNSERVED, FeedbackEvent, OutcomeEvent

RIGHT = 0.5  # a success of at least this counts as right
CERTAIN = 0.8  # weight from which a one-sided source is a fact: it counts in success rates
MIN_COMPARED = 30  # answers judged by a person and by the judge before their agreement replaces the default weight


class Source(NamedTuple):
    """A kind of feedback: how much it weighs, whether it can say "right", and what it is."""

    weight: float
    two_sided: bool
    meaning: str


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "thumb": Source(1.0, True, "a person's thumb"),
        "score": Source(1.0, True, "a person's score"),
        "judge": Source(0.5, True, "a judge model, asked blind on a sample"),
        # In full: else only the answers that a cascade kept would count for a model, and they are its likeliest ones.
        UNSERVED: Source(1.0, True, "estimated from the log-probabilities of an answer that was not served"),
        "tool_invalid": Source(0.9, False, "a call of a tool that was not offered, or without what it requires"),
        "format_invalid": Source(0.9, False, "not the JSON that was asked for"),
        "tool_failed": Source(0.5, False, "the called tool answered with an error"),
        "retry": Source(0.5, False, "the same query again, shortly after the answer"),
        "rephrased": Source(0.3, False, "the query again in other words, or corrected"),
        "left": Source(0.2, False, "the user left while the answer was written"),
    }
)
INFERRED = Source(0.5, True, "inferred by an application")  # every other kind


class Judgement(NamedTuple):
    """The judgement of one answer."""

    explicit: bool  # given by a person
    score: float  # 0 wrong .. 1 right
    kind: str = "score"
    weight: float = 1.0


Judged: TypeAlias = Mapping[str, Judgement]  # by decision id


def source_of(kind: str) -> Source:
    """Return what is known of a kind of feedback."""
    return SOURCES.get(kind, INFERRED)


def counts(kind: str) -> bool:
    """Return whether a kind counts in success rates and experiments: it can say "right", too, or is a fact."""
    source = source_of(kind)
    return source.two_sided or source.weight >= CERTAIN


def judgement_of(event: FeedbackEvent, known: Judgement | None = None) -> Judgement:
    """Return the judgement that counts, of feedback and what was known before."""
    new = Judgement(event.explicit, event.score, event.kind, source_of(event.kind).weight)
    if known is not None and (known.explicit, known.weight) > (new.explicit, new.weight):
        return known
    return new


def note_feedback(judged: dict[str, Judgement], event: FeedbackEvent) -> None:
    """Add feedback under its decision."""
    judged[event.decision_id] = judgement_of(event, judged.get(event.decision_id))


def success_of(outcome: OutcomeEvent, judged: Judged) -> float | None:
    """Return the success for rates: explicit feedback, else the outcome's own, else inferred; None if unknown.

    Weak one-sided signs are left out, see `counts`."""
    judgement = judged.get(outcome.decision_id)
    if judgement is None or (not judgement.explicit and (outcome.success is not None or not counts(judgement.kind))):
        return outcome.success
    return judgement.score


class Agreement(NamedTuple):
    """How far a judge model and people agree on the answers that both judged."""

    compared: int
    same: int
    kappa: float  # agreement beyond chance, 1 at most (Cohen 1960); 0 where either always says the same

    @property
    def weight(self) -> float:
        """Return the weight of the judge: kappa once enough was compared, else the default."""
        return min(max(self.kappa, 0.0), 1.0) if self.compared >= MIN_COMPARED else SOURCES["judge"].weight


def judge_agreement(feedback: Iterable[FeedbackEvent]) -> Agreement:
    """Return the agreement of the judge with people; the last word of each counts."""
    people: dict[str, bool] = {}
    judge: dict[str, bool] = {}
    for event in feedback:
        if event.kind in EXPLICIT_KINDS:
            people[event.decision_id] = event.score >= RIGHT
        elif event.kind == "judge":
            judge[event.decision_id] = event.score >= RIGHT
    pairs = Counter((people[key], judge[key]) for key in people.keys() & judge.keys())
    n = pairs.total()
    same = pairs[True, True] + pairs[False, False]
    right = (pairs[True, True] + pairs[True, False]), (pairs[True, True] + pairs[False, True])
    chance = (right[0] * right[1] + (n - right[0]) * (n - right[1])) / (n * n) if n else 1.0
    return Agreement(n, same, (same / n - chance) / (1 - chance) if chance < 1 else 0.0)
