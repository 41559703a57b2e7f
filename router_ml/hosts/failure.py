"""What went wrong with one call, in words the fallback chain can act on."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import httpx
import ollama
import pydantic

Kind: TypeAlias = Literal[
    "refused",  # nobody listens
    "connection",  # broken off
    "timeout",
    "cold_timeout",  # the time went into loading
    "cut_short",  # the deadline left it less time than it usually needs
    "server_error",
    "busy",  # the server's own queue is full
    "missing",  # the model is not there
    "rejected",  # this model cannot take this request; another may
    "invalid",  # no model can take this request
    "malformed",
    "wrong_model",
    "empty",
    "shed",  # our own queue
    "open",  # circuit breaker
    "absent",  # known not to be there: not called
]

_BLAMELESS: frozenset[Kind] = frozenset(
    {"cold_timeout", "cut_short", "busy", "missing", "rejected", "invalid", "empty", "shed", "open", "absent"}
)
_INVALID = re.compile(r'option "?\w+"? must be of type|invalid option|invalid format|missing request body|invalid role')
_UNSUPPORTED = re.compile(r"does not support (tools|thinking|chat|vision)")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt."""

    kind: Kind
    message: str
    status: int | None = None
    unsupported: str | None = None  # the capability the server says the model lacks
    retry_after_s: float | None = None

    @property
    def blames_model(self) -> bool:
        """Whether it counts against the circuit breaker and the success rate of this model on this host."""
        return self.kind not in _BLAMELESS

    @property
    def called(self) -> bool:
        """Whether the server was called at all."""
        return self.kind not in ("shed", "open", "absent")

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class BadAnswer(Exception):
    """A reply that is none: empty, or from another model."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def classify(error: BaseException, cold: bool = False) -> Failure:
    """The failure an exception of the client stands for; `cold`: the model was not in memory when we called."""
    if isinstance(error, BadAnswer):
        return Failure(error.kind, str(error))
    if isinstance(error, ollama.ResponseError):
        return _from_response(error)
    if isinstance(error, asyncio.TimeoutError | TimeoutError | httpx.TimeoutException):
        if isinstance(error, httpx.ConnectTimeout):
            return Failure("refused", "the host does not take connections")
        return Failure("cold_timeout" if cold else "timeout", "no answer in time")
    if isinstance(error, httpx.ConnectError) or type(error) is ConnectionError:
        return Failure("refused", "the host refuses connections")
    if isinstance(error, httpx.TransportError | OSError):
        return Failure("connection", f"the connection broke ({type(error).__name__})")
    if isinstance(error, json.JSONDecodeError | pydantic.ValidationError | TypeError | AttributeError | ValueError):
        return Failure("malformed", f"the reply is no chat answer ({type(error).__name__})")
    return Failure("connection", f"{type(error).__name__}: {error}")


def _from_response(error: ollama.ResponseError) -> Failure:
    status, message = error.status_code, str(error.error)[:500]
    unsupported = _UNSUPPORTED.search(message)
    if status == 404:
        return Failure("missing", message, status)
    if status == 503 or status == 429:
        return Failure("busy", message, status, retry_after_s=1.0)
    if _INVALID.search(message):
        return Failure("invalid", message, status)
    if 400 <= status < 500:
        return Failure("rejected", message, status, unsupported.group(1) if unsupported else None)
    return Failure("server_error", message, status if status > 0 else None)
