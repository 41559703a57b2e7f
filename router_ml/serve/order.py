"""The order in which models are tried, and how long each may take."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Sequence

from router_ml.catalogue import Catalogue, Model
from router_ml.hosts.names import ModelNames
from router_ml.hosts.options import GatewayOptions
from router_ml.types import Candidate, Decision, Quantiles, Think

_RESERVED_SHARE = 0.5  # the most of the remaining time that is reserved for the models further down
_OUTAGE_MAX_S = 30.0  # a host that has been down for longer is not waited for
_OUTAGE_UNSEEN_S = 2.0  # the same for a host that never took a connection


def chain(
    decision: Decision, last_resort: str | None, names: ModelNames, allowed: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Return the models to try, each once: the ranked ones, then the last resort; only the `allowed` ones."""
    return tuple(dict.fromkeys(model for model, _ in arm_chain(decision, last_resort, names, allowed)))


def arm_chain(
    decision: Decision, last_resort: str | None, names: ModelNames, allowed: Sequence[str] | None = None
) -> tuple[tuple[str, Think | None], ...]:
    """Return the arms to try, model and `think`, each once: the ranked ones, then the last resort where no arm of it is
    among them; only those of `allowed` models."""
    first = decision.candidate if decision.ranked else None
    think = first.think if first is not None and first.model == decision.model else None
    ordered = [(decision.model, think), *((candidate.model, candidate.think) for candidate in decision.ranked)]
    ruled_out = decision.rule is not None and last_resort in decision.excluded
    if last_resort and not ruled_out and not any(names.same(model, last_resort) for model, _ in ordered):
        ordered.append((last_resort, None))
    unique = dict.fromkeys((names.canonical(model), think) for model, think in ordered)
    return tuple(arm for arm in unique if allowed is None or arm[0] in allowed)


def wanted(decision: Decision) -> str:
    """Return the model that a decision would have chosen if all were in memory.

    A model that was put in front for another reason, by its caller or for its session, is wanted itself."""
    best = max((c for c in decision.ranked if c.admissible), key=lambda c: c.utility, default=None)
    held = best is not None and best.model != decision.model
    return decision.model if held or decision.if_warm is None else decision.if_warm


def outage_wait_s(down_s: float, seen_up: bool, total_s: float, left_s: float) -> float:
    """Return how many seconds a request may wait for a host that takes no connections.

    A host that was up is restarting, perhaps: it is waited for until it has been down (`down_s`) for as long as the
    request's deadline (`total_s`), at most 30 s; after that requests fail at once until it is back. One that was never
    up is more likely not there at all."""
    longest_s = min(total_s, _OUTAGE_MAX_S if seen_up else _OUTAGE_UNSEEN_S)
    return max(0.0, min(longest_s - down_s, left_s))


def shifted(latency: Quantiles | None, load_s: float) -> Quantiles | None:
    """Return the latency of a model that has to be loaded first."""
    return None if latency is None else Quantiles(*(value + load_s for value in latency))


def attempt_timeout_s(
    expected: Quantiles | None,
    resident: bool | None,
    load_s: float | None,
    remaining_s: float,
    later: Sequence[Quantiles | None],
    options: GatewayOptions,
    probe: bool = False,
    decode_tokens_per_s: float | None = None,
    service_s: float | None = None,
) -> float:
    """Return how long one attempt may take, in seconds.

    Where other models remain (`later`, their loads included): a multiple of the predicted p95, or what a long answer
    takes at the rate seen (`decode_tokens_per_s`) where that is more; for a model not known to be in memory its load
    on top. Time for the fastest of the others is reserved, but only where it could finish in that time, and where the
    first could finish in the rest: by its p95, and by twice the duration of its calls (`service_s`), or
    `attempt_min_s` where none was seen. The last one may use all that is left, unless it is a `probe` of a model that
    has been failing."""
    if not later and not probe:
        return remaining_s  # nothing else could use what is left
    wanted_s = remaining_s if expected is None else options.attempt_factor * expected.p95
    long_s = options.attempt_min_tokens / decode_tokens_per_s if decode_tokens_per_s and not probe else 0.0
    wanted_s = max(wanted_s, options.attempt_min_s, long_s)
    if resident is not True:
        wanted_s += options.cold_load_s if load_s is None else 2.0 * load_s
    if not later:
        return min(wanted_s, remaining_s)
    needed_s = max(0.0 if expected is None else expected.p95, 2 * service_s if service_s else options.attempt_min_s)
    needed_s += load_s or 0.0 if resident is not True else 0.0
    reserved_s = _reserved_s(later, remaining_s, options)
    return min(wanted_s, remaining_s - (reserved_s if needed_s <= remaining_s - reserved_s else 0.0))


def _reserved_s(later: Sequence[Quantiles | None], remaining_s: float, options: GatewayOptions) -> float:
    fastest = min((q for q in later if q is not None), key=lambda q: q.p50, default=None)
    if fastest is None:
        return min(options.attempt_min_s, _RESERVED_SHARE * remaining_s)
    wanted_s = options.attempt_factor * fastest.p95 + options.attempt_min_s
    reserved_s = min(wanted_s, _RESERVED_SHARE * remaining_s)
    return reserved_s if fastest.p50 <= reserved_s else 0.0


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


def unexplored(decision: Decision, arm: tuple[str, Think | None] | None, names: ModelNames) -> Decision:
    """Return the decision without what exploration drew, so with propensity 1: for a turn that was drawn for before.

    The arm that has the turn (a model, and how it was asked) stays where it is still within the limits; else the
    candidate of highest utility comes first."""
    if decision.propensity == 1.0:
        return decision
    fit = [c for c in decision.ranked if c.admissible]
    had = next((c for c in fit if arm is not None and names.same(c.model, arm[0]) and c.think == arm[1]), None)
    if had is not None:
        return _in_front(decision, had, f"{decision.reason}; a turn that began with {had.model} stays with it")
    return _in_front(decision, max(fit, key=lambda c: c.utility), decision.reason)


def pin(
    decision: Decision, model: str, names: ModelNames, why: str = "was named by the caller", unknown: bool = False
) -> Decision:
    """Return the decision with one model in front, which has propensity 1; `why` follows its name in the reason.

    One that is `unknown` (in no catalogue, on no host) changes nothing but the reason: a name that a client makes up
    must not become a model in events and metrics."""
    name = names.canonical(model)
    if unknown:
        reason = (
            f"{decision.reason}; the caller asked for {model!r:.60}, which is neither in the catalogue nor installed"
        )
        return dataclasses.replace(decision, reason=reason)
    if decision.model == name:
        return dataclasses.replace(decision, propensity=1.0)
    named = next((c for c in decision.ranked if names.same(c.model, name)), None) or _named(name, decision)
    return dataclasses.replace(_in_front(decision, named, f"{name} {why}"), model=name)


def _in_front(decision: Decision, chosen: Candidate, reason: str) -> Decision:
    ranked = (chosen, *(c for c in decision.ranked if c is not chosen))
    return dataclasses.replace(decision, model=chosen.model, ranked=ranked, reason=reason, propensity=1.0)


def _named(model: str, decision: Decision) -> Candidate:
    unknown_s = max((c.latency_s.p95 for c in decision.ranked), default=30.0)
    return Candidate(model, 0.5, Quantiles(unknown_s, unknown_s, unknown_s), 0.0, 0.0, ("named by the caller",))


def restrict(decision: Decision, allowed: Sequence[str] | None, names: ModelNames) -> Decision:
    """Return the decision without the models a policy does not allow; the first allowed one where none was ranked."""
    if allowed is None or all(names.canonical(c.model) in allowed for c in decision.ranked):
        return decision
    ranked = tuple(c for c in decision.ranked if names.canonical(c.model) in allowed)
    if not ranked:
        return dataclasses.replace(pin(decision, allowed[0], names), ranked=(_named(allowed[0], decision),))
    return dataclasses.replace(decision, model=ranked[0].model, ranked=ranked)


_PLAIN_ORDER = {"balanced": 0, "fast": 1, "accurate": 2, None: 3}
_NORMAL_P95 = 1.645  # of the standard normal distribution
_NORMAL_P90 = 1.282


def plain_decision(catalogue: Catalogue, policy: str, reason: str) -> Decision:
    """Return what is decided where the router itself fails: the balanced model, then fast, then accurate, with the
    catalogue's priors for an ambiguous query."""
    models = sorted((model.default_arm for model in catalogue.models), key=lambda m: _PLAIN_ORDER[m.role])
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
    p, why = prior.success["ambiguous"], ("the router could not decide",)
    return Candidate(model.name, p, latency, 0.0, utility, why, think=model.think)
