"""The order in which models are tried, and how long each may take."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Sequence

from router_ml.catalogue import Catalogue, Model
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import GatewayOptions
from router_ml.types import Candidate, Decision, Quantiles

_KEPT_SHARE = 0.5  # the most of the remaining time that is kept back for the models further down


def chain(decision: Decision, last_resort: str | None, names: ModelNames) -> tuple[str, ...]:
    """The models to try, each once: the ranked ones, then the last resort."""
    ordered = [decision.model, *(candidate.model for candidate in decision.ranked)]
    if last_resort:
        ordered.append(last_resort)
    return tuple(dict.fromkeys(names.canonical(name) for name in ordered))


def attempt_timeout_s(
    expected: Quantiles | None,
    resident: bool | None,
    load_s: float | None,
    remaining_s: float,
    later: Sequence[Quantiles | None],
    options: GatewayOptions,
    probe: bool = False,
    decode_tokens_per_s: float | None = None,
) -> float:
    """How long one attempt may take, in seconds.

    Where other models remain (`later`): a multiple of the predicted p95, or what a long answer takes at the rate seen
    (`decode_tokens_per_s`) where that is more; for a model not known to be in memory its load on top, and time for
    the quickest of the others is kept back. The last one may use all that is left, unless it is a `probe` of a model
    that has been failing."""
    if not later and not probe:
        return remaining_s  # nobody else could use what is left
    wanted_s = remaining_s if expected is None else options.attempt_factor * expected.p95
    long_s = options.attempt_min_tokens / decode_tokens_per_s if decode_tokens_per_s and not probe else 0.0
    wanted_s = max(wanted_s, options.attempt_min_s, long_s)
    if resident is not True:
        wanted_s += options.cold_load_s if load_s is None else 2.0 * load_s
    if not later:
        return min(wanted_s, remaining_s)
    quickest_s = min((q.p95 for q in later if q is not None), default=options.attempt_min_s)
    kept_s = min(options.attempt_factor * quickest_s + options.attempt_min_s, _KEPT_SHARE * remaining_s)
    return min(wanted_s, remaining_s - kept_s)


def stick(decision: Decision, previous: str | None, margin: float | None, names: ModelNames) -> Decision:
    """Return the decision, or the same with the session's previous model in front.

    A session leaves its model only where the gain in utility over it exceeds `margin`. Whether it is held depends on
    utilities alone, never on what the policy explored, so a held model has propensity 1."""
    held = next((c for c in decision.ranked if previous is not None and names.same(c.model, previous)), None)
    if held is None or margin is None or not held.admissible:
        return decision
    gain = max(c.utility for c in decision.ranked if c.admissible) - held.utility
    if gain > margin:
        return decision
    if names.same(held.model, decision.model):
        return dataclasses.replace(decision, propensity=1.0)
    reason = f"{decision.reason}; stays with {held.model}, as leaving it would gain {gain:.3f}, not above {margin:g}"
    return _in_front(decision, held, reason)


def pin(decision: Decision, model: str, names: ModelNames) -> Decision:
    """Return the decision with a model in front that the caller or a variant named, which has propensity 1."""
    name = names.canonical(model)
    if decision.model == name:
        return dataclasses.replace(decision, propensity=1.0)
    named = next((c for c in decision.ranked if names.same(c.model, name)), None)
    if named is None:
        unknown_s = max((c.latency_s.p95 for c in decision.ranked), default=30.0)
        named = Candidate(name, 0.5, Quantiles(unknown_s, unknown_s, unknown_s), 0.0, 0.0, ("named by the caller",))
    return dataclasses.replace(_in_front(decision, named, f"{name} was named by the caller"), model=name)


def _in_front(decision: Decision, chosen: Candidate, reason: str) -> Decision:
    ranked = (chosen, *(c for c in decision.ranked if c is not chosen))
    return dataclasses.replace(decision, model=chosen.model, ranked=ranked, reason=reason, propensity=1.0)


_PLAIN_ORDER = {"balanced": 0, "fast": 1, "accurate": 2, None: 3}
_NORMAL_P95 = 1.645  # of the standard normal distribution
_NORMAL_P90 = 1.282


def plain_decision(catalogue: Catalogue, policy: str, reason: str) -> Decision:
    """What is decided where the router itself fails: the balanced model, then fast, then accurate, with the
    catalogue's priors for an ambiguous query."""
    models = sorted(catalogue.models, key=lambda m: _PLAIN_ORDER[m.role])
    ranked = tuple(_plain_candidate(model, 1.0 - 0.1 * i) for i, model in enumerate(models))
    return Decision(
        model=models[0].name,
        complexity="ambiguous",
        complexity_probabilities={"simple": 0.25, "moderate": 0.25, "complex": 0.25, "ambiguous": 0.25},
        ranked=ranked,
        action="answer",
        reason=reason,
        decision_id=uuid.uuid4().hex,
        policy=policy,
        bundle="heuristic",
        degraded=True,
    )


def _plain_candidate(model: Model, utility: float) -> Candidate:
    prior = model.prior
    p50, spread = prior.latency_s["ambiguous"], prior.latency_log_sd
    latency = Quantiles(p50, p50 * math.exp(_NORMAL_P90 * spread), p50 * math.exp(_NORMAL_P95 * spread))
    return Candidate(model.name, prior.success["ambiguous"], latency, 0.0, utility, ("the router could not decide",))
