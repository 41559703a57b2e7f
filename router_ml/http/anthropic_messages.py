"""Anthropic's messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.body import lenient_json, parse_json, read_body
from router_ml.http.ollama_chat import image_bytes
from router_ml.http.openai_chat import new_id, objects
from router_ml.http.problems import Problem
from router_ml.http.reply import ChatCall, Piece, ToolCall
from router_ml.http.service import Service
from router_ml.http.streaming import SSE, json_response, sse
from router_ml.messages import estimate_tokens, json_text, read_messages

_OPTIONS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "max_tokens": "num_predict",
            "stop_sequences": "stop"}  # fmt: skip
_IMAGE_TOKENS = 800


class AnthropicMessages:
    """`/v1/messages`."""

    media_type = SSE

    def call(self, body: Mapping[str, Any]) -> ChatCall:
        """Return the request of a body. Raises `Problem`."""
        limit = body.get("max_tokens")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise Problem("invalid", "max_tokens: a whole number of 1 or more is required")
        metadata = body.get("metadata")
        return ChatCall(
            messages=messages_of(body),
            tools=_offered(objects(body, "tools"), body.get("tool_choice")),
            stream=body.get("stream") is True,
            think=_think(body.get("thinking")),
            options={ours: body[theirs] for theirs, ours in _OPTIONS.items() if body.get(theirs) not in (None, [])},
            user_id=metadata.get("user_id") if isinstance(metadata, Mapping) else None,
        )

    def whole(self, body: Mapping[str, Any], model: str, piece: Piece) -> dict[str, Any]:
        """Return the answer as one object."""
        blocks: list[dict[str, Any]] = []
        if piece.thinking:
            blocks.append({"type": "thinking", "thinking": piece.thinking, "signature": ""})
        if piece.content or not piece.calls:
            blocks.append({"type": "text", "text": piece.content})
        blocks += [_tool_use(call, call.arguments) for call in piece.calls]
        usage = {"input_tokens": piece.prompt_tokens, "output_tokens": piece.output_tokens}
        return {**_head(model), "content": blocks, "stop_reason": _stop(piece), "usage": usage}

    def events(self, body: Mapping[str, Any], model: str) -> AnthropicEvents:
        """Yield the answer as server-sent events."""
        return AnthropicEvents(model, count_tokens(body))


class AnthropicEvents:
    """A message of content blocks, each opened, filled and closed."""

    def __init__(self, model: str, input_tokens: int) -> None:
        self._model, self._input_tokens = model, input_tokens
        self._index = -1
        self._open: str | None = None  # type of the block that is being filled

    def begin(self) -> bytes:
        """Return the message without content."""
        usage = {"input_tokens": self._input_tokens, "output_tokens": 0}
        message = {**_head(self._model), "content": [], "stop_reason": None, "usage": usage}
        return _event("message_start", message=message)

    def piece(self, piece: Piece) -> bytes:
        """Return the events of one part."""
        sent = b""
        if piece.thinking:
            sent += self._delta("thinking", {"type": "thinking", "thinking": "", "signature": ""}, piece.thinking)
        if piece.content:
            sent += self._delta("text", {"type": "text", "text": ""}, piece.content)
        for call in piece.calls:
            text = json.dumps(call.arguments, ensure_ascii=False)
            sent += self._start("tool_use", _tool_use(call, {}))
            sent += _event("content_block_delta", index=self._index,
                           delta={"type": "input_json_delta", "partial_json": text})  # fmt: skip
        return sent

    def end(self, whole: Piece) -> bytes:
        """Return the stop reason and the usage."""
        sent = b"" if self._index >= 0 else self._start("text", {"type": "text", "text": ""})
        sent += self._close()
        usage = {"input_tokens": whole.prompt_tokens or self._input_tokens, "output_tokens": whole.output_tokens}
        delta = {"stop_reason": _stop(whole), "stop_sequence": None}
        return sent + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")

    def failed(self, problem: Problem) -> bytes:
        """Return the event `error`."""
        return b"event: error\ndata: " + problem.encoded("anthropic") + b"\n\n"

    def _delta(self, kind: str, block: Mapping[str, Any], text: str) -> bytes:
        start = b"" if self._open == kind else self._start(kind, block)
        delta = {"type": f"{kind}_delta", kind: text}
        return start + _event("content_block_delta", index=self._index, delta=delta)

    def _start(self, kind: str, block: Mapping[str, Any]) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = kind
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._index)


class CountTokens:
    """`/v1/messages/count_tokens`: an estimate, as the host has no such call."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, request: Request) -> Response:
        """Count the tokens of a request that is not sent."""
        raw = await read_body(request, self._service.options)
        self._service.models.policy(lenient_json(raw).get("model"))
        return json_response({"input_tokens": count_tokens(parse_json(raw))})


def count_tokens(body: Mapping[str, Any]) -> int:
    """Estimate the tokens of a request with its tools and images. Raises `Problem`."""
    messages = messages_of(body)
    images = sum(len(message.get("images") or ()) for message in messages)
    tools = sum(estimate_tokens(json_text(tool)) for tool in objects(body, "tools"))
    return read_messages(messages).tokens + int(tools) + _IMAGE_TOKENS * images


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert Anthropic's messages to Ollama's form: a tool result becomes a message of its own. Raises `Problem`."""
    found: list[dict[str, Any]] = []
    if system := _text(body.get("system")):
        found.append({"role": "system", "content": system})
    names: dict[str, str] = {}
    for turn in objects(body, "messages"):
        content = turn.get("content")
        if isinstance(content, str):
            found.append({"role": turn.get("role"), "content": content})
        else:
            found += _turns(str(turn.get("role")), objects(turn, "content"), names)
    if len(found) == bool(system):
        raise Problem("invalid", "messages: at least one message is required")
    return found


def _turns(role: str, blocks: list[Mapping[str, Any]], names: dict[str, str]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    message: dict[str, Any] = {"role": role, "content": ""}
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_result":
            tool = {
                "role": "tool",
                "content": _text(block.get("content")),
                "tool_name": names.get(str(block.get("tool_use_id")), ""),
            }
            turns.append(tool)
            message.setdefault("images", []).extend(_images(block.get("content")))
        elif kind == "tool_use":
            name = str(block.get("name"))
            names[str(block.get("id"))] = name
            call = {"function": {"name": name, "arguments": dict(block.get("input") or {})}}
            message.setdefault("tool_calls", []).append(call)
        elif kind == "thinking":
            message["thinking"] = str(block.get("thinking") or "")
        elif kind == "text":
            message["content"] += ("\n" if message["content"] else "") + str(block.get("text") or "")
        elif kind == "image":
            message.setdefault("images", []).extend(_images([block]))
        elif kind != "redacted_thinking":
            raise Problem(
                "invalid", f"content blocks of type {kind!r:.40} are not supported; send text, image or tools"
            )
    said = {key: value for key, value in message.items() if value or key in ("role", "content")}
    return [*turns, said] if len(said) > 2 or said["content"] or not turns else turns


def _text(content: Any) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping)) if isinstance(content, list) else ()
    return "\n".join(text for text in texts if isinstance(text, str))


def _images(content: Any) -> list[bytes]:
    blocks = content if isinstance(content, list) else []
    return [_image(b.get("source")) for b in blocks if isinstance(b, Mapping) and b.get("type") == "image"]


def _image(source: Any) -> bytes:
    if not isinstance(source, Mapping) or source.get("type") != "base64":
        raise Problem("invalid", "an image must have a source of type base64; this server fetches nothing")
    return image_bytes(source.get("data"))


def _offered(tools: list[Mapping[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """Return the tools in Ollama's form; tools that run on Anthropic's servers have no schema and are left out."""
    chosen = choice if isinstance(choice, Mapping) else {}
    if chosen.get("type") == "none":
        return []
    wanted = chosen.get("name") if chosen.get("type") == "tool" else None
    usable = (tool for tool in tools if isinstance(tool.get("input_schema"), Mapping))
    return [_function(tool) for tool in usable if wanted is None or tool.get("name") == wanted]


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": tool.get("name"), "description": tool.get("description") or ""}
    return {"type": "function", "function": {**function, "parameters": tool["input_schema"]}}


def _think(thinking: Any) -> bool | None:
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    return {"enabled": True, "disabled": False}.get(str(kind))  # "adaptive": the model's own default


def _tool_use(call: ToolCall, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": f"toolu_{call.id.removeprefix('call_')}",
        "name": call.name,
        "input": dict(arguments),
    }


def _stop(piece: Piece) -> str:
    if piece.calls:
        return "tool_use"
    return "max_tokens" if piece.done_reason == "length" else "end_turn"


def _head(model: str) -> dict[str, Any]:
    return {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": model, "stop_sequence": None}


def _event(kind: str, **data: Any) -> bytes:
    return sse({"type": kind, **data}, kind)
