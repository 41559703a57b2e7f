"""One chat request: built and encoded once, then fitted to the model that was chosen."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from router_ml.catalogue import Model
from router_ml.decide.selection.policy import Policy
from router_ml.errors import QueryError
from router_ml.hosts.ollama_package import ClientRequest, convert_function_to_tool, ollama
from router_ml.serve.encode import image_base64, json_ready
from router_ml.suggestions import suggestion
from router_ml.types import Context

# A change in one of these makes the server load the model anew (Ollama v0.33).
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu")

_TOOL_EXAMPLE = 'give a function with annotated parameters, or {"type": "function", "function": {"name": ..., ...}}'

Messages = str | Sequence[Any]


class ChatArguments(TypedDict, total=False):
    """The keyword arguments of `Gateway.chat` and `achat` besides `stream`; all are optional."""

    tools: Sequence[Any] | None  # functions or JSON schemas
    context: Context | Mapping[str, Any] | None  # as `select_model` takes it; `user_id` scopes cached answers
    policy: Policy | str | None
    deadline_s: float | None  # of the whole request
    model: str | None  # tried first
    think: bool | str | None  # from here on as the ollama client takes them
    format: Any  # "json", a JSON schema, or a pydantic class
    options: Mapping[str, Any] | ollama.Options | None
    keep_alive: float | str | None
    logprobs: bool | None
    top_logprobs: int | None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the caller wants, the model left out. `build_request` makes one whose values are ready to be sent."""

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
        """Return the latest words of the user: what the router reads."""
        spoken = (m for m in reversed(self.messages) if part(m, "role") == "user")
        return next((str(part(m, "content") or "") for m in spoken), "")

    @property
    def history(self) -> tuple[Any, ...]:
        """Return the turns before those words, oldest first."""
        last = max((i for i, m in enumerate(self.messages) if part(m, "role") == "user"), default=0)
        return self.messages[:last]

    @property
    def has_images(self) -> bool:
        """Whether any turn shows an image."""
        return any(part(message, "images") for message in self.messages)

    @property
    def prompt_tokens(self) -> int:
        """Estimate the tokens of the prompt: four characters to a token, tool schemas included."""
        chars = sum(len(str(part(m, "content") or "")) for m in self.messages)
        return (chars + len(str(self.tools))) // 4 + 8


_FORM = frozenset({"think", "format", "options", "keep_alive", "logprobs", "top_logprobs"})
_KNOWN = frozenset(ChatArguments.__annotations__) | {"messages", "stream"}


def build_request(messages: Messages, tools: Sequence[Any] | None = None, **form: Any) -> ChatRequest:
    """Return the request with every message, tool and option converted and encoded as the ollama client would.

    `form` holds `think`, `format`, `options`, `keep_alive`, `logprobs` and `top_logprobs`. Raises `QueryError` for
    whatever could be sent to no model; it names the message, tool or option."""
    for name in form.keys() - _FORM:
        raise QueryError(f"chat takes no argument {name!r:.60}{suggestion(name, _KNOWN)}")
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else _items(messages, "messages")
    if not turns:
        raise QueryError("messages must hold at least one message")
    return ChatRequest(
        tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(turns)),
        tuple(wire_tool(tool, f"tools[{index}]") for index, tool in enumerate(_items(tools, "tools"))),
        **_form(form),
    )


def part(message: Any, key: str) -> Any:
    """Return one part of a message, be it a mapping or an object; None where there is none."""
    return message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)


def wire_tool(tool: Any, where: str) -> dict[str, Any]:
    """Return a tool as it is sent: from a function, a JSON schema (bare or in the OpenAI form), `ollama.Tool`, or a
    tool of LangChain. Raises `QueryError` for anything else."""
    if hasattr(tool, "args_schema"):
        tool = _langchain_tool(tool, where)
    if isinstance(tool, ollama.Tool):
        tool = tool.model_dump(exclude_none=True, by_alias=True)
    if isinstance(tool, Mapping):
        schema = json_ready(tool, where)
        if "function" not in schema and "name" in schema:
            schema = {"type": "function", "function": schema}
        return _named(_valid(ollama.Tool, schema, where), where)
    if not callable(tool):
        raise QueryError(f"{where} is of type {type(tool).__name__}; each tool must be a function or a JSON schema")
    try:
        converted = convert_function_to_tool(tool)
    except Exception as error:  # whatever its annotations do
        name = getattr(tool, "__name__", type(tool).__name__)
        raise QueryError(
            f"{where}: the function {name!r:.60} cannot be described ({type(error).__name__}): each parameter needs an "
            "annotation that has a JSON schema (str, int, list[str] ...); or give the schema itself"
        ) from error
    return _named(json_ready(converted, where), where)


def _items(values: Any, name: str) -> list[Any]:
    if values is None:
        return []
    if isinstance(values, str | bytes | Mapping) or hasattr(values, "model_dump"):
        raise QueryError(f"{name} must be a list, found {type(values).__name__}")
    try:
        return list(values)
    except TypeError as error:
        raise QueryError(f"{name} must be a list, found {type(values).__name__}") from error


def _message(turn: Any, where: str) -> dict[str, Any]:
    """Return a message as the client sends it: empty parts left out, images as base64."""
    if not isinstance(turn, Mapping) and not isinstance(part(turn, "role"), str):
        raise QueryError(f"{where} is of type {type(turn).__name__}; a message is a mapping with a role and content")
    parts = {key: part(turn, key) for key in ollama.Message.model_fields if key != "images"}
    parts = json_ready({key: value for key, value in parts.items() if value is not None}, where)
    sent = _valid(ollama.Message, {key: value for key, value in parts.items() if value}, where)
    images = [
        image_base64(i, f"{where}.images[{n}]") for n, i in enumerate(_items(part(turn, "images"), f"{where}.images"))
    ]
    return {**sent, "images": images} if images else sent


def _langchain_tool(tool: Any, where: str) -> dict[str, Any]:
    """Return the schema of a tool of LangChain, which has a name, a description and a schema of its arguments."""
    schema = tool.args_schema
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    if not isinstance(schema, Mapping):
        schema = {"type": "object", "properties": getattr(tool, "args", {})}
    described = {"name": tool.name, "description": tool.description or "", "parameters": schema}
    return {"type": "function", "function": described}


def _named(tool: dict[str, Any], where: str) -> dict[str, Any]:
    if not (tool.get("function") or {}).get("name"):
        raise QueryError(f"{where} has no function with a name; {_TOOL_EXAMPLE}")
    return tool


def _form(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in given.items() if value is not None}
    if "format" in values:
        values["format"] = _schema(values["format"])
    if isinstance(values.get("options"), ollama.Options):
        values["options"] = values["options"].model_dump(exclude_none=True)
    ready = {key: json_ready(value, key) for key, value in values.items()}
    sent = _valid(ClientRequest, {"model": "any", **ready}, "")
    return {key: sent[key] for key in ready if key in sent}


def _schema(wanted: Any) -> Any:
    """Return the JSON schema of a pydantic class or `TypeAdapter`; anything else as it is."""
    for method in ("model_json_schema", "json_schema"):
        make = getattr(wanted, method, None)
        if callable(make):
            try:
                return make()
            except Exception as error:  # of a class whose fields have no schema
                raise QueryError(
                    f"format: {wanted!r:.60} has no JSON schema ({type(error).__name__}); give one"
                ) from error
    if isinstance(wanted, type):
        raise QueryError(f"format: the class {wanted.__name__} has no JSON schema; give a pydantic class or a schema")
    return wanted


def _valid(kind: Any, value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a value as the client sends it. Raises `QueryError` where the client would refuse it."""
    try:
        sent: dict[str, Any] = kind.model_validate(value).model_dump(exclude_none=True, by_alias=True)
    except ValueError as error:
        first: list[Any] = getattr(error, "errors", list)()[:1]
        steps = [where, *map(str, first[0]["loc"])] if first else [where]
        reason = first[0]["msg"] if first else type(error).__name__
        raise QueryError(f"{'.'.join(filter(None, steps))[:200]} is not what Ollama takes: {reason}") from error
    return sent


class OptionPins:
    """The runner options each model is sent, so that it is seldom loaded anew.

    Configured values win. `num_ctx` is never lowered below what a model has already answered with, only raised; where
    the caller gives none, none is sent. No other option of one caller reaches another's request."""

    def __init__(self, configured: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._configured = {model: dict(options) for model, options in (configured or {}).items()}
        self._window: dict[str, float] = {}  # the largest num_ctx each model has answered with
        self._lock = threading.Lock()

    def fit(self, model: str, options: Mapping[str, Any] | None) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the options to send, and the names of those that differ from what the caller gave."""
        given = dict(options or {})
        configured = self._configured.get(model, {})
        fixed = {key: value for key, value in configured.items() if key in RUNNER_OPTIONS}
        sent = {**configured, **given, **fixed}
        with self._lock:
            window = self._window.get(model)
        if "num_ctx" in given and "num_ctx" not in fixed and _larger(window, given["num_ctx"]):
            sent["num_ctx"] = window
        return sent, tuple(key for key in RUNNER_OPTIONS if key in sent and sent[key] != given.get(key))

    def worked(self, model: str, sent: Mapping[str, Any] | None) -> None:
        """Note the options a model has just answered with."""
        window = (sent or {}).get("num_ctx")
        with self._lock:
            if _larger(window, self._window.get(model, 0)):
                self._window[model] = window  # type: ignore[assignment]

    def of(self, model: str) -> dict[str, Any]:
        """Return the runner options a load of this model must use."""
        return {key: value for key, value in self._configured.get(model, {}).items() if key in RUNNER_OPTIONS}


def adapt(
    request: ChatRequest,
    model: Model | None,
    capabilities: frozenset[str] | None,
    pins: OptionPins,
    name: str,
    keep_alive: float | str | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the client's keyword arguments for one model, and the names of what had to be changed for it.

    `capabilities` is what the server reports (None: nothing); the catalogue counts where it reports nothing."""
    changed: list[str] = []
    options, imposed = pins.fit(name, request.options)
    changed.extend(imposed)
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
    """Whether a model has a capability, as far as the server or the catalogue knows."""
    if capabilities is not None:
        return capability in capabilities
    return model is None or model.can(capability)


def _larger(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float) and one > other
