"""OpenAI's responses. Nothing is stored: a request brings its whole conversation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from router_ml.http.openai_chat import arguments_of, content_of, effort, new_id, objects
from router_ml.http.problems import Problem
from router_ml.http.reply import ChatCall, Piece, ToolCall
from router_ml.http.streaming import SSE, sse

_ECHOED = ("instructions", "metadata", "temperature", "top_p", "max_output_tokens", "user", "truncation")


class OpenAIResponses:
    """`/v1/responses`."""

    media_type = SSE

    def call(self, body: Mapping[str, Any]) -> ChatCall:
        """Return the request of a body. Raises `Problem`."""
        if body.get("previous_response_id") is not None or body.get("conversation") is not None:
            raise Problem("invalid", "nothing is stored here: send the whole conversation as input", code="unsupported")
        reasoning = body.get("reasoning")
        metadata = body.get("metadata") if isinstance(body.get("metadata"), Mapping) else {}
        options = {"temperature": body.get("temperature"), "top_p": body.get("top_p"),
                   "num_predict": body.get("max_output_tokens")}  # fmt: skip
        return ChatCall(
            messages=messages_of(body),
            tools=_offered(objects(body, "tools"), body.get("tool_choice")),
            stream=body.get("stream") is True,
            think=effort(reasoning.get("effort")) if isinstance(reasoning, Mapping) else None,
            format=_format(body.get("text")),
            options={name: value for name, value in options.items() if value is not None},
            session_id=(metadata or {}).get("session_id") or body.get("prompt_cache_key"),
            user_id=body.get("user") or body.get("safety_identifier"),
        )

    def whole(self, body: Mapping[str, Any], model: str, piece: Piece) -> dict[str, Any]:
        """Return the answer as one object."""
        items: list[dict[str, Any]] = []
        if piece.thinking:
            items.append(_reasoning(new_id("rs_"), piece.thinking))
        if piece.content or not piece.calls:
            items.append(_message(new_id("msg_"), piece.content))
        items += [_function_call(new_id("fc_"), call) for call in piece.calls]
        return {**_head(body, model), **_ended(piece), "output": items}

    def events(self, body: Mapping[str, Any], model: str) -> ResponsesEvents:
        """Yield the answer as server-sent events."""
        return ResponsesEvents(body, model)


class ResponsesEvents:
    """A response of output items, each added, filled and done; every event has its number."""

    def __init__(self, body: Mapping[str, Any], model: str) -> None:
        self._head = _head(body, model)
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: tuple[str, str] | None = None  # type and id of the item that is being filled
        self._text = ""

    def begin(self) -> bytes:
        """Return the response without output."""
        response = {**self._head, "status": "in_progress", "output": [], "usage": None}
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def piece(self, piece: Piece) -> bytes:
        """Return the events of one part."""
        sent = b""
        if piece.thinking:
            sent += self._fill("reasoning", piece.thinking)
        if piece.content:
            sent += self._fill("message", piece.content)
        for call in piece.calls:
            sent += self._close() + self._called(call)
        return sent

    def end(self, whole: Piece) -> bytes:
        """Return the complete response."""
        sent = b"" if self._items or self._open else self._fill("message", "")
        sent += self._close()
        response = {**self._head, **_ended(whole), "output": self._items}
        return sent + self._event(f"response.{response['status']}", response=response)

    def failed(self, problem: Problem) -> bytes:
        """Return the incomplete response, with the error."""
        error = {"code": "server_error", "message": problem.message}
        response = {**self._head, "status": "failed", "output": self._items, "error": error, "usage": None}
        return self._event("response.failed", response=response)

    def _fill(self, kind: str, text: str) -> bytes:
        sent = b"" if self._open and self._open[0] == kind else self._close() + self._start(kind)
        assert self._open is not None
        self._text += text
        place = self._place(self._open[1])
        if kind == "message":
            return sent + self._event("response.output_text.delta", **place, content_index=0, delta=text, logprobs=[])
        return sent + self._event("response.reasoning_summary_text.delta", **place, summary_index=0, delta=text)

    def _start(self, kind: str) -> bytes:
        identity = new_id("msg_" if kind == "message" else "rs_")
        self._open, self._text = (kind, identity), ""
        place = self._place(identity)
        if kind == "message":
            item = {**_message(identity, ""), "content": [], "status": "in_progress"}
            added = self._event("response.output_item.added", output_index=len(self._items), item=item)
            return added + self._event("response.content_part.added", **place, content_index=0, part=_output_text(""))
        item = {**_reasoning(identity, ""), "summary": []}
        added = self._event("response.output_item.added", output_index=len(self._items), item=item)
        return added + self._event("response.reasoning_summary_part.added", **place, summary_index=0, part=_summary(""))

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        (kind, identity), text, self._open = self._open, self._text, None
        place = self._place(identity)
        if kind == "message":
            item = _message(identity, text)
            sent = self._event("response.output_text.done", **place, content_index=0, text=text, logprobs=[])
            sent += self._event("response.content_part.done", **place, content_index=0, part=_output_text(text))
        else:
            item = _reasoning(identity, text)
            sent = self._event("response.reasoning_summary_text.done", **place, summary_index=0, text=text)
            sent += self._event("response.reasoning_summary_part.done", **place, summary_index=0, part=_summary(text))
        return sent + self._done(item)

    def _called(self, call: ToolCall) -> bytes:
        item = _function_call(new_id("fc_"), call)
        place = self._place(item["id"])
        begun = {**item, "arguments": "", "status": "in_progress"}
        sent = self._event("response.output_item.added", output_index=len(self._items), item=begun)
        sent += self._event("response.function_call_arguments.delta", **place, delta=item["arguments"])
        sent += self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=item["arguments"]
        )
        return sent + self._done(item)

    def _done(self, item: dict[str, Any]) -> bytes:
        sent = self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        return sent

    def _place(self, identity: str) -> dict[str, Any]:
        return {"item_id": identity, "output_index": len(self._items)}

    def _event(self, kind: str, **data: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return sse({"type": kind, "sequence_number": number, **data}, kind)


def messages_of(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the input in Ollama's form. Raises `Problem`."""
    found: list[dict[str, Any]] = []
    if body.get("instructions"):
        found.append({"role": "system", "content": str(body["instructions"])})
    if isinstance(body.get("input"), str):
        return [*found, {"role": "user", "content": body["input"]}]
    names: dict[str, str] = {}
    thought: str | None = None
    for item in objects(body, "input"):
        kind = item.get("type", "message")
        if kind == "reasoning":
            thought = "\n".join(str(part.get("text") or "") for part in objects(item, "summary")) or None
        elif kind in ("function_call", "custom_tool_call"):
            name = str(item.get("name"))
            names[str(item.get("call_id"))] = name
            sent = item.get("arguments") if kind == "function_call" else {"input": item.get("input")}
            call = {"function": {"name": name, "arguments": arguments_of(sent)}}
            if not (found and found[-1]["role"] == "assistant"):
                found.append({"role": "assistant", "content": "", **({"thinking": thought} if thought else {})})
                thought = None
            found[-1].setdefault("tool_calls", []).append(call)
        elif kind in ("function_call_output", "custom_tool_call_output"):
            text, images = content_of(item.get("output"))
            tool = {"role": "tool", "content": text, "tool_name": names.get(str(item.get("call_id")), "")}
            found.append({**tool, **({"images": images} if images else {})})
        elif kind == "message":
            text, images = content_of(item.get("content"))
            role = "system" if item.get("role") == "developer" else item.get("role")
            message = {"role": role, "content": text, **({"images": images} if images else {})}
            found.append({**message, **({"thinking": thought} if thought and role == "assistant" else {})})
            thought = None
        else:
            raise Problem(
                "invalid", f"input items of type {kind!r:.40} are not supported; send messages and function calls"
            )
    if not any(message["role"] != "system" for message in found):
        raise Problem("invalid", "input: at least one message is required")
    return found


def _offered(tools: list[Mapping[str, Any]], choice: Any) -> list[dict[str, Any]]:
    """Return the functions in Ollama's form; tools that run on OpenAI's servers are left out."""
    if choice == "none":
        return []
    wanted = choice.get("name") if isinstance(choice, Mapping) else None
    functions = (tool for tool in tools if tool.get("type") == "function")
    return [_function(tool) for tool in functions if wanted is None or tool.get("name") == wanted]


def _function(tool: Mapping[str, Any]) -> dict[str, Any]:
    inner = {
        "name": tool.get("name"),
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters"),
    }
    return {"type": "function", "function": {key: value for key, value in inner.items() if value is not None}}


def _format(text: Any) -> Any:
    wanted = text.get("format") if isinstance(text, Mapping) else None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        return "json"
    return wanted.get("schema") or "json" if kind == "json_schema" and isinstance(wanted, Mapping) else None


def _head(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    echoed = {name: body.get(name) for name in _ECHOED}
    return {
        "id": new_id("resp_"), "object": "response", "created_at": int(time.time()), "model": model, "error": None,
        "incomplete_details": None, "previous_response_id": None, "store": False, "background": False,
        "tools": body.get("tools") or [], "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "text": body.get("text") or {"format": {"type": "text"}}, "reasoning": body.get("reasoning"), **echoed,
    }  # fmt: skip


def _ended(piece: Piece) -> dict[str, Any]:
    cut = piece.done_reason == "length"
    usage = {
        "input_tokens": piece.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": piece.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": piece.prompt_tokens + piece.output_tokens,
    }
    details = {"reason": "max_output_tokens"} if cut else None
    return {"status": "incomplete" if cut else "completed", "incomplete_details": details, "usage": usage}


def _message(identity: str, text: str) -> dict[str, Any]:
    content = [_output_text(text)]
    return {"id": identity, "type": "message", "role": "assistant", "status": "completed", "content": content}


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reasoning(identity: str, text: str) -> dict[str, Any]:
    return {"id": identity, "type": "reasoning", "summary": [_summary(text)], "encrypted_content": None}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _function_call(identity: str, call: ToolCall) -> dict[str, Any]:
    text = json.dumps(call.arguments, ensure_ascii=False, separators=(",", ":"))
    call_id = call.id if call.id.startswith("call_") else f"call_{call.id}"
    return {"id": identity, "type": "function_call", "call_id": call_id, "name": call.name, "arguments": text,
            "status": "completed"}  # fmt: skip
