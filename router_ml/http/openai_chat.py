"""OpenAI's chat completions."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from router_ml.http.ollama_chat import image_bytes
from router_ml.http.problems import Problem
from router_ml.http.reply import ChatCall, Piece, ToolCall
from router_ml.http.streaming import SSE, sse

_OPTIONS = ("temperature", "top_p", "seed", "stop", "frequency_penalty", "presence_penalty")
_EFFORTS: Mapping[str, bool | str] = {
    "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


class OpenAIChat:
    """`/v1/chat/completions`."""

    media_type = SSE

    def call(self, body: Mapping[str, Any]) -> ChatCall:
        """Return the request of a body. Raises `Problem`."""
        if body.get("n") not in (None, 1):
            raise Problem("invalid", "n must be 1: a model of a host gives one answer", code="unsupported_value")
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        options = {name: body[name] for name in _OPTIONS if body.get(name) is not None}
        metadata = body.get("metadata") if isinstance(body.get("metadata"), Mapping) else {}
        return ChatCall(
            messages=messages_of(objects(body, "messages")),
            tools=_offered(objects(body, "tools"), body.get("tool_choice")),
            stream=body.get("stream") is True,
            think=effort(body.get("reasoning_effort")),
            format=_format(body.get("response_format")),
            options={**options, **({"num_predict": limit} if limit is not None else {})},
            logprobs=body.get("logprobs"),
            top_logprobs=body.get("top_logprobs"),
            session_id=(metadata or {}).get("session_id"),
            user_id=body.get("user") or body.get("safety_identifier"),
        )

    def whole(self, body: Mapping[str, Any], model: str, piece: Piece) -> dict[str, Any]:
        """Return the answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["reasoning"] = piece.thinking
        if piece.calls:
            message["tool_calls"] = [_tool_call(call, index) for index, call in enumerate(piece.calls)]
        choice = {"index": 0, "message": message, "logprobs": _logprobs(piece), "finish_reason": _finish(piece)}
        return {**_head(model, "chat.completion"), "choices": [choice], "usage": usage(piece)}

    def events(self, body: Mapping[str, Any], model: str) -> OpenAIEvents:
        """Yield the answer as server-sent events."""
        options = body.get("stream_options")
        return OpenAIEvents(model, isinstance(options, Mapping) and bool(options.get("include_usage")))


class OpenAIEvents:
    """Chunks, the last of them with the reason, then the usage where wanted, then `[DONE]`."""

    def __init__(self, model: str, include_usage: bool) -> None:
        self._head = _head(model, "chat.completion.chunk")
        self._include_usage = include_usage
        self._calls = 0

    def begin(self) -> bytes:
        """Return the chunk that names the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> bytes:
        """Return the chunk of one part."""
        delta: dict[str, Any] = {}
        if piece.content:
            delta["content"] = piece.content
        if piece.thinking:
            delta["reasoning"] = piece.thinking
        if piece.calls:
            delta["tool_calls"] = [_tool_call(call, self._calls + index) for index, call in enumerate(piece.calls)]
            self._calls += len(piece.calls)
        return self._chunk(delta, logprobs=_logprobs(piece)) if delta else b""

    def end(self, whole: Piece) -> bytes:
        """Return the chunks with the finish reason and the usage, and the end marker."""
        last = self._chunk({}, finish=_finish(whole))
        if self._include_usage:
            last += sse({**self._head, "choices": [], "usage": usage(whole)})
        return last + b"data: [DONE]\n\n"

    def failed(self, problem: Problem) -> bytes:
        """Return an error event; no `[DONE]` follows."""
        return b"data: " + problem.encoded("openai") + b"\n\n"

    def _chunk(self, delta: Mapping[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "choices": [choice]})


def messages_of(turns: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert OpenAI's messages to Ollama's form. Raises `Problem`."""
    names: dict[str, str] = {}  # of the tools, by the id of the call
    found: list[dict[str, Any]] = []
    for turn in turns:
        role = turn.get("role")
        text, images = content_of(turn.get("content"))
        message: dict[str, Any] = {"role": "system" if role == "developer" else role, "content": text}
        if images:
            message["images"] = images
        if thought := turn.get("reasoning") or turn.get("reasoning_content"):
            message["thinking"] = thought
        if calls := objects(turn, "tool_calls"):
            message["tool_calls"] = [_asked(call) for call in calls]
            names.update(
                (str(c.get("id")), a["function"]["name"]) for c, a in zip(calls, message["tool_calls"], strict=True)
            )
        if role == "tool":
            message["tool_name"] = str(turn.get("name") or names.get(str(turn.get("tool_call_id")), ""))
        found.append(message)
    return found


def content_of(content: Any) -> tuple[str, list[bytes]]:
    """Return the text and the images of a content: a text, null, or a list of parts. Raises `Problem`."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise Problem("invalid", f"content must be a text or a list of parts, found {type(content).__name__}")
    texts: list[str] = []
    images: list[bytes] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise Problem("invalid", f"a part of a content must be an object, found {type(part).__name__}")
        elif (url := part.get("image_url")) is not None:
            images.append(_image(url.get("url") if isinstance(url, Mapping) else url))
        elif isinstance(said := part.get("text", part.get("refusal")), str):
            texts.append(said)
        else:
            raise Problem(
                "invalid", f"parts of type {part.get('type')!r:.40} are not supported; send text or image_url"
            )
    return "\n".join(texts), images


def objects(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return a value that must be a list of objects. Raises `Problem` if it is not."""
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise Problem("invalid", f"{name} must be a list of objects")
    return value


def effort(value: Any) -> bool | str | None:
    """Convert OpenAI's reasoning effort to Ollama's `think`. Raises `Problem` for an unknown value."""
    if value is None:
        return None
    if value not in _EFFORTS:
        raise Problem("invalid", f"the reasoning effort must be one of {', '.join(_EFFORTS)}, found {value!r:.40}")
    return _EFFORTS[value]


def usage(piece: Piece) -> dict[str, int]:
    """Return the token counts in OpenAI's form."""
    total = piece.prompt_tokens + piece.output_tokens
    return {"prompt_tokens": piece.prompt_tokens, "completion_tokens": piece.output_tokens, "total_tokens": total}


def arguments_of(text: Any) -> Mapping[str, Any]:
    """Return the arguments of a call, which come as a string of JSON. Raises `Problem`."""
    if isinstance(text, Mapping):
        return text
    try:
        value = json.loads(text or "{}")
    except (ValueError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Problem("invalid", "the arguments of a tool call must be a JSON object")
    return value


def new_id(prefix: str) -> str:
    """Return a random id in the form that OpenAI and Anthropic use."""
    return f"{prefix}{secrets.token_hex(12)}"


def _asked(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Problem("invalid", "a tool call must have a function with a name")
    return {"function": {"name": function["name"], "arguments": arguments_of(function.get("arguments"))}}


def _offered(tools: list[Mapping[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """Return the tools that the model may call."""
    if choice == "none":
        return []
    wanted = choice.get("function", {}).get("name") if isinstance(choice, Mapping) else None
    functions = [dict(tool) for tool in tools if isinstance(tool.get("function"), Mapping)]
    return [tool for tool in functions if wanted is None or tool["function"].get("name") == wanted]


def _image(url: Any) -> bytes:
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (head.startswith("data:") and head.endswith(";base64")):
        raise Problem("invalid", "an image must be a data: URL in base64; this server fetches nothing")
    return image_bytes(data)


def _format(wanted: Any) -> Any:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        return (inner.get("schema") if isinstance(inner, Mapping) else wanted.get("schema")) or "json"
    return None


def _tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))}
    return {"id": call.id, "index": index, "type": "function", "function": function}


def _logprobs(piece: Piece) -> dict[str, Any] | None:
    return {"content": list(piece.logprobs)} if piece.logprobs else None


def _finish(piece: Piece) -> str:
    if piece.calls:
        return "tool_calls"
    return "length" if piece.done_reason == "length" else "stop"


def _head(model: str, kind: str) -> dict[str, Any]:
    head = {"id": new_id("chatcmpl-"), "object": kind, "created": int(time.time()), "model": model}
    return {**head, "system_fingerprint": "fp_router_ml"}
