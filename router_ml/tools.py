"""Read the tools offered with a query: names, functions, JSON schemas, pydantic models, LangChain and ollama tools.

A schema may have the OpenAI form (`{"type": "function", "function": {...}}`) or a bare one (`{"name", "description",
"parameters"}`; Anthropic's `input_schema` and MCP's `inputSchema` are parameters, too).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from router_ml.errors import ContextError
from router_ml.messages import MAX_VALUES, check_bounded, clean_text, shown
from router_ml.numbers import count
from router_ml.types import Parameter, Tool

MAX_TOOLS = 10_000
MAX_SCHEMA_VALUES = 20_000  # of one tool; of all tools together `MAX_VALUES`
MAX_PARAMETERS, MAX_DEPTH = 128, 4  # of one tool; what is beyond still counts in the length of its schema
_NUMBERS = ("n_parameters", "n_required", "schema_chars")
_PARAMETER_KEYS = ("parameters", "input_schema", "inputSchema")
_JSON_TYPES = {
    "int": "integer", "float": "number", "str": "string", "bool": "boolean", "list": "array", "tuple": "array",
    "set": "array", "dict": "object",
}  # fmt: skip


def read_tools(items: Sequence[Any]) -> tuple[Tool, ...]:
    """Return the tools, read. Raises `ContextError` (field `tools`) if one is not a tool, or too large: more
    than `MAX_TOOLS` tools, or a schema of more than 20,000 values or 64 levels."""
    if len(items) > MAX_TOOLS:
        raise ContextError(
            f"{len(items):,} tools are more than the {MAX_TOOLS:,} that can be read; offer fewer", "tools"
        )
    tools, left = [], MAX_VALUES
    for item in items:
        if isinstance(item, str):
            tools.append(Tool(clean_text(item)))
        elif isinstance(item, Tool):
            tools.append(item)
        else:
            tool, n_values = _tool(item, left)
            tools.append(tool)
            left -= n_values
    return tuple(tools)


def _tool(item: Any, max_values: int) -> tuple[Tool, int]:
    schema = _schema(item)
    inner = schema.get("function")
    function: Mapping[str, Any] = inner if isinstance(inner, Mapping) else schema
    name = function.get("name")
    if name is None and schema.get("type") != "function":
        name = schema.get("type")  # a tool of the provider's own, such as {"type": "web_search"}
    if not isinstance(name, str):
        raise ContextError("a tool schema must have a name", "tools")
    try:
        n_values = check_bounded(schema, min(max_values, MAX_SCHEMA_VALUES))
        chars = len(json.dumps(function, default=shown, skipkeys=True))
    except (ValueError, RecursionError) as error:
        raise ContextError(f"the schema of tool {name!r:.60} cannot be read: {error}", "tools") from error
    read = _from_row(name, schema) if "schema_chars" in schema else _from_schema(name, function, chars)
    return read, n_values


def _schema(item: Any) -> Mapping[str, Any]:
    """Return the JSON schema of a tool of any library."""
    if isinstance(item, Mapping):
        return item
    try:
        if hasattr(item, "args_schema") or (hasattr(item, "name") and hasattr(item, "args")):
            return _langchain_schema(item)
        if isinstance(item, type) and hasattr(item, "model_json_schema"):
            return {"name": item.__name__, "description": item.__doc__, "parameters": item.model_json_schema()}
        if hasattr(item, "model_dump"):  # pydantic, as the ollama client uses
            dumped = item.model_dump(exclude_none=True)
            if isinstance(dumped, Mapping):
                return dumped
        elif callable(item):
            return _function_schema(item)
    except ContextError:
        raise
    except Exception as error:  # code of other libraries
        raise ContextError(f"a tool of type {type(item).__name__} cannot be read: {error}", "tools") from error
    raise ContextError(f"each tool must be a name, a function or a JSON schema, found {type(item).__name__}", "tools")


def _langchain_schema(tool: Any) -> Mapping[str, Any]:
    declared: Any = getattr(tool, "args_schema", None)
    if hasattr(declared, "model_json_schema"):
        declared = declared.model_json_schema()
    if not isinstance(declared, Mapping):
        declared = {"type": "object", "properties": getattr(tool, "args", None) or {}}
    described = getattr(tool, "description", None) or getattr(tool, "__doc__", None)
    return {"name": getattr(tool, "name", None), "description": described, "parameters": declared}


def _function_schema(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return a function's name, docstring and signature as a schema."""
    inner = getattr(function, "func", function)  # of a functools.partial
    try:
        signature = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions of C extensions
        signature = {}.values()
    named = [p for p in signature if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]
    return {
        "name": getattr(inner, "__name__", type(function).__name__),
        "description": inspect.getdoc(inner) or "",
        "parameters": {
            "type": "object",
            "properties": {p.name: _property(p) for p in named},
            "required": [p.name for p in named if p.default is p.empty],
        },
    }


def _property(parameter: inspect.Parameter) -> dict[str, Any]:
    annotation = parameter.annotation
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    declared = "" if annotation is parameter.empty else _JSON_TYPES.get(written.split("[")[0].split(" ")[0], written)
    return {"type": declared} | ({} if parameter.default is parameter.empty else {"default": str(parameter.default)})


def _from_row(name: str, row: Mapping[str, Any]) -> Tool:
    """Return a tool as `context_row` writes it: summed up, without its schema."""
    try:
        numbers = {key: count(row, key) or 0 for key in _NUMBERS}
    except ContextError as error:
        raise ContextError(f"tool {name!r:.60}: {error}", "tools") from error
    texts = {key: _described(row.get(key)) for key in ("description", "parameter_text")}
    found = row.get("parameters")
    if found is not None and (isinstance(found, str | bytes) or not isinstance(found, Sequence)):
        raise ContextError(f"tool {name!r:.60}: parameters must be a list, found {type(found).__name__}", "tools")
    parameters = tuple(_parameter_from_row(name, item) for item in (found or ())[:MAX_PARAMETERS])
    return Tool(name=clean_text(name), parameters=parameters, **texts, **numbers)  # type: ignore[arg-type]


def _parameter_from_row(tool: str, row: Any) -> Parameter:
    kinds = (str, str, str, bool, int, bool, bool)
    if isinstance(row, list | tuple) and 1 <= len(row) <= len(kinds) and all(map(isinstance, row, kinds)):
        return Parameter(*row)
    raise ContextError(f"tool {tool!r:.60}: a parameter must be a list of {', '.join(Parameter._fields)}", "tools")


def _from_schema(name: str, function: Mapping[str, Any], schema_chars: int) -> Tool:
    declared = next((v for key in _PARAMETER_KEYS if isinstance(v := function.get(key), Mapping)), {})
    properties, required = declared.get("properties"), declared.get("required")
    properties = properties if isinstance(properties, Mapping) else {}
    described = (
        f"{key}: {value.get('description', '')}" if isinstance(value, Mapping) else str(key)
        for key, value in properties.items()
    )
    return Tool(
        name=clean_text(name),
        description=_described(function.get("description")),
        n_parameters=len(properties),
        n_required=len(required) if isinstance(required, Sequence) and not isinstance(required, str) else 0,
        schema_chars=schema_chars,
        parameter_text=clean_text("; ".join(described)),
        parameters=tuple(islice(_parameters(declared), MAX_PARAMETERS)),
    )


def _parameters(schema: Mapping[str, Any], depth: int = 1) -> Iterator[Parameter]:
    """Yield every property of a schema, each followed by those of its own fields and items."""
    properties, listed = schema.get("properties"), schema.get("required")
    listed = listed if isinstance(listed, Sequence) and not isinstance(listed, str) else ()
    required = {name for name in listed if isinstance(name, str)}
    for name, found in properties.items() if isinstance(properties, Mapping) else ():
        declared = found if isinstance(found, Mapping) else {}
        yield Parameter(
            clean_text(str(name)),
            _type(declared.get("type")),
            _described(declared.get("description")),
            name in required,
            depth,
            "default" in declared,
            bool(declared.get("enum")),
        )
        if depth < MAX_DEPTH:
            for inner in (declared, declared.get("items")):
                if isinstance(inner, Mapping):
                    yield from _parameters(inner, depth + 1)


def _described(value: Any) -> str:
    return clean_text(str(value or ""))


def _type(declared: Any) -> str:
    """Return the type a schema gives; of several the first that is not null."""
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        declared = next((name for name in declared if name != "null"), "")
    return clean_text(str(declared or ""))
