"""One chat request, and how it is fitted to the model that was chosen."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ollama

from router_ml.catalogue import Model
from router_ml.errors import QueryError

# A change in one of these makes the server load the model anew (facts of Ollama v0.33).
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the caller wants, in the ollama client's words, the model left out."""

    messages: tuple[Any, ...]
    tools: tuple[Any, ...] = ()
    think: bool | str | None = None
    format: Any = None
    options: Mapping[str, Any] | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def text(self) -> str:
        """The latest words of the user: what the router reads."""
        spoken = (m for m in reversed(self.messages) if part(m, "role") == "user")
        return next((str(part(m, "content") or "") for m in spoken), "")

    @property
    def history(self) -> tuple[Any, ...]:
        """The turns before those words, oldest first."""
        last = max((i for i, m in enumerate(self.messages) if part(m, "role") == "user"), default=0)
        return self.messages[:last]

    @property
    def has_images(self) -> bool:
        return any(part(message, "images") for message in self.messages)

    @property
    def prompt_tokens(self) -> int:
        """A rough count: four characters to a token, tool schemas included."""
        chars = sum(len(str(part(m, "content") or "")) for m in self.messages)
        tools = sum(len(json.dumps(plain(tool), default=str)) for tool in self.tools)
        return (chars + tools) // 4 + 8


def part(message: Any, key: str) -> Any:
    """One part of a message, be it a mapping or an object."""
    return message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)


def plain(value: Any) -> Any:
    """A JSON-ready form of a message or tool."""
    if hasattr(value, "model_dump"):
        return value.model_dump(exclude_none=True)
    if callable(value):
        return {"name": getattr(value, "__name__", "tool"), "description": (value.__doc__ or "").strip()}
    return value


def checked(request: ChatRequest) -> ChatRequest:
    """The request itself. Raises `QueryError` where it could be sent to no model."""
    if not request.messages:
        raise QueryError("messages must hold at least one message")
    for message in request.messages:
        if not isinstance(part(message, "role"), str):
            raise QueryError("each message must be a mapping or an object with a role and content")
        if isinstance(message, Mapping):
            _valid(ollama.Message, message, "a message")
    for tool in request.tools:
        if isinstance(tool, Mapping):
            _valid(ollama.Tool, tool, "a tool")
        elif not (callable(tool) or hasattr(tool, "model_dump")):
            raise QueryError(f"each tool must be a JSON schema or a function, found {type(tool).__name__}")
    return request


def _valid(kind: Any, value: Mapping[str, Any], what: str) -> None:
    """What the client would refuse is the caller's mistake; sent on, it would be blamed on the models."""
    try:
        kind.model_validate(value)
    except ValueError as error:
        first: list[Any] = getattr(error, "errors", list)()[:1]
        where = ".".join(str(step) for step in first[0]["loc"]) if first else "?"
        raise QueryError(f"{what} is not what Ollama takes: {where}: {first[0]['msg'] if first else error}") from error


class OptionPins:
    """The one option set per model that keeps it from being reloaded.

    Configured values win. Otherwise what a model was last loaded with stays, except that `num_ctx` may grow (one
    reload, and longer prompts fit from then on). Only options a model has answered with are kept: a value it cannot
    run with harms nobody but its caller."""

    def __init__(self, configured: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._configured = {model: dict(options) for model, options in (configured or {}).items()}
        self._pinned: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def fit(self, model: str, options: Mapping[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The options to send, and the names of those that differ from what the caller asked for."""
        asked = dict(options or {})
        configured = self._configured.get(model, {})
        with self._lock:
            pinned = dict(self._pinned.get(model, {}))
        if _larger(asked.get("num_ctx"), pinned.get("num_ctx")):
            del pinned["num_ctx"]
        fixed = {key: value for key, value in configured.items() if key in RUNNER_OPTIONS}
        sent = {**configured, **asked, **pinned, **fixed}
        return sent, tuple(key for key in RUNNER_OPTIONS if key in asked and asked[key] != sent.get(key))

    def worked(self, model: str, sent: Mapping[str, Any] | None) -> None:
        """Keeps the runner options a model has just answered with."""
        with self._lock:
            pinned = self._pinned.setdefault(model, {})
            for key in RUNNER_OPTIONS:
                value = (sent or {}).get(key)
                if value is not None and (key not in pinned or (_larger(value, pinned[key]) and key == "num_ctx")):
                    pinned[key] = value

    def of(self, model: str) -> dict[str, Any]:
        """The runner options a load of this model must use."""
        with self._lock:
            both = {**self._pinned.get(model, {}), **self._configured.get(model, {})}
        return {key: value for key, value in both.items() if key in RUNNER_OPTIONS}


def adapt(
    request: ChatRequest,
    model: Model | None,
    capabilities: frozenset[str] | None,
    pins: OptionPins,
    name: str,
    keep_alive: float | str | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The client's keyword arguments for one model, and what had to be changed for it.

    `capabilities` is what the server says (None: it did not); the catalogue's word counts where it says nothing."""
    changed: list[str] = []
    options, moved = pins.fit(name, request.options)
    changed.extend(moved)
    arguments: dict[str, Any] = {"messages": list(request.messages)}
    if request.tools:
        if can(model, capabilities, "tools"):
            arguments["tools"] = list(request.tools)
        else:
            changed.append("tools")
    if request.think is not None:
        if request.think is False or can(model, capabilities, "thinking"):
            arguments["think"] = request.think
        else:
            changed.append("think")
    extras = {
        "format": request.format,
        "keep_alive": keep_alive if request.keep_alive is None else request.keep_alive,
        "logprobs": request.logprobs,
        "top_logprobs": request.top_logprobs,
        "options": options or None,
    }
    arguments.update({key: value for key, value in extras.items() if value is not None})
    return arguments, tuple(changed)


def can(model: Model | None, capabilities: frozenset[str] | None, capability: str) -> bool:
    """Whether a model has a capability, as far as anybody knows."""
    if capabilities is not None:
        return capability in capabilities
    return model is None or model.can(capability)


def _larger(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float) and one > other
