"""Messages and tools as they are sent, whichever library made them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from router_ml.errors import QueryError
from router_ml.hosts.ollama_package import convert_function_to_tool, ollama
from router_ml.serve.encode import image_base64, json_ready

_TOOL_EXAMPLE = 'give a function with annotated parameters, or {"type": "function", "function": {"name": ..., ...}}'
_ROLES = {"human": "user", "ai": "assistant", "function": "tool"}
_SCHEMAS: WeakKeyDictionary[FunctionType, tuple[str, dict[str, Any]]] = WeakKeyDictionary()  # of functions as tools
_IMAGE_KINDS = ("image_url", "image", "input_image")
_UNSENT_KINDS = ("tool_use", "tool_call", "thinking", "reasoning", "redacted_thinking")


def part(message: Any, key: str) -> Any:
    """Return one part of a message, be it a mapping or an object; None if there is none."""
    return message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)


def items(values: Any, name: str) -> list[Any]:
    """Return the values as a list; none for None. Raises `QueryError` if they are not a list."""
    if values is None:
        return []
    if not isinstance(values, str | bytes | Mapping) and not hasattr(values, "model_dump"):
        try:
            return list(values)
        except TypeError:
            pass
    raise QueryError(f"{name} must be a list, found {type(values).__name__}")


def wire_message(message: Any, where: str) -> dict[str, Any]:
    """Return a message as the ollama client sends it: empty parts left out, images as base64.

    It may be a string, a pair (role, content), a mapping or an object (of ollama, OpenAI or LangChain); content may be
    a list of parts. Raises `QueryError` that names the part which cannot be sent."""
    if isinstance(message, str):
        message = {"role": "user", "content": message}
    elif isinstance(message, tuple | list) and len(message) == 2:
        message = dict(zip(("role", "content"), message, strict=True))
    role = part(message, "role") or part(message, "type")
    if not isinstance(role, str):
        raise QueryError(f"{where} is of type {type(message).__name__}; a message is a mapping with a role and content")
    content = part(message, "content")
    shown = items(part(message, "images"), f"{where}.images")
    images = [image_base64(image, f"{where}.images[{index}]") for index, image in enumerate(shown)]
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        images += _shown(content, where)
        content = " ".join(_texts(content))
    calls = [_call(call) for call in items(part(message, "tool_calls"), f"{where}.tool_calls")]
    name = part(message, "tool_name") or (part(message, "name") if role in ("tool", "function") else None)
    given = {"content": content, "thinking": part(message, "thinking"), "tool_name": name, "tool_calls": calls}
    ready = json_ready({key: value for key, value in given.items() if value is not None}, where)
    sent = valid(ollama.Message, {"role": _ROLES.get(role, role), **_filled(ready)}, where)
    return {**sent, "images": images} if images else sent


def wire_tool(tool: Any, where: str) -> dict[str, Any]:
    """Return a tool as it is sent: from a function, a JSON schema (bare or in the OpenAI form), `ollama.Tool`, or a
    tool of LangChain. Raises `QueryError` for anything else."""
    if hasattr(tool, "args_schema"):
        tool = _langchain_tool(tool)
    if isinstance(tool, ollama.Tool):
        tool = tool.model_dump(exclude_none=True, by_alias=True)
    if isinstance(tool, Mapping):
        schema = json_ready(tool, where)
        if "function" not in schema and "name" in schema:
            schema = {"type": "function", "function": schema}
        return _named(valid(ollama.Tool, schema, where), where)
    if not callable(tool):
        raise QueryError(f"{where} is of type {type(tool).__name__}; each tool must be a function or a JSON schema")
    return _named(_described(tool, where), where)


def _described(function: Any, where: str) -> dict[str, Any]:
    """Return the schema of a function; that of the same one is not made again, for it takes a millisecond."""
    parts = [getattr(function, name, None) for name in ("__name__", "__doc__", "__annotations__", "__defaults__")]
    cacheable = isinstance(function, FunctionType)
    known = _SCHEMAS.get(function) if cacheable else None
    if known is not None and known[0] == repr(parts):
        return known[1]
    schema = _converted(function, where)
    if cacheable:
        _SCHEMAS[function] = (repr(parts), schema)
    return schema


def _converted(function: Any, where: str) -> dict[str, Any]:
    try:
        converted = convert_function_to_tool(function)
    except Exception as error:  # its annotations may raise anything
        name = getattr(function, "__name__", type(function).__name__)
        raise QueryError(
            f"{where}: the function {name!r:.60} cannot be described ({type(error).__name__}): each parameter needs an "
            "annotation that has a JSON schema (str, int, list[str] ...); or give the schema itself"
        ) from error
    schema: dict[str, Any] = json_ready(converted, where)
    return schema


def valid(kind: Any, value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a value as the client sends it. Raises `QueryError` if the client would refuse it."""
    try:
        sent: dict[str, Any] = kind.model_validate(value).model_dump(exclude_none=True, by_alias=True)
    except ValueError as error:
        first: list[Any] = getattr(error, "errors", list)()[:1]
        steps = list(map(str, first[0]["loc"])) if first else []
        steps = [where, *steps] if where else steps[:1]  # of an argument, no names of a union's members
        reason = first[0]["msg"] if first else type(error).__name__
        raise QueryError(f"{'.'.join(filter(None, steps))[:200]} is not what Ollama takes: {reason}") from error
    return sent


def _filled(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value}


def _texts(content: Sequence[Any]) -> Iterator[str]:
    for piece in content:
        text = piece if isinstance(piece, str) else part(piece, "text")
        if isinstance(text, str):
            yield text


def _shown(content: Sequence[Any], where: str) -> Iterator[str]:
    """Yield the images among the parts of a content as base64; a URL there never names a file of this machine.

    Raises `QueryError` for other parts that hold no text."""
    for index, piece in enumerate(content):
        place = f"{where}.content[{index}]"
        kind = part(piece, "type")
        if isinstance(piece, str) or isinstance(part(piece, "text"), str) or kind in _UNSENT_KINDS:
            continue
        if kind not in _IMAGE_KINDS:
            raise QueryError(f"{place} ({kind!r:.40}) cannot be sent; only text and images can")
        found = part(piece, "image_url") or part(piece, "image") or part(piece, "data") or part(piece, "base64")
        source = part(piece, "source")
        image = part(found, "url") or part(source, "data") or found
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise QueryError(f"{place}: images are not fetched from URLs; give bytes or a data URL")
        yield image_base64(image, place, files=False)


def _call(call: Any) -> Any:
    """Return a tool call in Ollama's form; LangChain has the name and `args` in it, OpenAI arguments as JSON text."""
    function = part(call, "function") or {"name": part(call, "name"), "arguments": part(call, "args")}
    arguments = part(function, "arguments")
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # values that are not JSON are refused with their place
            arguments = json.loads(arguments or "{}")
    return {"function": {"name": part(function, "name"), "arguments": {} if arguments is None else arguments}}


def _langchain_tool(tool: Any) -> dict[str, Any]:
    """Return the schema of a tool of LangChain, which has a name, a description and a schema of its arguments."""
    schema = tool.args_schema
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, Mapping):
        schema = {"type": "object", "properties": getattr(tool, "args", {})}
    function = {"name": part(tool, "name"), "description": part(tool, "description") or "", "parameters": schema}
    return {"type": "function", "function": function}


def _named(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if not (tool.get("function") or {}).get("name"):
        raise QueryError(f"{where} has no function with a name; {_TOOL_EXAMPLE}")
    return tool
