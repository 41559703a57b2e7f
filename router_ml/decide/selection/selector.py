"""Choose an arm: predictions, limits and the state of the machine in; a ranked chain and a reason out.

The selector sees a flat list of arms, each with its model's name. What a policy allows and what the machine is like
goes by model; what is predicted goes by arm."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from operator import attrgetter
from typing import NamedTuple

from router_ml.arm import EFFORTS, arm_key, arm_phrase, think_text
from router_ml.catalogue import Model
from router_ml.decide.selection.cascade import Cascade
from router_ml.decide.selection.exploration import drawn, propensities, share_after
from router_ml.decide.selection.guarantee import Guarantee
from router_ml.decide.selection.limits import LATENCY, LOAD_WAIT, bounds, cut_to_widest, demands, unable
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.utility import (
    LEARNED_PROMPT_TOKENS,
    USUAL_PROMPT_TOKENS,
    live_p_success,
    live_timing,
    prior_rate,
    utility,
    with_prompt,
)
from router_ml.rule import Rule
from router_ml.types import Candidate, Context, MachineState, ModelState, Quantiles, Source, Think

_UTILITY, _P_SUCCESS = attrgetter("utility"), attrgetter("p_success")
_new = tuple.__new__  # of a named tuple, by place: half of the time, of which "heads and selection" has 50 us
REPORTED_WAIT_S = 0.05  # shorter waits are not reported


class Forecast(NamedTuple):
    """Predictions for one query, one entry per arm of the selector, in its order."""

    p_success: Sequence[float]
    latency_s: Sequence[Sequence[float]]  # p50, p90, p95
    output_tokens: Sequence[float]  # NaN where unknown
    cost_usd: Sequence[float]
    p_interval: Sequence[tuple[float, float] | None] = ()  # empty: unknown
    source: Sequence[Source] = ()  # of `p_success`; empty: priors


class Selection(NamedTuple):
    """The outcome of a choice."""

    ranked: tuple[Candidate, ...]
    excluded: dict[str, str]
    reason: str
    propensity: float
    relaxed: bool  # no model was within every limit
    if_warm: str | None = None  # the model of highest utility if all were in memory; None: the same


class _Pace(NamedTuple):
    """What is known of a model's speed before anything is measured here."""

    source: Source
    usual_prompt_tokens: int
    decode_tokens_per_s: float | None


class Selector:
    """Ranks the arms of a catalogue (`Catalogue.arms`). Stateless; thread-safe. `default_model` is the key of one."""

    def __init__(
        self,
        models: Sequence[Model],
        default_model: str | None = None,
        outcomes: float = 0.0,
        learned_latency: Container[str] = (),
        guarantee: Guarantee | None = None,
        cascade: Cascade | None = None,
    ) -> None:
        """`outcomes` is how many the predictions were learned from: with them exploration falls."""
        self.guarantee, self.cascade = guarantee or Guarantee(default_model, ()), cascade or Cascade()
        self.models = tuple(models)
        self._no_interval, self._all_priors = (None,) * len(self.models), ("prior",) * len(self.models)
        self.default_model = default_model
        self.outcomes = outcomes
        self._aliases = {model.name: frozenset(model.aliases) for model in self.models}
        self._other_ways = {think: _asked_otherwise(self.models, think) for think in (False, True, *EFFORTS)}
        self._paces = [
            _Pace("learned", LEARNED_PROMPT_TOKENS, prior_rate(model))
            if model.key in learned_latency
            else _Pace(model.prior.latency_source, USUAL_PROMPT_TOKENS, prior_rate(model))
            for model in self.models
        ]

    def select(
        self,
        forecast: Forecast,
        context: Context,
        policy: Policy,
        *,
        machine: MachineState | None = None,
        novelty: float = 0.0,
        draw: Callable[[], float] | None = None,
        rule: Rule | None = None,
    ) -> Selection:
        """Rank the models for one query. `draw` gives uniform numbers in 0..1 if the policy explores; `rule` is the
        rule that speaks."""
        excluded: dict[str, str] = {}
        candidates = self._candidates(forecast, context, policy, machine, excluded)
        notes: list[str] = []
        if rule is not None and candidates:
            candidates = self._ruled(candidates, rule, excluded, notes)
        if not candidates:
            candidates = self._despite_all(forecast, context, policy, machine, excluded, notes)
        candidates.sort(key=_UTILITY, reverse=True)
        fit = [c for c in candidates if c.admissible]
        if fit:
            if policy.max_loss is None:
                fit = self._keep_default(fit, policy, novelty, notes)
            else:
                fit = self.guarantee.order(fit, policy, notes)
            preferred = None if rule is None else self._preferred(fit, rule)
            if rule is not None and preferred is not None:
                fit, draw = [preferred, *(c for c in fit if c is not preferred)], None
                notes.append(f"the rule {rule.name!r} prefers it")
            if policy.cascade:
                fit = self.cascade.order(fit, policy, context, notes, stays=preferred is not None)
            chain = fit if len(fit) == len(candidates) else fit + [c for c in candidates if not c.admissible]
        else:
            chain = _least_bad(candidates, LATENCY.bound(policy, context), LOAD_WAIT.bound(policy, context))
            notes.append(chain[0].reasons[0] if chain[0].reasons else "no model is within the limits")
        if_warm = None if machine is None else _if_warm(candidates, policy, machine, context)
        propensity = 1.0
        if policy.exploration and draw is not None and len(fit) > 1:
            chain, propensity = self._explore(chain, fit, policy, draw, notes)
        return Selection(tuple(chain), excluded, _reason(chain, notes), propensity, not fit, if_warm)

    def _candidates(
        self,
        forecast: Forecast,
        context: Context,
        policy: Policy,
        machine: MachineState | None,
        excluded: dict[str, str],
        able_only: bool = True,
    ) -> list[Candidate]:
        """Return every model that the policy allows and, with `able_only`, that can serve the request."""
        checks = bounds(policy, context)
        allows = None if policy.models is None else policy.allows
        states = machine.models if machine is not None else None
        other_ways = self._other_ways.get(context.think, ()) if context.think is not None else ()
        prompt_tokens = context.prompt_tokens or 0
        intervals, sources = forecast.p_interval or self._no_interval, forecast.source or self._all_priors
        able_only = able_only and demands(context, machine)
        cautious = "learned" in sources  # then a model nobody measured must win by the lower end of its interval
        out: list[Candidate] = []
        for model, pace, p, quantiles, tokens, cost, interval, source in zip(
            self.models,
            self._paces,
            forecast.p_success,
            forecast.latency_s,
            forecast.output_tokens,
            forecast.cost_usd,
            intervals,
            sources,
            strict=True,
        ):
            if allows is not None and not allows(model):
                excluded[model.name] = "not among the policy's models"
                continue
            if other_ways and model.key in other_ways:
                excluded[model.key] = f"the request asks for think = {think_text(context.think)}"
                continue
            if able_only and (why := unable(model, context, machine)) is not None:
                excluded[model.name] = why
                continue
            latency, known_tokens = _new(Quantiles, quantiles), tokens if tokens == tokens else None
            if prompt_tokens > pace.usual_prompt_tokens:
                latency = with_prompt(latency, prompt_tokens - pace.usual_prompt_tokens, pace.decode_tokens_per_s)
            latency_source, load_s, charged_s = pace.source, 0.0, 0.0
            reasons: tuple[str, ...] = ()
            state = states.get(model.name) if states is not None else None
            if state is not None:
                p = live_p_success(p, state)
                latency, latency_source, load_s, charged_s = live_timing(
                    latency, latency_source, known_tokens, prompt_tokens, state
                )
                reasons = _state_reasons(state)
            counted = interval[0] if cautious and source == "prior" and interval is not None and interval[0] < p else p
            worth = utility(policy, counted, latency.p50 - load_s + charged_s, cost)
            candidate = _new(Candidate, (  # by place: "heads and selection" takes 50 us at most
                model.name, p, latency, cost, worth, reasons, known_tokens, True, model.think, source, latency_source,
                interval, load_s,
            ))  # fmt: skip
            for check, bound in checks:
                if (broken := check(candidate, bound)) is not None:
                    candidate = candidate._replace(reasons=(broken, *reasons), admissible=False)
                    break
            out.append(candidate)
        return out

    def _ruled(
        self, candidates: list[Candidate], rule: Rule, excluded: dict[str, str], notes: list[str]
    ) -> list[Candidate]:
        """Return the candidates that a rule leaves; all of them, with a note, where it would leave none."""
        left = [
            c
            for c in candidates
            if not self._names(c, rule.forbid) and (not rule.require or self._names(c, rule.require))
        ]
        if not left:
            notes.append(f"no model that the rule {rule.name!r} allows can serve this")
            return candidates
        if len(left) < len(candidates):
            for candidate in candidates:
                if not any(candidate.model == other.model for other in left):
                    excluded[candidate.model] = f"the rule {rule.name!r} forbids it"
            notes.append(f"by the rule {rule.name!r}")
        return left

    def _preferred(self, fit: list[Candidate], rule: Rule) -> Candidate | None:
        """Return the best admissible candidate of the first preferred model that has one; None if none has."""
        for name in rule.prefer:
            for candidate in fit:
                if self._names(candidate, (name,)):
                    return candidate
        return None

    def _names(self, candidate: Candidate, names: Sequence[str]) -> bool:
        """Return whether a candidate's model is among names, aliases or keys of arms."""
        key = arm_key(candidate.model, candidate.think)
        return any(name in (candidate.model, key) or name in self._aliases[candidate.model] for name in names)

    def _despite_all(
        self,
        forecast: Forecast,
        context: Context,
        policy: Policy,
        machine: MachineState | None,
        excluded: dict[str, str],
        notes: list[str],
    ) -> list[Candidate]:
        """Return the allowed models though none can serve the request: if only the prompt is too long, those with the
        largest context window, else all; those the policy names where the catalogue has none of them."""
        allowed = [model for model in self.models if policy.allows(model)]
        if not allowed:
            return _uncatalogued(policy.models or (), forecast)
        short = cut_to_widest(allowed, context, machine)
        if short is None:
            notes.append("no model can serve this as it is")
            return self._candidates(forecast, context, policy, machine, {}, able_only=False)
        notes.append(
            f"the prompt of {context.prompt_tokens} tokens exceeds every window, {short.prompt_tokens} is the widest"
        )
        candidates = self._candidates(forecast, short, policy, machine, {})
        for candidate in candidates:
            excluded.pop(candidate.model, None)
        return candidates

    def _keep_default(self, fit: list[Candidate], policy: Policy, novelty: float, notes: list[str]) -> list[Candidate]:
        """Keep the default model first for a query far from the training queries, unless another is clearly better."""
        if not novelty or self.default_model is None or _is(fit[0], self.default_model):
            return fit
        default = next((c for c in fit if _is(c, self.default_model)), None)
        if default is None or fit[0].utility - default.utility > policy.default_margin * novelty:
            return fit
        notes.append("unlike the training queries, so the default model stays")
        return [default, *(c for c in fit if c is not default)]

    def _explore(
        self,
        chain: list[Candidate],
        fit: list[Candidate],
        policy: Policy,
        draw: Callable[[], float],
        notes: list[str],
    ) -> tuple[list[Candidate], float]:
        """Put another admissible candidate first as drawn; return the chain and the propensity of its first."""
        share = share_after(
            policy.exploration, policy.exploration_floor, policy.exploration_half_life_outcomes, self.outcomes
        )
        chances = propensities(fit, share, policy.exploration_gap)
        pick = drawn(chances, share, draw)
        if not pick:
            return chain, chances[0]
        notes.append("explored")
        return [chain[pick], *chain[:pick], *chain[pick + 1 :]], chances[pick]


def _is(candidate: Candidate, key: str) -> bool:
    return arm_key(candidate.model, candidate.think) == key


def _asked_otherwise(arms: Sequence[Model], think: Think) -> frozenset[str]:
    """Return the keys of the arms left out where a request asks for `think`: those asked another way, of the models
    that have one asked this way, or failing that one that thinks, or does not, as this way does."""
    left_out: set[str] = set()
    for name in {arm.name for arm in arms}:
        own = [arm for arm in arms if arm.name == name and arm.think is not None]
        exact = [arm for arm in own if arm.think == think] or [arm for arm in own if bool(arm.think) == bool(think)]
        left_out |= {arm.key for arm in own if arm not in exact} if exact else set()
    return frozenset(left_out)


def _uncatalogued(names: Sequence[str], forecast: Forecast) -> list[Candidate]:
    """Return candidates for models that only the policy knows, as slow as the slowest model of the catalogue."""
    slowest_s = max(float(quantiles[-1]) for quantiles in forecast.latency_s)
    latency, why = Quantiles(slowest_s, slowest_s, slowest_s), "the policy's models are not in the catalogue"
    return [Candidate(name, 0.5, latency, 0.0, 0.0, (why,), admissible=False) for name in dict.fromkeys(names)]


def _state_reasons(state: ModelState) -> tuple[str, ...]:
    reasons = []
    if state.resident:
        reasons.append("warm")
    elif state.resident is False and state.load_s:
        reasons.append(f"cold: {state.load_s:.1f} s to load")
    if state.queue_s > REPORTED_WAIT_S:
        reasons.append(f"{state.queue_s:.1f} s queue")
    return tuple(reasons)


def _least_bad(candidates: list[Candidate], budget_s: float | None, load_wait_s: float | None) -> list[Candidate]:
    """Put first, where no candidate is within the limits, the fastest if time is the reason, else the likeliest."""
    in_time = [
        c
        for c in candidates
        if (budget_s is None or not c.warm_p95_s > budget_s) and (load_wait_s is None or not c.load_s > load_wait_s)
    ]
    best = max(in_time, key=_P_SUCCESS) if in_time else min(candidates, key=lambda c: c.latency_s.p95)
    return [best, *(c for c in candidates if c is not best)]


def _if_warm(candidates: Sequence[Candidate], policy: Policy, machine: MachineState, context: Context) -> str | None:
    """Return the candidate of highest utility if every model were in memory; None where that changes nothing.

    Only what a load costs is taken back: candidates that break another limit stay out."""
    for candidate in candidates:
        if candidate.load_s:
            break
    else:
        return None
    checks = [(check, bound) for check, bound in bounds(policy, context) if check is not LOAD_WAIT.check]
    best: Candidate | None = None
    best_worth = 0.0
    for c in candidates:
        if not c.admissible and any(check(c, bound) is not None for check, bound in checks):
            continue
        charged_s = c.load_s / max(machine.models[c.model].requests_per_load, 1.0) if c.load_s else 0.0
        worth = c.utility + policy.latency_weight_per_s * charged_s
        if best is None or worth > best_worth:
            best, best_worth = c, worth
    return best.model if best is not None else None


def _reason(chain: list[Candidate], notes: list[str]) -> str:
    chosen = chain[0]
    head = f"p_success {_decimal(chosen.p_success)}"
    p50 = chosen.latency_s.p50
    if p50 == p50:
        head += f" at {p50:.1f} s"
    better = max(chain, key=_P_SUCCESS)
    gain = better.p_success - chosen.p_success
    if better is not chosen and gain >= 0.005:
        extra = better.latency_s.p50 - p50
        price = f" for {extra:.1f} s more" if extra > 0 else ""
        barred = "" if better.admissible or not chosen.admissible else f", but {better.reasons[0]}"
        head += f"; {arm_phrase(better.model, better.think)} would add {_decimal(gain)}{price}{barred}"
    if not chosen.reasons and not notes:
        return head
    state = [word for word in chosen.reasons if word not in notes]
    return "; ".join([head, *state, *notes])


def _decimal(value: float) -> str:
    return f"{value:.2f}".lstrip("0") if value < 1 else "1.00"
