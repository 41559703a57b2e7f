"""Which models a policy never chooses by what is expected of them, why, and what to change."""

from __future__ import annotations

import math
from collections.abc import Sequence

from router_ml.catalogue import Catalogue, Model
from router_ml.decide.selection.policy import PRESETS, Policy
from router_ml.types import LABELS, Label

_NORMAL_P95 = 1.645  # of the standard normal distribution


def remarks(catalogue: Catalogue) -> list[str]:
    """Return a sentence for every arm that no policy chooses, and for every one that `balanced` never does."""
    arms = list(catalogue.arms)
    found = []
    for arm in arms:
        if (better := _better_everywhere(arm, arms)) is not None:
            found.append(_superseded(arm, better))
        elif (why := _why_not(arm, arms, PRESETS["balanced"])) is not None:
            found.append(f"{arm.key}: the policy balanced never chooses it by these figures, {why}")
    return found


def _superseded(arm: Model, better: Model) -> str:
    why = (
        f"{arm.key}: no policy ever chooses it, as {better.key} is at least as likely to be right and at least as quick"
    )
    if better.name == arm.name:
        return f"{why}; its [[model.arm]] can go"
    return f"{why}, and does as much; the model can go, or state your own [model.prior] for it"


def _better_everywhere(arm: Model, arms: Sequence[Model]) -> Model | None:
    return next((other for other in arms if other is not arm and _dominates(other, arm)), None)


def _dominates(one: Model, other: Model) -> bool:
    """Return whether one is at least as good as the other at every label, better somewhere, and able to do as much."""
    if (one.capabilities is not None) and not (other.capabilities or frozenset()) - {"thinking"} <= one.capabilities:
        return False
    if _window(one) < _window(other):
        return False
    pairs = [(_figures(one, label), _figures(other, label)) for label in LABELS]
    return all(a >= b for x, y in pairs for a, b in zip(x, y, strict=True)) and any(x != y for x, y in pairs)


def _figures(arm: Model, label: Label) -> tuple[float, float, float]:
    prices = arm.price_input_usd_per_mtok + arm.price_output_usd_per_mtok
    return arm.prior.success[label], -arm.prior.latency_s[label], -prices


def _window(arm: Model) -> float:
    return arm.max_context_tokens or arm.context_window_tokens or math.inf


def _why_not(arm: Model, arms: Sequence[Model], policy: Policy) -> str | None:
    """Return why a policy chooses an arm for no label and what to change, or None where it does choose it."""
    budget_s = policy.latency_budget_s or math.inf
    inside = [label for label in LABELS if _p95_s(arm, label) <= budget_s]
    if not inside:
        if all(_p95_s(other, label) > budget_s for other in arms for label in LABELS):
            return None  # nothing is within the limit: then the limit is no reason
        least = min(_p95_s(arm, label) for label in LABELS)
        return (
            f"as its p95 of {least:.1f} s and more is over the limit of {budget_s:g} s; use auto:accurate, or a policy "
            f"file with latency_budget_s = {math.ceil(max(_p95_s(arm, label) for label in LABELS))}"
        )
    best: list[Model] = []
    for label in inside:
        able = [other for other in arms if _p95_s(other, label) <= budget_s]
        best.append(max(able, key=lambda other: _utility(other, label, policy)))
        if best[-1] is arm:
            return None
    names = ", ".join(dict.fromkeys(other.key for other in best))
    return f"as {names} is worth more to it; use auto:accurate or auto:fast, or a policy file with other weights"


def _p95_s(arm: Model, label: Label) -> float:
    return arm.prior.latency_s[label] * math.exp(_NORMAL_P95 * arm.prior.latency_log_sd)


def _utility(arm: Model, label: Label, policy: Policy) -> float:
    success, seconds = arm.prior.success[label], arm.prior.latency_s[label]
    return policy.success_weight * success - policy.latency_weight_per_s * seconds
