"""Compare the choices of a challenger in shadow with those that were served, by the predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router_ml.events.event import DecisionEvent, Event
from router_ml.types import Candidate


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of one side, with the means of what was predicted for the chosen models."""

    decisions: int
    models: Mapping[str, float]  # share of each chosen model
    p_success: float | None
    latency_p50_s: float | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Shadow:
    """Both sides of a shadow experiment."""

    served: Choices
    shadowed: Choices

    @property
    def moved_share(self) -> float:
        """Return the least share of requests that would go to another model (total variation of the two mixes)."""
        names = {*self.served.models, *self.shadowed.models}
        return sum(abs(self.served.models.get(n, 0.0) - self.shadowed.models.get(n, 0.0)) for n in names) / 2


def shadow_of(events: Iterable[Event], experiment: str) -> Shadow:
    """Sum up the decisions of a shadow experiment."""
    sides: dict[bool, list[DecisionEvent]] = {False: [], True: []}
    for event in events:
        if isinstance(event, DecisionEvent) and event.experiment == experiment and not event.pinned:
            sides[event.shadow].append(event)
    return Shadow(_choices(sides[False]), _choices(sides[True]))


def _choices(decisions: list[DecisionEvent]) -> Choices:
    n = len(decisions)
    counts = Counter(decision.model for decision in decisions)
    chosen: list[Candidate] = [
        candidate
        for decision in decisions
        if (candidate := next((c for c in decision.candidates if c.model == decision.model), None)) is not None
    ]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return Choices(
        decisions=n,
        models={model: count / n for model, count in counts.most_common()},
        p_success=mean([c.p_success for c in chosen]),
        latency_p50_s=mean([c.latency_s.p50 for c in chosen]),
        cost_usd=mean([c.cost_usd for c in chosen]),
    )
