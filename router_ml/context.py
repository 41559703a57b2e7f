"""Read the context a caller gives (a dictionary, or None) into a frozen `Context`.

Turns of `history` may have every form that `router_ml.messages` reads, tools every form that `router_ml.tools` reads.
Turns with images (`images`, as Ollama has them, or `image_url` parts) need a model that can see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from router_ml.arm import EFFORTS, is_think
from router_ml.errors import ContextError, InputError, QueryError
from router_ml.messages import (
    Conversation,
    Message,
    alternating,
    clean_text,
    estimate_tokens,
    read_history,
    read_messages,
    turn_of,
)
from router_ml.numbers import count, seconds
from router_ml.suggestions import warn_of_typos
from router_ml.tools import read_tools
from router_ml.types import EMPTY_CONTEXT, Context, Think

_KNOWN = frozenset({
    "tools", "n_tools", "history", "attachment", "session_id", "latency_budget_s", "prompt_tokens", "has_images",
    "think",
})  # fmt: skip
_READ = _KNOWN | {"user_id", "last_model"}  # the gateway and the coordinator read these
MAX_TURNS, MAX_ATTACHMENTS = 100_000, 100_000
_KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", "photo", "screenshot", "picture", "image"),
    "audio": (".mp3", ".wav", ".m4a", ".ogg", "voice memo", "recording", "audio"),
}


def parse_context(raw: Context | Mapping[str, Any] | None) -> Context:
    """Return the frozen form of a context.

    Raises `ContextError`, whose `field` names the key that has the wrong shape or is too large."""
    try:
        return _parsed(raw)
    except InputError:
        raise
    except Exception as error:  # of an object that cannot even be looked at
        raise ContextError(
            f"the context cannot be read ({type(error).__name__}); give strings, numbers, lists and dictionaries"
        ) from error


def _parsed(raw: Context | Mapping[str, Any] | None) -> Context:
    if raw is None:
        return EMPTY_CONTEXT
    if isinstance(raw, Context):
        return raw if all(turn.role for turn in raw.history) else _with_roles(raw)
    if not isinstance(raw, Mapping):
        raise ContextError(f"context must be a dictionary or None, found {type(raw).__name__}")
    if not raw:
        return EMPTY_CONTEXT
    tools = read_tools(_sequence(raw, "tools"))
    history = _history(raw)
    attachment, kind = _attachment(raw.get("attachment"))
    extra = {k: v for k, v in raw.items() if k not in _KNOWN}
    if extra:
        warn_of_typos(extra, _READ, "context")
    return Context(
        tools=tools,
        n_tools=max(len(tools), count(raw, "n_tools") or 0),
        history=tuple(map(turn_of, history)),
        attachment=attachment,
        attachment_kind=kind,
        session_id=_identifier(raw, "session_id"),
        latency_budget_s=seconds(raw, "latency_budget_s"),
        prompt_tokens=count(raw, "prompt_tokens"),
        extra=extra,
        has_images=bool(raw.get("has_images")) or any(message.images for message in history),
        unread_tokens=int(sum(message.unread_tokens for message in history)),
        think=_think(raw),
    )


def conversation_context(
    conversation: Conversation, given: Context | Mapping[str, Any] | None = None, tools: Sequence[Any] = ()
) -> Context:
    """Return what the caller gave, filled up from the conversation and from the tools offered with it.

    Raises `ContextError` if what was given has the wrong shape."""
    context = parse_context(given)
    offered = context.tools or read_tools(tools)
    counted = estimate_tokens(conversation.query) + sum(estimate_tokens(turn.content) for turn in conversation.history)
    attached = bool(context.attachment)
    return replace(
        context,
        tools=offered,
        n_tools=max(context.n_tools, len(offered)),
        history=context.history or conversation.history,
        attachment=context.attachment if attached else conversation.attachment,
        attachment_kind=context.attachment_kind if attached else conversation.attachment_kind,
        has_images=context.has_images or conversation.has_images,
        unread_tokens=max(context.unread_tokens, int(conversation.tokens - counted)),
    )


def context_row(context: Context) -> dict[str, Any]:
    """Return what a router reads of a context, JSON-ready, in the form that `parse_context` takes back; the session and
    unknown keys are left out."""
    row: dict[str, Any] = {
        "history": [turn._asdict() if turn.role else turn.content for turn in context.history],
        "tools": [tool._asdict() for tool in context.tools],
        "n_tools": context.n_tools if context.n_tools != len(context.tools) else 0,
        "attachment": _attachment_row(context),
        "has_images": context.has_images,
        "latency_budget_s": context.latency_budget_s,
        "prompt_tokens": context.prompt_tokens,
        "think": context.think,
    }
    return {key: v for key, v in row.items() if v or (key in ("prompt_tokens", "think") and v is not None)}


def shows_image(turn: Any) -> bool:
    """Return whether a message holds an image."""
    try:
        return read_messages([turn]).has_images
    except QueryError:
        return False


def _with_roles(context: Context) -> Context:
    roles = alternating([turn.role for turn in context.history])
    turns = (turn._replace(role=role) for turn, role in zip(context.history, roles, strict=True))
    return replace(context, history=tuple(turns))


def _attachment_row(context: Context) -> Any:
    """Return the name of an attachment, with its kind if the name does not imply it."""
    if _attachment(context.attachment)[1] == context.attachment_kind:
        return context.attachment
    return {"name": context.attachment, "type": context.attachment_kind}


def _sequence(raw: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = raw.get(key)
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ContextError(f"{key} must be a list, found {type(value).__name__}", key)
    return value


def _think(raw: Mapping[str, Any]) -> Think | None:
    value = raw.get("think")
    if value is not None and not is_think(value):
        ways = ", ".join(map(str, EFFORTS))
        raise ContextError(f"think must be true, false, {ways} or None, found {value!r:.60}", "think")
    return value


def _history(raw: Mapping[str, Any]) -> list[Message]:
    turns = _sequence(raw, "history")
    if len(turns) > MAX_TURNS:
        raise ContextError(f"history has {len(turns):,} turns; give the last {MAX_TURNS:,} at most", "history")
    try:
        return read_history(turns)
    except QueryError as error:
        raise ContextError(f"history: {error}", "history") from error


def _identifier(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        raise ContextError(f"{key} must be a string or a number, found {type(value).__name__}", key)
    return None if value is None else clean_text(str(value))


def _attachment(value: Any) -> tuple[str, str]:
    """Return the name and the kind of what is attached; of several all names, and an image's kind before all."""
    if isinstance(value, str):
        return clean_text(value), _attachment_kind(value) if value else ""
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if len(value) > MAX_ATTACHMENTS:
            raise ContextError(f"{len(value):,} attachments are more than {MAX_ATTACHMENTS:,}", "attachment")
        parts = [part for part in map(_attached, value) if part[0]]
        kinds = {kind for _, kind in parts}  # one image among documents still has to be seen
        kind = next((kind for kind in _KINDS if kind in kinds), "document") if parts else ""
        return ", ".join(name for name, _ in parts), kind
    return _attached(value)


def _attached(value: Any) -> tuple[str, str]:
    if value is None or value is False or value == "":
        return "", ""
    if value is True:
        return "file", "document"
    if isinstance(value, Mapping):
        names = [value.get(key) for key in ("name", "filename", "description")]
        name = next((clean_text(part) for part in names if isinstance(part, str) and part), "file")
        mime = value.get("type") or value.get("mime_type")
        return name, _attachment_kind(f"{name} {mime}" if isinstance(mime, str) else name)
    if isinstance(value, Sequence | set) and not isinstance(value, str | bytes):
        raise ContextError("attachment must be a name, an object with a name, or a list of these", "attachment")
    return clean_text(str(value)), _attachment_kind(str(value))


def _attachment_kind(text: str) -> str:
    lowered = text.lower()
    return next((kind for kind, marks in _KINDS.items() if any(mark in lowered for mark in marks)), "document")
