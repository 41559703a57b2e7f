"""One query as messages and tools, and the turns of its conversation with one model."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ollama

from router_ml.hosts.failure import BadAnswer, classify
from router_ml.hosts.names import normal
from router_ml.hosts.reply import mean_logprob
from router_ml.types import Query, Think
from training.measuring.argument_values import agrees
from training.measuring.expected_answer import ExpectedAnswer, ToolResult
from training.measuring.measured_answer import MeasuredAnswer
from training.measuring.tool_calls import MadeCall

SYSTEM = (
    "You are the assistant that serves the user through the tools offered. Call the tools that the request needs, all "
    "of them, with the values the user gave and in the form the tools ask for; leave out optional values that were not "
    "given. Where something is missing that no tool can look up, call nothing and ask one short question. Where no "
    "tool is needed, answer in a sentence or two."
)
_NS = 1e-9
_DONE = {"status": "ok"}
_TYPES = {"dict": "object", "float": "number", "double": "number", "long": "integer", "tuple": "array", "any": "string"}


class ChatClient(Protocol):
    """The part of `ollama.Client` that a conversation needs."""

    @property
    def chat(self) -> Callable[..., Any]:
        """Ask a model."""
        ...

    def ps(self) -> ollama.ProcessResponse:
        """List the loaded models."""
        ...

    def list(self) -> ollama.ListResponse:
        """List the installed models."""
        ...


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How models are asked; the same for every row of a run, so that no model is reloaded."""

    system: str = SYSTEM
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "seed": 0, "num_predict": 2048})
    think: bool | None = None  # of models that can think; None: the model's default
    keep_alive: str = "10m"
    max_turns: int = 8


def messages_of(query: Query, system: str) -> list[dict[str, str]]:
    """Return the conversation up to and including the query; the context's `now` is part of the system prompt."""
    raw = query.raw_context or {}
    now = f"\nIt is now {raw['now']} for the user." if raw.get("now") else ""
    turns = [{"role": turn.role, "content": turn.content} for turn in query.context.history]
    attached = f"\n[attached: {query.context.attachment}]" if query.context.attachment else ""
    opening = [{"role": "system", "content": system + now}] if system or now else []
    return [*opening, *turns, {"role": "user", "content": query.text + attached}]


def tools_of(query: Query) -> list[dict[str, Any]]:
    """Return the offered tools in Ollama's form; a bare name becomes a tool without parameters."""
    return [_tool(item) for item in (query.raw_context or {}).get("tools") or ()]


def _tool(item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        item = {"name": item}
    function = dict(item.get("function") or item)
    parameters = _json_types(function.get("parameters") or {"type": "object", "properties": {}})
    return {
        "type": "function",
        "function": {
            "name": function.get("name"),
            "description": function.get("description") or "",
            "parameters": {**parameters, "type": "object"},
        },
    }


def _json_types(schema: Any) -> Any:
    """Return a schema with the type names of other languages (dict, float, tuple) replaced by JSON's."""
    if isinstance(schema, Mapping):
        named = schema.get("type")
        mapped = {key: _json_types(value) for key, value in schema.items()}
        return mapped | ({"type": _TYPES.get(named, named)} if isinstance(named, str) else {})
    return [_json_types(item) for item in schema] if isinstance(schema, list) else schema


class BenchmarkConversation:
    """One query asked of one model, turn by turn while it calls tools that have results."""

    def __init__(
        self, client: ChatClient, settings: ChatSettings, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._client, self._settings, self._clock = client, settings, clock
        self._logprobs = _takes_logprobs(client)

    def ask(self, model: str, query: Query, expected: ExpectedAnswer, *, think: Think | None = None) -> MeasuredAnswer:
        """Return the answer, with its error where the model failed. `think` is sent as it is; None sends none.

        Raises what the client raises if the host cannot be reached (`Failure.kind` refused, connection, busy)."""
        resident = self._resident(model)
        messages: list[Any] = messages_of(query, self._settings.system)
        arguments = self._arguments(query, think)
        replies: list[ollama.ChatResponse] = []
        calls: list[MadeCall] = []
        latency_s = 0.0
        error = None
        for _ in range(1 if expected.results is None else self._settings.max_turns):
            began = self._clock()
            try:
                reply = _checked(model, self._client.chat(model, messages, **arguments))
            except Exception as problem:
                failure = classify(problem, cold=resident is False)
                if failure.kind in ("refused", "connection", "busy"):
                    raise
                error = str(failure)
                # The time of a refusal is not the model's; the time until a timeout is.
                latency_s = latency_s + self._clock() - began if "timeout" in failure.kind else 0.0
                break
            latency_s += self._clock() - began
            replies.append(reply)
            made = [MadeCall(c.function.name, dict(c.function.arguments)) for c in reply.message.tool_calls or ()]
            calls += made
            if not made or expected.results is None:
                break
            messages += [reply.message, *(_tool_message(call, expected.results) for call in made)]
        return replace(_answer(query.id, model, replies, calls, latency_s, resident, error), think=think)

    def _arguments(self, query: Query, think: Think | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "options": dict(self._settings.options),
            "keep_alive": self._settings.keep_alive,
        }
        if tools := tools_of(query):
            arguments["tools"] = tools
        if think is not None:
            arguments["think"] = think
        if self._logprobs:
            arguments["logprobs"] = True
        return arguments

    def _resident(self, model: str) -> bool | None:
        try:
            return any(normal(entry.model or "") == normal(model) for entry in self._client.ps().models)
        except Exception:  # residency is unknown; the call itself reports the error
            return None


def _takes_logprobs(client: ChatClient) -> bool:
    """Return whether the client can ask for log-probabilities (ollama 0.6.1 and later)."""
    try:
        taken = inspect.signature(client.chat).parameters
    except (TypeError, ValueError):  # of a callable without a signature
        return False
    return "logprobs" in taken or any(one.kind is one.VAR_KEYWORD for one in taken.values())


def _checked(model: str, reply: ollama.ChatResponse) -> ollama.ChatResponse:
    if reply.model and normal(reply.model) != normal(model):
        raise BadAnswer("wrong_model", f"{reply.model} answered in place of {model}")
    if not (reply.message.content or reply.message.tool_calls or reply.message.thinking):
        raise BadAnswer("empty", "the model answered nothing")
    return reply


def _tool_message(call: MadeCall, results: Sequence[ToolResult]) -> dict[str, str]:
    found: Any = next((r.result for r in results if r.name == call.name and _takes(r, call)), _DONE)
    content = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    return {"role": "tool", "tool_name": call.name, "content": content}


def _takes(result: ToolResult, call: MadeCall) -> bool:
    return all(agrees(wanted, call.arguments.get(key)) for key, wanted in result.arguments.items())


def _answer(
    query_id: str,
    model: str,
    replies: Sequence[ollama.ChatResponse],
    calls: Sequence[MadeCall],
    latency_s: float,
    resident: bool | None,
    error: str | None,
) -> MeasuredAnswer:
    return MeasuredAnswer(
        query_id=query_id,
        model=model,
        content=(replies[-1].message.content or "") if replies else "",
        calls=tuple(calls),
        turns=len(replies) + (error is not None),
        latency_s=round(latency_s, 6) if latency_s else None,
        load_s=_seconds([reply.load_duration for reply in replies]),
        prompt_eval_s=_seconds([reply.prompt_eval_duration for reply in replies]),
        eval_s=_seconds([reply.eval_duration for reply in replies]),
        prompt_tokens=_sum([reply.prompt_eval_count for reply in replies]),
        output_tokens=_sum([reply.eval_count for reply in replies]),
        resident=resident,
        truncated=any(reply.done_reason == "length" for reply in replies),
        error=error,
        logprob_mean=_logprob_mean(replies),
    )


def _logprob_mean(replies: Sequence[ollama.ChatResponse]) -> float | None:
    """Return the mean log-probability of the tokens of all turns; None where one came without."""
    listed = [getattr(reply, "logprobs", None) for reply in replies]
    if not all(listed):
        return None
    mean = mean_logprob([{"logprob": entry.logprob} for entries in listed for entry in entries or ()])
    return None if mean is None else round(mean, 6)


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _seconds(values: Sequence[int | None]) -> float | None:
    nanoseconds = _sum(values)
    return None if nanoseconds is None else round(nanoseconds * _NS, 9)
