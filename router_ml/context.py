"""Turns the context a caller gives (a dictionary, or None) into a frozen `Context`.

Turns may be strings ("user: ..." or bare) or `{"role", "content"}`; tools may be names, JSON schemas in the OpenAI
form (`{"type": "function", "function": {...}}`) or bare ones (`{"name", "description", "parameters"}`).
Turns with images (`images`, as Ollama has them, or `image_url` parts) need a model that can see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

from router_ml.errors import ContextError
from router_ml.suggestions import warn_of_slips
from router_ml.types import EMPTY_CONTEXT, Context, Parameter, Tool, Turn

_KNOWN = frozenset({
    "tools", "n_tools", "history", "attachment", "session_id", "latency_budget_s", "prompt_tokens", "has_images",
})  # fmt: skip
_HEEDED = _KNOWN | {"user_id", "last_model"}  # the gateway and the coordinator read these
_TOOL_NUMBERS = ("n_parameters", "n_required", "schema_chars")
_IMAGE_PARTS = frozenset({"image", "image_url", "input_image"})
_TURN_KEYS = {"role", "content", "text"}
_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}
MAX_PARAMETERS, MAX_DEPTH = 128, 4  # of one tool; what is beyond still counts in the length of its schema
MAX_SECONDS = 1e9
MAX_COUNT = 10**12  # more tools or tokens than this is a mistake
_KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".webp", ".heic", "photo", "screenshot", "picture", "image"),
    "audio": (".mp3", ".wav", ".m4a", ".ogg", "voice memo", "recording", "audio"),
}


def parse_context(raw: Context | Mapping[str, Any] | None) -> Context:
    """The frozen form of a context.

    Raises `ContextError`, whose `field` names the key that has the wrong shape."""
    if raw is None:
        return EMPTY_CONTEXT
    if isinstance(raw, Context):
        return raw
    if not isinstance(raw, Mapping):
        raise ContextError(f"context must be a dictionary or None, found {type(raw).__name__}")
    if not raw:
        return EMPTY_CONTEXT
    tools = tuple(_tool(item) for item in _sequence(raw, "tools"))
    try:
        attachment, kind = _attachment(raw.get("attachment"))
    except RecursionError as error:
        raise ContextError("attachment is a list that contains itself", "attachment") from error
    extra = {k: v for k, v in raw.items() if k not in _KNOWN}
    if extra:
        warn_of_slips(extra, _HEEDED, "context")
    return Context(
        tools=tools,
        n_tools=max(len(tools), _count(raw, "n_tools") or 0),
        history=tuple(_turn(item) for item in _sequence(raw, "history")),
        attachment=attachment,
        attachment_kind=kind,
        session_id=None if raw.get("session_id") is None else str(raw["session_id"]),
        latency_budget_s=_seconds(raw, "latency_budget_s"),
        prompt_tokens=_count(raw, "prompt_tokens"),
        extra=extra,
        has_images=bool(raw.get("has_images")) or any(shows_image(item) for item in raw.get("history") or ()),
    )


def context_row(context: Context) -> dict[str, Any]:
    """What a router reads of a context, JSON-ready, in the form that `parse_context` takes back; the session and
    unknown keys are left out."""
    row: dict[str, Any] = {
        "history": [turn._asdict() if turn.role else turn.content for turn in context.history],
        "tools": [tool._asdict() for tool in context.tools],
        "n_tools": context.n_tools if context.n_tools != len(context.tools) else 0,
        "attachment": _attachment_row(context),
        "has_images": context.has_images,
        "latency_budget_s": context.latency_budget_s,
        "prompt_tokens": context.prompt_tokens,
    }
    return {key: value for key, value in row.items() if value or (key == "prompt_tokens" and value is not None)}


def _attachment_row(context: Context) -> Any:
    """Its name, with its kind where the name alone does not tell."""
    if _attachment(context.attachment)[1] == context.attachment_kind:
        return context.attachment
    return {"name": context.attachment, "type": context.attachment_kind}


def shows_image(turn: Any) -> bool:
    """Whether a message holds an image: `images`, or a part of its content that is one."""
    images, content = _part(turn, "images"), _part(turn, "content")
    if isinstance(images, Sized) and len(images):
        return True
    if isinstance(content, str | bytes) or not isinstance(content, Sequence):
        return False
    return any(isinstance(part, Mapping) and _is_image(part) for part in content)


def _is_image(part: Mapping[str, Any]) -> bool:
    return part.get("type") in _IMAGE_PARTS or not _IMAGE_PARTS.isdisjoint(part)


def _part(turn: Any, key: str) -> Any:
    if isinstance(turn, str | tuple | list):
        return turn[1] if key == "content" and isinstance(turn, tuple | list) and len(turn) == 2 else None
    return turn.get(key) if isinstance(turn, Mapping) else getattr(turn, key, None)


def _sequence(raw: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = raw.get(key)
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise ContextError(f"{key} must be a list, found {type(value).__name__}", key)
    return value


def _turn(item: Any) -> Turn:
    if isinstance(item, str):
        prefix, _, spoken = item.partition(": ")
        role = _SPEAKERS.get(prefix.lower()) if spoken else None
        return Turn(role, spoken) if role else Turn("", item)  # who spoke is not said
    if isinstance(item, Mapping) and not item.keys().isdisjoint(_TURN_KEYS):
        return Turn(str(item.get("role") or "user"), _content_text(item.get("content", item.get("text"))))
    if isinstance(item, tuple | list) and len(item) == 2 and all(isinstance(part, str) for part in item):
        return Turn(item[0], item[1])
    speaker = getattr(item, "role", getattr(item, "type", None))
    if isinstance(speaker, str) and hasattr(item, "content"):  # message objects; one that only calls tools has no text
        return Turn(_SPEAKERS.get(speaker, speaker), _content_text(item.content))
    raise ContextError("each turn of history must be a string or have a role and content", "history")


def _content_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, bytes | bytearray):
        return content.decode("utf-8", "replace")
    if isinstance(content, Sequence):  # content parts, as in the OpenAI chat format
        return " ".join(_content_text(part.get("text")) if isinstance(part, Mapping) else str(part) for part in content)
    return str(content)


def _tool(item: Any) -> Tool:
    if isinstance(item, Tool):
        return item
    if isinstance(item, str):
        return Tool(item)
    if hasattr(item, "model_dump"):  # pydantic, as the ollama client uses
        item = item.model_dump(exclude_none=True)
    if not isinstance(item, Mapping):
        raise ContextError(f"each tool must be a name or a JSON schema, found {type(item).__name__}", "tools")
    inner = item.get("function")
    function: Mapping[str, Any] = inner if isinstance(inner, Mapping) else item
    name = function.get("name")
    if not isinstance(name, str):
        raise ContextError("a tool schema must have a name", "tools")
    return _tool_from_row(name, item) if "schema_chars" in item else _tool_from_schema(name, function)


def _tool_from_row(name: str, row: Mapping[str, Any]) -> Tool:
    """A tool as `context_row` writes it: summed up, without its schema."""
    try:
        numbers = {key: _count(row, key) or 0 for key in _TOOL_NUMBERS}
    except ContextError as error:
        raise ContextError(f"tool {name!r:.60}: {error}", "tools") from error
    words = {key: str(row.get(key) or "") for key in ("description", "parameter_text")}
    parameters = tuple(_parameter_from_row(name, item) for item in _sequence(row, "parameters")[:MAX_PARAMETERS])
    return Tool(name=name, parameters=parameters, **words, **numbers)  # type: ignore[arg-type]


def _parameter_from_row(tool: str, row: Any) -> Parameter:
    kinds = (str, str, str, bool, int, bool, bool)
    if isinstance(row, list | tuple) and 1 <= len(row) <= len(kinds) and all(map(isinstance, row, kinds)):
        return Parameter(*row)
    raise ContextError(f"tool {tool!r:.60}: a parameter must be a list of {', '.join(Parameter._fields)}", "tools")


def _tool_from_schema(name: str, function: Mapping[str, Any]) -> Tool:
    parameters = function.get("parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    properties = parameters.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    required = parameters.get("required")
    described = (
        f"{key}: {value.get('description', '')}" if isinstance(value, Mapping) else str(key)
        for key, value in properties.items()
    )
    schema_chars = _schema_chars(name, function)  # first: it refuses a schema without end
    return Tool(
        name=name,
        description=str(function.get("description") or ""),
        n_parameters=len(properties),
        n_required=len(required) if isinstance(required, Sequence) and not isinstance(required, str) else 0,
        schema_chars=schema_chars,
        parameter_text="; ".join(described),
        parameters=tuple(islice(_parameters(parameters), MAX_PARAMETERS)),
    )


def _parameters(schema: Mapping[str, Any], depth: int = 1) -> Iterator[Parameter]:
    """Every property of a schema, each followed by those of its own fields and items."""
    properties, required = schema.get("properties"), schema.get("required")
    required = required if isinstance(required, Sequence) and not isinstance(required, str) else ()
    for name, found in properties.items() if isinstance(properties, Mapping) else ():
        declared = found if isinstance(found, Mapping) else {}
        yield Parameter(
            str(name),
            _type(declared.get("type")),
            str(declared.get("description") or ""),
            name in required,
            depth,
            "default" in declared,
            bool(declared.get("enum")),
        )
        if depth < MAX_DEPTH:
            for inner in (declared, declared.get("items")):
                if isinstance(inner, Mapping):
                    yield from _parameters(inner, depth + 1)


def _type(declared: Any) -> str:
    """The type a schema gives; of several the first that is not null."""
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        declared = next((name for name in declared if name != "null"), "")
    return str(declared or "")


def _schema_chars(name: str, function: Mapping[str, Any]) -> int:
    try:
        return len(json.dumps(function, default=str, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise ContextError(f"the schema of tool {name!r:.60} is no JSON ({error})", "tools") from error


def _attachment(value: Any) -> tuple[str, str]:
    if value is None or value is False or value == "":
        return "", ""
    if value is True:
        return "file", "document"
    if isinstance(value, Mapping):
        name = str(value.get("name") or value.get("filename") or value.get("description") or "file")
        mime = str(value.get("type") or value.get("mime_type") or "")
        return name, _attachment_kind(f"{name} {mime}")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        parts = [part for part in map(_attachment, value) if part[0]]
        kinds = {kind for _, kind in parts}  # one image among documents still has to be seen
        return ", ".join(name for name, _ in parts), next(
            (kind for kind in _KINDS if kind in kinds), "document"
        ) if parts else ""
    return str(value), _attachment_kind(str(value))


def _attachment_kind(text: str) -> str:
    lowered = text.lower()
    return next((kind for kind, marks in _KINDS.items() if any(mark in lowered for mark in marks)), "document")


def _count(raw: Mapping[str, Any], key: str) -> int | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_COUNT:
        raise ContextError(f"{key} must be a number, 0 or more, found {value!r:.60}", key)
    return int(value)


def _seconds(raw: Mapping[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ContextError(f"{key} must be a number of seconds above 0, found {value!r:.60}", key)
    return float(value)
