"""What a request gave: the answer, which model gave it, and everything that was tried.

What counts as an answer is defined here alone: visible text or a tool call. White space, thoughts without either, and
nothing at all are an empty answer. A model may give one without any fault of its host (the server drops calls of tools
that were not offered), so it costs one fallback and counts against no model.
"""

from __future__ import annotations

import copy
import functools
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from router_ml.hosts.failure import Failure
from router_ml.hosts.ollama_package import ollama
from router_ml.hosts.reply import Reply
from router_ml.types import Decision, Think

ChatResponse: TypeAlias = ollama.ChatResponse  # what callers written for the ollama client read
PROMPT_CUT = "prompt_cut"  # in `Attempt.adapted`: the server dropped the beginning of the prompt


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of an answer went, in seconds. None: the server did not report it."""

    total_s: float  # the whole request, end to end
    queue_s: float | None = None  # the gateway's queue and the server's
    load_s: float | None = None  # loading the model, waits for an eviction included
    prompt_eval_s: float | None = None  # cached prompt tokens take none
    eval_s: float | None = None
    decide_s: float = 0.0
    first_token_s: float | None = None  # streams: from the start of the request to the first byte passed on


@dataclass(frozen=True, slots=True)
class Attempt:
    """One model that was called, or skipped."""

    model: str  # the catalogue's name
    host: str
    latency_s: float = 0.0
    timeout_s: float | None = None
    failure: Failure | None = None
    first_token_s: float | None = None  # from the start of this attempt
    breaker: str = "closed"  # its state afterwards
    adapted: tuple[str, ...] = ()  # what was changed in the request for this model
    think: Think | None = None  # how it was asked; None: nothing was said, or it has no choice
    logprob_mean: float | None = None  # mean log-probability of its tokens, where it was asked for
    unused: bool = False  # it answered, and a cascade served another answer

    @property
    def ok(self) -> bool:
        """Whether it gave an answer."""
        return self.failure is None

    @property
    def error(self) -> str | None:
        """Return the failure in one line, or None."""
        return None if self.failure is None else str(self.failure)


@dataclass(frozen=True)
class Answer:
    """One answered request. Code written for the ollama client's `ChatResponse` works unchanged: every attribute and
    key of the response can be read from the answer itself."""

    reply: Reply  # as the host gave it
    decision: Decision
    model: str  # the catalogue's name of the model that answered; "" for a clarifying question
    timings: Timings
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False
    host: str | None = None
    clarify: bool = False  # no model was called: the message is a clarifying question
    think: Think | None = None  # how the model that answered was asked
    cascade: str = ""  # what a cascade did and why; "" under policies without one
    p_right: float | None = None  # probability that the first answer was right, where a cascade judged it
    escalated_from: str | None = None  # key of the arm whose answer a cascade did not serve

    @functools.cached_property
    def response(self) -> ChatResponse:
        """Return the answer as the ollama client gives it; built when it is first read, and the caller's own."""
        return response_of(self.reply)

    @property
    def message(self) -> ollama.Message:
        """Return the assistant's message."""
        return self.response.message

    @property
    def content(self) -> str:
        """Return the text of the message; "" if there is none."""
        return self.reply.content

    @property
    def fallback(self) -> bool:
        """Whether another arm than the chosen one answered, since that failed."""
        if self.escalated_from is not None:
            return False
        if self.clarify or self.model != self.decision.model:
            return not self.clarify
        return any(a.model == self.model and a.think != self.think for a in self.attempts if not a.ok)

    @property
    def adapted(self) -> tuple[str, ...]:
        """Return the names of what was changed in the request for the model that answered."""
        return self.served_attempt.adapted if self.served_attempt else ()

    @property
    def served_attempt(self) -> Attempt | None:
        """Return the attempt whose answer this is: the last one that gave one; None for a cached answer."""
        answered = [attempt for attempt in self.attempts if attempt.ok and not attempt.unused] or self.attempts
        return answered[-1] if answered else None

    @property
    def prompt_cut(self) -> bool:
        """Whether the model that answered saw only the end of the prompt: it is longer than the model's window."""
        return PROMPT_CUT in self.adapted

    @property
    def empty(self) -> bool:
        """Whether no model gave an answer: the response holds neither visible text nor a tool call."""
        return is_empty(self.reply)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("reply", "response"):  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.response, name)

    def __getitem__(self, key: str) -> Any:
        return self.response[key]

    def __contains__(self, key: str) -> bool:
        return key in self.response

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key of the response."""
        return self.response.get(key, default)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.response)


def response_of(reply: Reply) -> ChatResponse:
    """Return a reply as the ollama client gives it, a copy that is the caller's own."""
    try:
        return ChatResponse.model_validate(copy.deepcopy(dict(reply.wire)))
    except ValueError:  # an optional field has a form that the client does not read
        parts = {"content": reply.content, "thinking": reply.thinking or None, "tool_calls": reply.tool_calls or None}
        message = ollama.Message.model_validate({"role": "assistant", **copy.deepcopy(parts)})
        return ChatResponse(
            model=reply.model, message=message, done=reply.done, done_reason=reply.done_reason,
            prompt_eval_count=reply.prompt_tokens, eval_count=reply.output_tokens,
        )  # fmt: skip


def is_empty(reply: Reply) -> bool:
    """Return whether a whole reply is empty: neither visible text nor a tool call."""
    return not reply.tool_calls and not _is_visible(reply.content)


def says_something(part: Reply) -> bool:
    """Return whether a part of a stream has content to pass on: visible text, a tool call or thinking."""
    return bool(part.thinking) or not is_empty(part)


def may_be_empty(options: Mapping[str, Any] | None) -> bool:
    """Return whether the caller asked for no output."""
    return (options or {}).get("num_predict") == 0


def _is_visible(text: str) -> bool:
    return any(not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf") for char in text)
