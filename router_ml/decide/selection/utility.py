"""The utility of a candidate under a policy, given its predictions and the state of the machine."""

from __future__ import annotations

from router_ml.decide.quantiles import log_normal
from router_ml.decide.selection.policy import Policy
from router_ml.types import ModelState, Quantiles

LIVE_STRENGTH = 20.0  # calls after which the live success rate weighs as much as the prediction
_USUAL = log_normal(1.0, 0.5)
USUAL_SPREAD = (_USUAL.p90 / _USUAL.p50, _USUAL.p95 / _USUAL.p50)  # where the quantiles of a model are not known


def utility(policy: Policy, p_success: float, latency_s: float, cost_usd: float) -> float:
    """Return the expected value of an answer; an unknown latency or cost (NaN) counts as none."""
    value = policy.success_weight * p_success
    if latency_s == latency_s:
        value -= policy.latency_weight_per_s * latency_s
    if cost_usd == cost_usd:
        value -= policy.cost_weight_per_usd * cost_usd
    return value


def live_p_success(p_success: float, state: ModelState) -> float:
    """Return the prediction, lowered where the model performs worse right now than predicted.

    A live rate above the prediction changes nothing: it may come from easier queries."""
    if state.recent_success is None or state.recent_success >= p_success:
        return p_success
    weight = state.recent_calls / (state.recent_calls + LIVE_STRENGTH)
    return p_success + weight * (state.recent_success - p_success)


def live_latency(
    predicted: Quantiles, output_tokens: float | None, prompt_tokens: float | None, state: ModelState
) -> Quantiles:
    """Return the latency on this machine now: queue, load where the model is not resident, then the answer itself.

    Where the decode rate is known the answer takes prompt tokens / prompt rate + output tokens / decode rate, spread
    like the predicted quantiles (or as usual, where none are known); else the predicted quantiles stand."""
    wait = state.queue_s
    if state.resident is False and state.load_s is not None:
        wait += state.load_s
    service = predicted
    if output_tokens and state.decode_tokens_per_s:
        p50 = output_tokens / state.decode_tokens_per_s
        if prompt_tokens and state.prompt_tokens_per_s:
            p50 += prompt_tokens / state.prompt_tokens_per_s
        spread = (predicted.p90 / predicted.p50, predicted.p95 / predicted.p50) if predicted.p50 > 0 else USUAL_SPREAD
        service = Quantiles(p50, p50 * spread[0], p50 * spread[1])
    if not wait:
        return service
    return Quantiles(service.p50 + wait, service.p90 + wait, service.p95 + wait)
