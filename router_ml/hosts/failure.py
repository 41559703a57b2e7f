"""What went wrong with one call, in terms the fallback runner can act on."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import httpx

Kind: TypeAlias = Literal[
    "refused",  # the host takes no connections
    "connection",  # the connection broke
    "timeout",
    "cold_timeout",  # the time limit passed while the model was loading
    "cut_short",  # the deadline left it less time than it usually needs
    "server_error",
    "busy",  # the server's own queue is full
    "missing",  # the model is not installed
    "rejected",  # this model cannot take this request; another may
    "invalid",  # no model can take this request
    "malformed",
    "wrong_model",
    "empty",  # the reply holds nothing for the user
    "shed",  # the queue of the gateway is full
    "open",  # circuit breaker
    "absent",  # known not to be installed: not called
    "forbidden",  # not on the policy's list of models
]

_BLAMELESS: frozenset[Kind] = frozenset(
    {
        *("refused", "cold_timeout", "cut_short", "busy", "missing", "rejected", "invalid"),
        *("empty", "shed", "open", "absent", "forbidden"),
    }
)
_NOT_CALLED: frozenset[Kind] = frozenset({"shed", "open", "absent", "forbidden"})
_UNSUPPORTED = re.compile(r"does not support (tools|thinking|chat|vision)")
# A 400 that says this is about the model that was asked; any other is about the request.
_ABOUT_MODEL = re.compile(r"does not support|\bmodel\b|context|exceed|too long|\bmemory\b|\btemplate\b", re.IGNORECASE)
_INVALID = re.compile(r'option "?\w+"? must be of type|invalid option|invalid format|missing request body|invalid role')
_MAX_MESSAGE_CHARS = 500


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
        return self.kind not in _NOT_CALLED

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class HostError(Exception):
    """A host did not answer a request, or its reply is not an answer; `failure` says why."""

    def __init__(
        self,
        kind: Kind,
        message: str,
        status: int | None = None,
        unsupported: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message[:_MAX_MESSAGE_CHARS], status, unsupported, retry_after_s)

    @classmethod
    def of(cls, failure: Failure) -> HostError:
        """Return the error that carries a failure."""
        error = cls(failure.kind, failure.message)
        error.failure = failure
        return error

    @property
    def kind(self) -> Kind:
        """Return the kind of the failure."""
        return self.failure.kind


BadAnswer = HostError  # its name before the hosts had errors of their own


def classify(error: BaseException, cold: bool = False) -> Failure:
    """Return the failure an exception stands for; `cold`: the model was not in memory when it was called."""
    if isinstance(error, HostError):
        return error.failure
    status = getattr(error, "status_code", None)
    if isinstance(status, int):  # `ollama.ResponseError`
        return failure_of(status, str(getattr(error, "error", error)))
    if isinstance(error, asyncio.TimeoutError | TimeoutError | httpx.TimeoutException):
        if isinstance(error, httpx.ConnectTimeout):
            return Failure("refused", "the host does not take connections")
        return Failure("cold_timeout" if cold else "timeout", "no answer in time")
    if isinstance(error, httpx.ConnectError) or type(error) is ConnectionError:
        return Failure("refused", "the host refuses connections")
    if isinstance(error, httpx.TransportError | OSError):
        return Failure("connection", f"the connection broke ({type(error).__name__})")
    if isinstance(error, TypeError | AttributeError | ValueError | RecursionError):
        return Failure("malformed", f"the reply is not a chat answer ({type(error).__name__})")
    return Failure("connection", f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS])


def failure_of(status: int, message: str) -> Failure:
    """Return what an HTTP status other than 200 and the server's message stand for; -1: an error within a stream."""
    message = message[:_MAX_MESSAGE_CHARS]
    if status == 404:
        return Failure("missing", message, status)
    if status in (429, 503):
        return Failure("busy", message, status, retry_after_s=1.0)
    if _INVALID.search(message):
        return Failure("invalid", message, status)
    if status in (400, 413, 422) and not _ABOUT_MODEL.search(message):
        return Failure("invalid", message, status)
    if 400 <= status < 500:
        unsupported = _UNSUPPORTED.search(message)
        return Failure("rejected", message, status, unsupported.group(1) if unsupported else None)
    return Failure("server_error", message, status if status > 0 else None)
