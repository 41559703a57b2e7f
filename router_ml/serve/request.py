"""One chat request: built and encoded once, then fitted to the model that was chosen."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from router_ml.catalogue import Model
from router_ml.decide.selection.policy import Policy
from router_ml.errors import InputError, QueryError
from router_ml.hosts.ollama_package import ClientRequest, ollama
from router_ml.messages import Conversation, message_list, read_messages
from router_ml.numbers import short_repr
from router_ml.serve.encode import json_ready
from router_ml.serve.wire import items, valid, wire_message, wire_tool
from router_ml.suggestions import suggestion
from router_ml.types import Context, Think, Tool

_QUOTE_CHARS = 12  # what a message and a request share from so many characters on is a quotation
_QUOTABLE_CHARS = 200_000  # of a request that is searched for quotations
# A change in one of these makes the server load the model anew (Ollama v0.33).
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu")

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

    messages: tuple[Mapping[str, Any], ...]
    conversation: Conversation  # the messages, read
    tools: tuple[Mapping[str, Any], ...] = ()
    think: bool | str | None = None
    format: Any = None
    options: Mapping[str, Any] | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def text(self) -> str:
        """Return the latest message of the user: what the router reads."""
        return self.conversation.query

    @property
    def has_images(self) -> bool:
        """Whether any turn shows an image."""
        return self.conversation.has_images

    def is_quoted_in(self, message: str) -> bool:
        """Return whether a message quotes the conversation or the tools, so that it must not be shown or logged."""
        texts = [text[-_QUOTABLE_CHARS:] for turn in self.conversation.messages if (text := turn.text.strip())]
        whole = any(len(text) >= _QUOTE_CHARS // 4 and text in message for text in texts)
        beside = [[turn.get(key) for key in ("tool_calls", "thinking")] for turn in self.messages]
        searched = "\n".join([*texts, str(beside)[-_QUOTABLE_CHARS:], str(self.tools)])[-_QUOTABLE_CHARS:]
        starts = range(0, len(message) - _QUOTE_CHARS + 1, 4)
        return whole or any(message[start : start + _QUOTE_CHARS] in searched for start in starts)


_FORM = frozenset({"think", "format", "options", "keep_alive", "logprobs", "top_logprobs"})
_KNOWN = frozenset(ChatArguments.__annotations__) | {"messages", "stream"}


def build_request(messages: Messages, tools: Sequence[Any] | None = None, **form: Any) -> ChatRequest:
    """Return the request with every message, tool and option converted and encoded as the ollama client would.

    `form` holds `think`, `format`, `options`, `keep_alive`, `logprobs` and `top_logprobs`. Raises `QueryError` for
    anything that no model could be sent; it names the message, tool or option."""
    for name in form.keys() - _FORM:
        raise QueryError(f"chat takes no argument {name!r:.60}{suggestion(name, _KNOWN)}")
    try:
        return _built(messages, tools, form)
    except InputError:
        raise
    except Exception as error:  # of an object that cannot even be read
        raise QueryError(f"the request cannot be read: {type(error).__name__}") from error


def _built(messages: Messages, tools: Sequence[Any] | None, form: Mapping[str, Any]) -> ChatRequest:
    turns = list(message_list(messages))
    if not turns:
        raise QueryError("messages must hold at least one message")
    messages = tuple(wire_message(turn, f"messages[{index}]") for index, turn in enumerate(turns))
    return ChatRequest(
        messages,
        read_messages(messages),
        tuple(wire_tool(tool, f"tools[{index}]") for index, tool in enumerate(items(tools, "tools"))),
        **_form(form),
    )


def prompt_tokens(conversation: Conversation, tools: Sequence[Tool]) -> int:
    """Estimate the tokens of a prompt, with its tool calls, thinking and the schemas of the tools offered."""
    return conversation.tokens + sum(tool.schema_chars for tool in tools) // 4


def _form(given: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in given.items() if value is not None}
    if "format" in values:
        values["format"] = _schema(values["format"])
    if isinstance(values.get("options"), ollama.Options):
        values["options"] = values["options"].model_dump(exclude_none=True)
    ready = {key: json_ready(value, key) for key, value in values.items()}
    if not isinstance(ready.get("options", {}), dict):
        raise QueryError(f"options must be a mapping, found {type(values['options']).__name__}")
    sent = valid(ClientRequest, {"model": "any", **ready}, "")
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
                    f"format: {short_repr(wanted)} has no JSON schema ({type(error).__name__}); give one"
                ) from error
    if isinstance(wanted, type):
        raise QueryError(f"format: the class {wanted.__name__} has no JSON schema; give a pydantic class or a schema")
    if not isinstance(wanted, Mapping) and wanted not in ("", "json"):
        raise QueryError(f"format must be 'json', a JSON schema or a pydantic class, found {short_repr(wanted)}")
    return wanted


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
    think: Think | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the client's keyword arguments for one model, and the names of what had to be changed for it.

    `think` is how the arm is asked where the caller says nothing. `capabilities` is what the server reports (None:
    nothing); the catalogue counts where it reports nothing."""
    changed: list[str] = []
    options, imposed = pins.fit(name, request.options)
    changed.extend(imposed)
    arguments: dict[str, Any] = {"messages": list(request.messages)}
    if request.tools:
        if can(model, capabilities, "tools"):
            arguments["tools"] = list(request.tools)
        else:
            changed.append("tools")
    can_think = can(model, capabilities, "thinking")
    if request.think is not None:
        if request.think is False or can_think:
            arguments["think"] = request.think
        else:
            changed.append("think")
    elif think is not None and can_think:  # a model that cannot refuses `think: true`
        arguments["think"] = think
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
    """Return whether a model has a capability, as far as the server or the catalogue knows."""
    if capabilities is not None:
        return capability in capabilities
    return model is None or model.can(capability)


def _larger(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float) and one > other
