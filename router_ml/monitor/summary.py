"""Figures of a window of requests, the same whether they come from memory or from the event store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from router_ml.arm import arm_key
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent
from router_ml.events.judgement import RIGHT, Judgement, note_feedback, success_of
from router_ml.types import Candidate

_BETTER = 0.05  # a difference of p_success that would have mattered
_HALF = 0.5  # a model that takes at most this share of the time is clearly faster


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one group of requests. None if nothing is known."""

    requests: int
    answered_share: float | None  # an answer came back
    success_rate: float | None  # mean success of judged requests, failed calls included
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
    over_routing_rate: float | None  # right, and a model of half the latency was as likely to be (of judged ones)
    under_routing_rate: float | None  # wrong, and another model was likelier to be right (of judged ones)
    saved_s: float | None  # by answers, against always using the accurate model, by its expected latency
    saved_share: float | None
    cost_usd: float | None
    saved_usd: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures of one window: of everything, per model and per variant."""

    since_s: float  # Unix time, included
    until_s: float  # Unix time, not included
    total: Summary
    by_model: Mapping[str, Summary]
    by_variant: Mapping[str, Summary]
    by_arm: Mapping[str, Summary] = field(default_factory=dict)  # of models that can be asked in several ways

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "since_s": self.since_s,
            "until_s": self.until_s,
            "total": self.total.as_dict(),
            "by_model": {name: s.as_dict() for name, s in self.by_model.items()},
            "by_variant": {name: s.as_dict() for name, s in self.by_variant.items()},
            "by_arm": {name: s.as_dict() for name, s in self.by_arm.items()},
        }


class RequestRecord(NamedTuple):
    """What the figures need of one request: no text, no context, no candidates."""

    outcome: OutcomeEvent
    over_if_right: bool  # a model of half the latency was as likely to be right
    under_if_wrong: bool  # another model was likelier to be right


def request_record(outcome: OutcomeEvent, candidates: Sequence[Candidate] = ()) -> RequestRecord:
    """Return the record of an outcome, with whether another of its candidates should have been chosen, according
    to the predictions at that time."""
    if not candidates or outcome.cache_hit:
        return RequestRecord(outcome, False, False)
    own = [c for c in candidates if c.model == outcome.model]
    chosen = next((c for c in own if c.think == outcome.think), own[0] if own else candidates[0])
    others = [c for c in candidates if c is not chosen and c.admissible]
    over = any(
        c.p_success >= chosen.p_success - _BETTER and c.latency_s.p50 <= chosen.latency_s.p50 * _HALF for c in others
    )
    under = any(c.p_success >= chosen.p_success + _BETTER for c in others)
    return RequestRecord(outcome, over, under)


def summarise(events: Iterable[Event], since_s: float, until_s: float) -> Snapshot:
    """Return the figures of the outcomes in a window; decisions and feedback may lie outside of it.

    Clarifying questions are left out, since no model generated them."""
    outcomes: list[OutcomeEvent] = []
    candidates: dict[str, Sequence[Candidate]] = {}
    judged: dict[str, Judgement] = {}
    for event in events:
        if isinstance(event, OutcomeEvent):
            if not event.clarified:
                outcomes.append(event)
        elif isinstance(event, DecisionEvent):
            if not event.shadow:
                candidates[event.decision_id] = event.candidates
        elif isinstance(event, FeedbackEvent):
            note_feedback(judged, event)
    requests = [request_record(o, candidates.get(o.decision_id, ())) for o in outcomes]
    return summarise_requests(requests, judged, since_s, until_s)


def summarise_requests(
    requests: Iterable[RequestRecord], judged: Mapping[str, Judgement], since_s: float, until_s: float
) -> Snapshot:
    """Return the figures of the requests in a window, as `judged` by feedback."""
    chosen = [request for request in requests if since_s <= request.outcome.at_s < until_s]

    def grouped(key: Callable[[OutcomeEvent], str | None]) -> dict[str, Summary]:
        groups: dict[str, list[RequestRecord]] = {}
        for request in chosen:
            name = key(request.outcome)
            if name:
                groups.setdefault(name, []).append(request)
        return {name: _summary(group, judged) for name, group in sorted(groups.items())}

    total, by_model, by_variant = _summary(chosen, judged), grouped(lambda o: o.model), grouped(lambda o: o.variant)
    return Snapshot(since_s, until_s, total, by_model, by_variant, grouped(_arm))


def _arm(outcome: OutcomeEvent) -> str | None:
    return None if outcome.think is None else arm_key(outcome.model, outcome.think)


def _summary(requests: Sequence[RequestRecord], judged: Mapping[str, Judgement]) -> Summary:
    group = [request.outcome for request in requests]
    successes = [(r, s) for r in requests if (s := success_of(r.outcome, judged)) is not None]
    p50, p90, p95 = _quantiles([o.latency_s for o in group if o.latency_s is not None], (0.5, 0.9, 0.95))
    firsts = [o.first_token_s for o in group if o.first_token_s is not None]
    generating_s = sum(o.eval_s for o in group if o.eval_s and o.output_tokens)
    generated = sum(o.output_tokens or 0 for o in group if o.eval_s and o.output_tokens)
    answered = [o for o in group if o.ok]  # a request that failed at once has saved nothing
    paired = [(o.latency_s, o.accurate_latency_s) for o in answered if o.latency_s is not None and o.accurate_latency_s]
    saved_s = sum(accurate - took for took, accurate in paired)
    costs = [o.cost_usd for o in group if o.cost_usd is not None]
    cost_pairs = [(o.cost_usd, o.accurate_cost_usd) for o in answered if o.cost_usd is not None and o.accurate_cost_usd]
    return Summary(
        requests=len(group),
        answered_share=_mean([o.ok for o in group]),
        success_rate=_mean([success for _, success in successes]),
        judged=len(successes),
        latency_p50_s=p50,
        latency_p90_s=p90,
        latency_p95_s=p95,
        first_token_p50_s=_quantiles(firsts, (0.5,))[0],
        output_tokens_per_s=generated / generating_s if generating_s else None,
        prompt_tokens=sum(o.prompt_tokens or 0 for o in group),
        output_tokens=sum(o.output_tokens or 0 for o in group),
        cache_hit_rate=_mean([o.cache_hit for o in group]),
        fallback_rate=_mean([o.fallback for o in group]),
        over_routing_rate=_mean([success >= RIGHT and r.over_if_right for r, success in successes]),
        under_routing_rate=_mean([success < RIGHT and r.under_if_wrong for r, success in successes]),
        saved_s=saved_s if paired else None,
        saved_share=saved_s / sum(accurate for _, accurate in paired) if paired else None,
        cost_usd=sum(costs) if costs else None,
        saved_usd=sum(accurate - spent for spent, accurate in cost_pairs if accurate) if cost_pairs else None,
    )


def _quantiles(values: Sequence[float], levels: tuple[float, ...]) -> tuple[float | None, ...]:
    if not values:
        return tuple(None for _ in levels)
    return tuple(float(q) for q in np.quantile(values, levels))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
