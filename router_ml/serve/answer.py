"""What a request gave: the answer, who gave it, and everything that was tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ollama

from router_ml.hosts.failure import Failure
from router_ml.types import Decision

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of an answer went, in seconds. None: the server did not say."""

    total_s: float  # the whole request as the caller saw it
    queue_s: float | None = None  # our queue and the server's
    load_s: float | None = None  # loading the model, waits for an eviction included
    prompt_eval_s: float | None = None  # cached prompt tokens take none
    eval_s: float | None = None
    decide_s: float = 0.0
    first_token_s: float | None = None  # streams: from the start of the request to the first byte passed on


@dataclass(frozen=True, slots=True)
class Attempt:
    """One model that was tried, or passed over."""

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
        return self.failure is None

    @property
    def error(self) -> str | None:
        """The failure in one line, or None."""
        return None if self.failure is None else str(self.failure)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answered request. Code written for the ollama client's `ChatResponse` goes on working: every attribute
    and key of the response can be read from the answer itself."""

    response: ollama.ChatResponse
    decision: Decision
    model: str  # the catalogue's name of the model that answered; "" where the user is asked back
    timings: Timings
    attempts: tuple[Attempt, ...] = ()
    cached: bool = False
    host: str | None = None
    clarify: bool = False  # no model was called: the message asks the user what is meant

    @property
    def message(self) -> ollama.Message:
        """The assistant's message."""
        return self.response.message

    @property
    def content(self) -> str:
        """The text of the message; "" where there is none."""
        return self.response.message.content or ""

    @property
    def fallback(self) -> bool:
        """Whether a model other than the chosen one answered."""
        return not self.clarify and self.model != self.decision.model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "response":  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.response, name)

    def __getitem__(self, key: str) -> Any:
        return self.response[key]

    def __contains__(self, key: str) -> bool:
        return key in self.response

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the response."""
        return self.response.get(key, default)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.response)


def server_queue_s(response: ollama.ChatResponse) -> float | None:
    """Seconds the server let the request wait: what its total holds beyond load, prompt and generation."""
    if response.total_duration is None:
        return None
    parts = (response.load_duration, response.prompt_eval_duration, response.eval_duration)
    return max(0.0, (response.total_duration - sum(part or 0 for part in parts)) * _NS)


def seconds(nanoseconds: int | None) -> float | None:
    """Ollama's nanoseconds in seconds."""
    return None if nanoseconds is None else nanoseconds * _NS
