"""The limits of a policy, each one entry of `LIMITS`; the selector, the validation and policy files read them there.

To add one, write its check and register it:

    register(Limit("max_output_tokens", lambda candidate, bound: "too long" if (candidate.output_tokens or 0) > bound
                   else None))

Then `max_output_tokens = 200` in a policy file and `Policy("short", limits={"max_output_tokens": 200})` set it, and
"none" lifts it. A limit that is a field of `Policy` is read from there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from router_ml.catalogue import Model
from router_ml.numbers import is_number, short_repr
from router_ml.types import EMPTY_CONTEXT, Candidate, Context, MachineState

BoundCheck: TypeAlias = tuple[Callable[[Candidate, Any], str | None], Any]


def number(low: float = 0.0, high: float = math.inf) -> Callable[[Any], float]:
    """Return what validates a number between two bounds. It raises ValueError with what is wrong."""

    def parse(value: Any) -> float:
        if not is_number(value) or not low <= value <= high:
            bound = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise ValueError(f"must be a number, {bound}, found {short_repr(value)}")
        try:
            own = float(value)
        except OverflowError as error:
            raise ValueError("is too large a number") from error
        return value if type(value) in (int, float) else own  # numpy's becomes a number of Python

    return parse


def flag(value: Any) -> bool:
    """Return a truth value. Raises ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, found {short_repr(value)}")
    return value


_AT_LEAST_ZERO = number()


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound that a policy may set.

    `check` takes a candidate and the bound and returns what the candidate breaks, or None; an unknown value (NaN)
    breaks nothing. `parse` validates a bound and raises ValueError. `lifted` is the value that means no limit.
    `of_request` gives the bound that a request sets itself, or None; the lower of the two counts."""

    name: str
    check: Callable[[Candidate, Any], str | None]
    parse: Callable[[Any], Any] = _AT_LEAST_ZERO
    lifted: Any = None
    of_request: Callable[[Context], Any] | None = None

    def bound(self, policy: Any, context: Context) -> Any:
        """Return the bound that holds for a request, or None."""
        own = getattr(policy, self.name)
        if self.of_request is None or (requested := self.of_request(context)) is None:
            return own
        return requested if own is None else min(own, requested)


def _over_budget(candidate: Candidate, budget_s: float) -> str | None:
    p95 = candidate.warm_p95_s
    return f"p95 {p95:.1f} s is over the budget of {budget_s:g} s" if p95 > budget_s else None


def _over_load_wait(candidate: Candidate, most_s: float) -> str | None:
    load_s = candidate.load_s
    return f"loading takes {load_s:.1f} s, over the limit of {most_s:g} s" if load_s > most_s else None


def _under_minimum(candidate: Candidate, minimum: float) -> str | None:
    p = candidate.p_success
    return f"p_success {p:.2f} is under the minimum of {minimum:g}" if p < minimum else None


def _over_cost(candidate: Candidate, most_usd: float) -> str | None:
    cost = candidate.cost_usd
    return f"cost ${cost:.4f} is over the limit of ${most_usd:g}" if cost > most_usd else None


def _request_budget(context: Context) -> float | None:
    return context.latency_budget_s


LATENCY = Limit("latency_budget_s", _over_budget, of_request=_request_budget)
LOAD_WAIT = Limit("load_wait_s", _over_load_wait, of_request=_request_budget)
LIMITS: dict[str, Limit] = {
    limit.name: limit
    for limit in (
        LATENCY,
        LOAD_WAIT,
        Limit("min_p_success", _under_minimum, number(0.0, 1.0), lifted=0.0),
        Limit("max_cost_usd", _over_cost),
    )
}


def register(limit: Limit) -> None:
    """Add a limit, so that every selector applies it and every policy may set it."""
    LIMITS[limit.name] = limit
    _policy_bounds.cache_clear()


def bounds(policy: Any, context: Context) -> list[BoundCheck]:
    """Return the checks that hold for a request, each with its bound."""
    for limit in LIMITS.values():
        if limit.of_request is not None and limit.of_request(context) is not None:
            return _bounds(policy, context)
    return _policy_bounds(policy)


def _bounds(policy: Any, context: Context) -> list[BoundCheck]:
    return [
        (limit.check, bound) for limit in LIMITS.values() if (bound := limit.bound(policy, context)) != limit.lifted
    ]


@functools.lru_cache(maxsize=64)  # "heads and selection" takes 50 us at most
def _policy_bounds(policy: Any) -> list[BoundCheck]:
    return _bounds(policy, EMPTY_CONTEXT)


def demands(context: Context, machine: MachineState | None) -> bool:
    """Return whether `unable` may hold for any model: asked once a request, for "heads and selection" has 50 us."""
    return (
        machine is not None
        or context.n_tools > 0
        or context.has_images
        or context.prompt_tokens is not None
        or context.attachment_kind == "image"
    )


def unable(model: Model, context: Context, machine: MachineState | None) -> str | None:
    """Return why a model cannot serve a request, or None."""
    if context.n_tools and not model.can("tools"):
        return "cannot call tools"
    if (context.has_images or context.attachment_kind == "image") and not model.can("vision"):
        return "cannot see images"
    window = _window(model, machine)
    if window is not None and context.prompt_tokens is not None and context.prompt_tokens > window:
        return f"the prompt of {context.prompt_tokens} tokens exceeds its window of {window}"
    if machine is not None:
        state = machine.models.get(model.name)
        if state is not None and not state.available:
            return state.reason or "not available"
    return None


def cut_to_widest(models: Sequence[Model], context: Context, machine: MachineState | None) -> Context | None:
    """Return the context with its prompt cut to the largest window, as the server would cut it, if only the length of
    the prompt is in the way; else None."""
    if context.prompt_tokens is None:
        return None
    short = replace(context, prompt_tokens=None)
    able = [model for model in models if unable(model, short, machine) is None]
    windows = [window for model in able if (window := _window(model, machine)) is not None]
    return replace(context, prompt_tokens=max(windows)) if windows else None


def _window(model: Model, machine: MachineState | None) -> int | None:
    """Return the longest prompt a model reads: with a gateway, which asks the host for more, up to its maximum."""
    return (machine is not None and model.max_context_tokens) or model.context_window_tokens
