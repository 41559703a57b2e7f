"""What rules a model out: it cannot serve the request at all, or it breaks a limit of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router_ml.catalogue import Model
from router_ml.decide.selection.policy import Policy
from router_ml.types import Context, MachineState, Quantiles


def unable(model: Model, context: Context, policy: Policy, machine: MachineState | None) -> str | None:
    """Why a model cannot serve a request, or None."""
    if policy.models is not None and not any(name in policy.models for name in (model.name, *model.aliases)):
        return "not among the policy's models"
    if context.n_tools and not model.can("tools"):
        return "cannot call tools"
    if (context.has_images or context.attachment_kind == "image") and not model.can("vision"):
        return "cannot see images"
    window = model.context_window_tokens
    if window is not None and context.prompt_tokens is not None and context.prompt_tokens > window:
        return f"the prompt of {context.prompt_tokens} tokens exceeds its window of {window}"
    if machine is not None:
        state = machine.models.get(model.name)
        if state is not None and not state.available:
            return state.reason or "not available"
    return None


def cut_to_widest(
    models: Sequence[Model], context: Context, policy: Policy, machine: MachineState | None
) -> Context | None:
    """The context with its prompt cut to the widest window, as the server would cut it, where nothing but the length
    of the prompt is in the way; else None."""
    if context.prompt_tokens is None:
        return None
    short = replace(context, prompt_tokens=None)
    able = [model for model in models if unable(model, short, policy, machine) is None]
    windows = [model.context_window_tokens for model in able if model.context_window_tokens is not None]
    return replace(context, prompt_tokens=max(windows)) if windows else None


def over_limit(policy: Policy, budget_s: float | None, p: float, latency: Quantiles, cost_usd: float) -> str | None:
    """Which limit of the policy a candidate breaks, or None. An unknown value (NaN) breaks none."""
    if budget_s is not None and latency.p95 > budget_s:
        return f"p95 {latency.p95:.1f} s is over the budget of {budget_s:g} s"
    if p < policy.min_p_success:
        return f"p_success {p:.2f} is under the minimum of {policy.min_p_success:g}"
    if policy.max_cost_usd is not None and cost_usd > policy.max_cost_usd:
        return f"cost ${cost_usd:.4f} is over the limit of ${policy.max_cost_usd:g}"
    return None
