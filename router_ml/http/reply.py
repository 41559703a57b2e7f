"""A model's answer in plain values, which every API formats in its own way."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DURATIONS = (
    "total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]
    id: str


@dataclass(frozen=True, slots=True)
class Piece:
    """What one part of an answer says. The figures are there in the last part only."""

    content: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()
    done_reason: str | None = None
    figures: Mapping[str, int] = field(default_factory=dict)  # nanoseconds and counts, by Ollama's names

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens; 0 if the server did not report them."""
        return self.figures.get("prompt_eval_count", 0)

    @property
    def output_tokens(self) -> int:
        """Output tokens; 0 if the server did not report them."""
        return self.figures.get("eval_count", 0)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request in the gateway's form, whichever API received it."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    stream: bool = False
    think: bool | str | None = None
    format: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    session_id: str | None = None
    user_id: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `Gateway.achat`."""
        optional = {
            "tools": self.tools, "think": self.think, "format": self.format, "options": self.options,
            "keep_alive": self.keep_alive, "logprobs": self.logprobs, "top_logprobs": self.top_logprobs,
        }  # fmt: skip
        given = {name: value for name, value in optional.items() if value is not None and value not in ([], {})}
        return {"messages": self.messages, **given}


def piece_of(response: Any) -> Piece:
    """Return the plain form of a chat response, or of a part of one."""
    message = response.message
    calls = tuple(_call(call) for call in message.tool_calls or ())
    figures = {name: value for name in _DURATIONS if (value := getattr(response, name, None)) is not None}
    return Piece(
        content=message.content or "",
        thinking=getattr(message, "thinking", None) or "",
        calls=calls,
        logprobs=tuple(_plain(entry) for entry in getattr(response, "logprobs", None) or ()),
        done_reason=getattr(response, "done_reason", None),
        figures=figures,
    )


def piece_of_wire(wire: Mapping[str, Any]) -> Piece:
    """Return the plain form of an object of `/api/chat`."""
    message = wire.get("message") or {}
    return Piece(
        content=message.get("content") or "",
        thinking=message.get("thinking") or "",
        calls=tuple(_wire_call(call) for call in message.get("tool_calls") or ()),
        logprobs=tuple(wire.get("logprobs") or ()),
        done_reason=wire.get("done_reason"),
        figures={name: wire[name] for name in _DURATIONS if wire.get(name) is not None},
    )


def _wire_call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    return ToolCall(function["name"], function.get("arguments") or {}, call.get("id") or _call_id())


def _call_id() -> str:
    return f"call_{secrets.token_hex(4)}"


def _call(call: Any) -> ToolCall:
    return ToolCall(call.function.name, dict(call.function.arguments or {}), getattr(call, "id", None) or _call_id())


def _plain(entry: Any) -> Mapping[str, Any]:
    return entry.model_dump(exclude_none=True) if hasattr(entry, "model_dump") else dict(entry)
