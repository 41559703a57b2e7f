"""Ollama's API."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from router_ml.http.problems import Problem
from router_ml.http.reply import ChatCall, Piece
from router_ml.http.streaming import NDJSON, encoded


class OllamaChat:
    """`/api/chat`. Streams unless `stream` is false."""

    media_type = NDJSON

    def call(self, body: Mapping[str, Any]) -> ChatCall:
        """Return the request of a body. Raises `Problem`."""
        return ChatCall(
            messages=[_message(message) for message in _list(body, "messages")],
            tools=_list(body, "tools"),
            stream=body.get("stream") is not False,
            think=body.get("think"),
            format=body.get("format") or None,
            options=_table(body, "options"),
            keep_alive=body.get("keep_alive"),
            logprobs=body.get("logprobs"),
            top_logprobs=body.get("top_logprobs"),
        )

    def whole(self, body: Mapping[str, Any], model: str, piece: Piece) -> dict[str, Any]:
        """Return the answer as one object."""
        return _object(model, piece, done=True)

    def events(self, body: Mapping[str, Any], model: str) -> OllamaEvents:
        """Yield the answer as lines of JSON."""
        return OllamaEvents(model)


class OllamaEvents:
    """One JSON object a line; the last one has the figures."""

    def __init__(self, model: str) -> None:
        self._model = model

    def begin(self) -> bytes:
        """Return nothing: the first part is the first line."""
        return b""

    def piece(self, piece: Piece) -> bytes:
        """Return one part; text in the last part becomes a part of its own."""
        if not (piece.content or piece.thinking or piece.calls or piece.logprobs):
            return b""
        return encoded(_object(self._model, piece, done=False)) + b"\n"

    def end(self, whole: Piece) -> bytes:
        """Return the last line, with the token counts and durations."""
        last = Piece(done_reason=whole.done_reason, figures=whole.figures)
        return encoded(_object(self._model, last, done=True)) + b"\n"

    def failed(self, problem: Problem) -> bytes:
        """Return an error line; the status has been sent by then."""
        return problem.encoded("ollama") + b"\n"


def loaded(body: Mapping[str, Any], *, chat: bool) -> dict[str, Any]:
    """Return the answer to a request that only loads or unloads `auto`, which has no effect."""
    said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    reason = "unload" if body.get("keep_alive") in (0, "0", "0s") else "load"
    return {"model": body["model"], "created_at": _now(), **said, "done": True, "done_reason": reason}


def _object(model: str, piece: Piece, *, done: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.content}
    if piece.thinking:
        message["thinking"] = piece.thinking
    if piece.calls:
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": index, "name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(piece.calls)
        ]
    found: dict[str, Any] = {"model": model, "created_at": _now(), "message": message, "done": done}
    if piece.logprobs:
        found["logprobs"] = list(piece.logprobs)
    return {**found, "done_reason": piece.done_reason or "stop", **piece.figures} if done else found


def _message(message: Any) -> dict[str, Any]:
    """Return a message with its images as bytes: a text could be taken for the name of a file on this machine."""
    if not isinstance(message, Mapping):
        raise Problem("invalid", f"each message must be an object, found {type(message).__name__}")
    images = message.get("images")
    if images is None:
        return dict(message)
    if not isinstance(images, list):
        raise Problem("invalid", f"images must be a list of base64 texts, found {type(images).__name__}")
    return {**message, "images": [image_bytes(image) for image in images]}


def image_bytes(image: Any) -> bytes:
    """Return the bytes of a base64 text. Raises `Problem`."""
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise Problem("invalid", f"an image must be base64 text ({error})") from None


def _list(body: Mapping[str, Any], name: str) -> list[Any]:
    value = body.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise Problem("invalid", f"{name} must be a list, found {type(value).__name__}")
    return value


def _table(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Problem("invalid", f"{name} must be an object, found {type(value).__name__}")
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
