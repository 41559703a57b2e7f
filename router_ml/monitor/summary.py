"""What a window of events amounts to: the same figures whether the events come from memory or from the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent
from router_ml.events.judgement import RIGHT, Judged, note_feedback, success_of

_BETTER = 0.05  # a difference of p_success that would have mattered
_HALF = 0.5  # a model that takes at most this share of the time is clearly faster


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one group of requests. None where nothing is known."""

    requests: int
    answered_share: float | None  # an answer came back
    success_rate: float | None  # mean success where somebody knows it, failed calls included
    judged: int  # requests that rate rests on
    latency_p50_s: float | None  # of all requests, cached ones included; linear interpolation
    latency_p90_s: float | None
    latency_p95_s: float | None
    first_token_p50_s: float | None
    output_tokens_per_s: float | None  # all output tokens over all generating seconds
    prompt_tokens: int
    output_tokens: int
    cache_hit_rate: float | None
    fallback_rate: float | None
    escalation_rate: float | None
    over_routing_rate: float | None  # right, and a model of half the latency was as likely to be (of judged ones)
    under_routing_rate: float | None  # wrong, and another model was likelier to be right (of judged ones)
    saved_s: float | None  # by answers, against always using the accurate model, by its expected latency
    saved_share: float | None
    cost_usd: float | None
    saved_usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures of one window: of everything, per model, per variant, and per model within a variant."""

    since_s: float  # Unix time, included
    until_s: float  # Unix time, not included
    total: Summary
    by_model: Mapping[str, Summary]
    by_variant: Mapping[str, Summary]
    by_variant_model: Mapping[tuple[str, str], Summary]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the last grouping has keys `variant/model`."""
        return {
            "since_s": self.since_s,
            "until_s": self.until_s,
            "total": self.total.as_dict(),
            "by_model": {name: s.as_dict() for name, s in self.by_model.items()},
            "by_variant": {name: s.as_dict() for name, s in self.by_variant.items()},
            "by_variant_model": {f"{v}/{m}": s.as_dict() for (v, m), s in self.by_variant_model.items()},
        }


def summarise(events: Iterable[Event], since_s: float, until_s: float) -> Snapshot:
    """The figures of the outcomes in a window; decisions and feedback may lie outside of it. Questions back to the user
    are no answers of any model, and are left out."""
    outcomes: list[OutcomeEvent] = []
    decisions: dict[str, DecisionEvent] = {}
    judged: dict[str, tuple[bool, float]] = {}
    for event in events:
        if isinstance(event, OutcomeEvent):
            if since_s <= event.at_s < until_s and not event.clarified:
                outcomes.append(event)
        elif isinstance(event, DecisionEvent):
            if not event.shadow:
                decisions[event.decision_id] = event
        elif isinstance(event, FeedbackEvent):
            note_feedback(judged, event)

    def grouped(key: Callable[[OutcomeEvent], Any]) -> dict[Any, Summary]:
        groups: dict[Any, list[OutcomeEvent]] = {}
        for outcome in outcomes:
            groups.setdefault(key(outcome), []).append(outcome)
        return {name: _summary(group, decisions, judged) for name, group in sorted(groups.items())}

    in_variants = grouped(lambda o: (o.variant or "", o.model))
    variants = grouped(lambda o: o.variant or "")
    return Snapshot(
        since_s=since_s,
        until_s=until_s,
        total=_summary(outcomes, decisions, judged),
        by_model=grouped(lambda o: o.model),
        by_variant={name: s for name, s in variants.items() if name},
        by_variant_model={key: s for key, s in in_variants.items() if key[0]},
    )


def _summary(group: list[OutcomeEvent], decisions: Mapping[str, DecisionEvent], judged: Judged) -> Summary:
    successes = [(o, s) for o in group if (s := success_of(o, judged)) is not None]
    latencies = [o.latency_s for o in group if o.latency_s is not None]
    firsts = [o.first_token_s for o in group if o.first_token_s is not None]
    p50, p90, p95 = _quantiles(latencies, (0.5, 0.9, 0.95))
    generating_s = sum(o.eval_s for o in group if o.eval_s and o.output_tokens)
    generated = sum(o.output_tokens or 0 for o in group if o.eval_s and o.output_tokens)
    answered = [o for o in group if o.ok]  # a request that failed at once has saved nothing
    paired = [(o.latency_s, o.accurate_latency_s) for o in answered if o.latency_s is not None and o.accurate_latency_s]
    saved_s = sum(accurate - took for took, accurate in paired)
    costs = [o.cost_usd for o in group if o.cost_usd is not None]
    cost_pairs = [(o.cost_usd, o.accurate_cost_usd) for o in answered if o.cost_usd is not None and o.accurate_cost_usd]
    misrouted = [_misrouting(o, success, decisions.get(o.decision_id)) for o, success in successes]
    return Summary(
        requests=len(group),
        answered_share=_share([o.ok for o in group]),
        success_rate=_mean([success for _, success in successes]),
        judged=len(successes),
        latency_p50_s=p50,
        latency_p90_s=p90,
        latency_p95_s=p95,
        first_token_p50_s=_quantiles(firsts, (0.5,))[0],
        output_tokens_per_s=generated / generating_s if generating_s else None,
        prompt_tokens=sum(o.prompt_tokens or 0 for o in group),
        output_tokens=sum(o.output_tokens or 0 for o in group),
        cache_hit_rate=_share([o.cache_hit for o in group]),
        fallback_rate=_share([o.fallback for o in group]),
        escalation_rate=_share([o.escalated for o in group]),
        over_routing_rate=_share([m == "over" for m in misrouted]),
        under_routing_rate=_share([m == "under" for m in misrouted]),
        saved_s=saved_s if paired else None,
        saved_share=saved_s / sum(accurate for _, accurate in paired) if paired else None,
        cost_usd=sum(costs) if costs else None,
        saved_usd=sum(accurate - spent for spent, accurate in cost_pairs if accurate) if cost_pairs else None,
    )


def _misrouting(outcome: OutcomeEvent, success: float, decision: DecisionEvent | None) -> str | None:
    """Whether another candidate should have been chosen, as far as the predictions of the time can tell."""
    if decision is None or not decision.candidates or outcome.cache_hit:
        return None
    chosen = next((c for c in decision.candidates if c.model == outcome.model), decision.candidates[0])
    others = [c for c in decision.candidates if c.model != chosen.model and c.admissible]
    if success < RIGHT:
        return "under" if any(c.p_success >= chosen.p_success + _BETTER for c in others) else None
    faster = [c for c in others if c.latency_s.p50 <= chosen.latency_s.p50 * _HALF]
    return "over" if any(c.p_success >= chosen.p_success - _BETTER for c in faster) else None


def _quantiles(values: list[float], levels: tuple[float, ...]) -> tuple[float | None, ...]:
    if not values:
        return tuple(None for _ in levels)
    return tuple(float(q) for q in np.quantile(values, levels))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
