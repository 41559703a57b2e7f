"""What a request gave: the answer, which model gave it, and everything that was tried.

What counts as an answer is defined here alone: visible text or a tool call. White space, thoughts without either, and
nothing at all are an empty answer. A model may give one without any fault of its host (the server drops calls of tools
that were not offered), so it costs one fallback and blames nobody.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ollama

from router_ml.hosts.failure import Failure
from router_ml.types import Decision

_NS = 1e-9


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

    @property
    def ok(self) -> bool:
        """Whether it gave an answer."""
        return self.failure is None

    @property
    def error(self) -> str | None:
        """Return the failure in one line, or None."""
        return None if self.failure is None else str(self.failure)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request. Code written for the ollama client's `ChatResponse` keeps working: every attribute and key
    of the response can be read from the answer itself."""

    response: ollama.ChatResponse
    decision: Decision
    model: str  # the catalogue's name of the model that answered; "" for a clarifying question
    timings: Timings
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False
    host: str | None = None
    clarify: bool = False  # no model was called: the message is a clarifying question

    @property
    def message(self) -> ollama.Message:
        """Return the assistant's message."""
        return self.response.message

    @property
    def content(self) -> str:
        """Return the text of the message; "" where there is none."""
        return self.response.message.content or ""

    @property
    def fallback(self) -> bool:
        """Whether a model other than the chosen one answered."""
        return not self.clarify and self.model != self.decision.model

    @property
    def empty(self) -> bool:
        """Whether no model gave an answer: the response holds neither visible text nor a tool call."""
        return is_empty(self.response)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "response":  # not there yet while a copy is being made
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


def is_empty(response: ollama.ChatResponse) -> bool:
    """Whether a whole response is no answer: neither visible text nor a tool call."""
    return not response.message.tool_calls and not _is_visible(response.message.content or "")


def says_something(part: ollama.ChatResponse) -> bool:
    """Whether a part of a stream is worth passing on at once: visible text, a tool call or thoughts."""
    return bool(part.message.thinking) or not is_empty(part)


def may_be_empty(options: Mapping[str, Any] | None) -> bool:
    """Whether the caller asked for no output."""
    return (options or {}).get("num_predict") == 0


def _is_visible(text: str) -> bool:
    return any(not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf") for char in text)


def server_queue_s(response: ollama.ChatResponse) -> float | None:
    """Return the seconds the server let the request wait: its total less load, prompt and generation."""
    if response.total_duration is None:
        return None
    parts = (response.load_duration, response.prompt_eval_duration, response.eval_duration)
    return max(0.0, (response.total_duration - sum(part or 0 for part in parts)) * _NS)


def seconds(nanoseconds: int | None) -> float | None:
    """Return Ollama's nanoseconds in seconds."""
    return None if nanoseconds is None else nanoseconds * _NS
