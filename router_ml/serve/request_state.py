"""The state of one request: its input and what is known so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router_ml.arm import is_think
from router_ml.context import conversation_context
from router_ml.decide.selection.policy import Policy
from router_ml.experiments.assignment import Assignment
from router_ml.hosts.backend import Backend
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import Attempt
from router_ml.serve.answer_cache.key import CacheKey
from router_ml.serve.request import ChatRequest, prompt_tokens
from router_ml.types import Candidate, Context, Decision, Think


@dataclass
class RequestState:
    """The only thing in a gateway that changes while a request is served; it belongs to that request alone."""

    request: ChatRequest
    context: Context
    policy: Policy | str
    began_s: float  # points on the gateway's clock
    deadline_s: float
    model: str | None = None  # the caller insists on trying this one first
    key: CacheKey | None = None
    assignment: Assignment | None = None
    allowed: tuple[str, ...] | None = None  # the only models the policy allows, by catalogue name
    decision: Decision | None = None
    decide_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    empty: tuple[Backend, Reply] | None = None  # the first empty answer; a second one ends the request
    asked: tuple[str, list[Mapping[str, Any]]] = ("", [])  # the model whose stream called tools, and its calls
    waited_s: float = 0.0  # in the queues of the gateway
    resident: bool | None = None  # whether the model that answered was in memory
    first_token_s: float | None = None
    streamed: bool = False  # its parts are passed on as they come
    cascade: Policy | None = None  # the policy under which its first answer is judged; None: it is not
    no_cascade: str = ""  # why a policy with a cascade does not judge it
    p_served: float | None = None  # success to expect of the answer that a cascade serves
    escalated: int = 0  # attempts before a cascade asked a second arm; 0: it did not
    unused: tuple[str, Reply] | None = None  # the model whose answer a cascade did not serve, and that answer

    @property
    def chosen(self) -> Decision:
        """Return the decision, once there is one."""
        assert self.decision is not None, "nothing was decided yet"
        return self.decision

    @property
    def hides_logprobs(self) -> bool:
        """Return whether log-probabilities are asked for though the caller did not: they are not passed on."""
        return (self.cascade is not None or bool(self.no_cascade)) and not self.request.logprobs

    @property
    def policy_name(self) -> str:
        """Return the policy as an event or a cache key names it."""
        return self.policy if isinstance(self.policy, str) else self.policy.name

    def candidate(self, model: str, think: Think | None = None) -> Candidate | None:
        """Return what was predicted of an arm, else of the model's best arm, or None."""
        own = [c for c in (self.decision.ranked if self.decision else ()) if c.model == model]
        return next((c for c in own if c.think == think), own[0] if own else None)


def context_of(request: ChatRequest, given: Context | Mapping[str, Any] | None) -> Context:
    """Return the context of a request: what the caller gave, completed from the messages and tools.

    Raises `ContextError` if what was given has the wrong shape."""
    context = conversation_context(request.conversation, given, request.tools)
    if is_think(request.think):
        context = dataclasses.replace(context, think=request.think)
    if context.prompt_tokens is not None:
        return context
    return dataclasses.replace(context, prompt_tokens=prompt_tokens(request.conversation, context.tools))
