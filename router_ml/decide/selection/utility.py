"""The utility of a candidate under a policy, given its predictions and the state of the machine."""

from __future__ import annotations

from typing import NamedTuple

from router_ml.catalogue import Model
from router_ml.decide.quantiles import log_normal
from router_ml.decide.selection.policy import Policy
from router_ml.types import LABELS, ModelState, Quantiles, Source

LIVE_STRENGTH = 20.0  # calls after which the live success rate weighs as much as the prediction
# Prompts are read in parallel, tokens generated one by one: 20 to 40 times as quick on a GPU, 5 to 10 times on a CPU.
PROMPT_PER_DECODE_RATE = 20.0
# Prompts up to here are part of what is predicted: of the priors (a query with its tools), and of what was learned.
USUAL_PROMPT_TOKENS, LEARNED_PROMPT_TOKENS = 2_000, 4_000
USUAL_OUTPUT_TOKENS = 100.0  # of a model whose priors do not say
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


class Timing(NamedTuple):
    """How long a request should take on a model, and where that comes from."""

    latency_s: Quantiles  # waiting and loading included
    source: Source
    load_s: float = 0.0  # of it, the wait until the model is in memory
    charged_s: float = 0.0  # of that load, the share of this request


def prior_rate(model: Model) -> float | None:
    """Return the tokens/s that `router-ml init` measured, else those that a model's priors imply: the slope of output
    tokens over seconds (least squares over the labels), for every answer also takes seconds that no token does; at
    least tokens over seconds. None if unknown."""
    if model.measured is not None:
        return model.measured.decode_tokens_per_s
    seconds = [model.prior.latency_s[label] for label in LABELS]
    tokens = [(model.prior.output_tokens or {}).get(label, USUAL_OUTPUT_TOKENS) for label in LABELS]
    mean_s, mean_tokens = sum(seconds) / len(LABELS), sum(tokens) / len(LABELS)
    if not (mean_s > 0 and mean_tokens > 0):
        return None
    together = sum((t - mean_tokens) * (s - mean_s) for t, s in zip(tokens, seconds, strict=True))
    slope = sum((t - mean_tokens) ** 2 for t in tokens) / together if together > 0 else 0.0
    return max(slope, mean_tokens / mean_s)


def with_prompt(predicted: Quantiles, more_tokens: int, decode_tokens_per_s: float | None) -> Quantiles:
    """Return predicted quantiles, shifted by the seconds that so many prompt tokens more than usual take to be read.

    Nothing is known of the prompt rate here: it is taken relative to the decode rate."""
    if not decode_tokens_per_s:
        return predicted
    more_s = more_tokens / (PROMPT_PER_DECODE_RATE * decode_tokens_per_s)
    return Quantiles(predicted.p50 + more_s, predicted.p90 + more_s, predicted.p95 + more_s)


def live_timing(
    predicted: Quantiles, source: Source, output_tokens: float | None, prompt_tokens: float, state: ModelState
) -> Timing:
    """Return the latency on this machine now: queue, load where the model is not resident, then the answer itself.

    Where the decode rate is known the answer takes prompt tokens / prompt rate + output tokens / decode rate, spread
    like the predicted quantiles (or as usual, where none are known). Else priors give way to the mean seconds of many
    answers, once they are known; else the predicted quantiles stand."""
    service = predicted
    p50: float | None = None
    if output_tokens and state.decode_tokens_per_s:
        p50 = output_tokens / state.decode_tokens_per_s
        if prompt_tokens:
            rate = state.prompt_tokens_per_s or PROMPT_PER_DECODE_RATE * state.decode_tokens_per_s
            p50 += prompt_tokens / rate
    elif source != "learned":
        p50 = state.answer_s
    if p50 is not None:
        spread = (predicted.p90 / predicted.p50, predicted.p95 / predicted.p50) if predicted.p50 > 0 else USUAL_SPREAD
        service, source = Quantiles(p50, p50 * spread[0], p50 * spread[1]), "measured"
    load_s = state.load_s or 0.0 if state.resident is False else 0.0
    wait_s = state.queue_s + load_s
    if not wait_s:
        return Timing(service, source)
    latency = Quantiles(service.p50 + wait_s, service.p90 + wait_s, service.p95 + wait_s)
    return Timing(latency, source, load_s, load_s / max(state.requests_per_load, 1.0))
