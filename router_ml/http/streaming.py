"""Streamed answers to a client, cancelled when the client leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from router_ml.http.problems import Problem, problem_of
from router_ml.http.reply import ChatCall, Piece, piece_of, piece_of_wire
from router_ml.serve.stream import AsyncAnswerStream

T = TypeVar("T")

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


class Events(Protocol):
    """One streamed answer in the form of one API; each method returns the bytes to send."""

    def begin(self) -> bytes:
        """Return what comes before the first part."""

    def piece(self, piece: Piece) -> bytes:
        """Return one part."""

    def end(self, whole: Piece) -> bytes:
        """Return what comes last; `whole` is the whole answer with its figures."""

    def failed(self, problem: Problem) -> bytes:
        """Return what is sent when the answer breaks off."""


class Dialect(Protocol):
    """One API's form of a chat: how a request is read and an answer written."""

    media_type: str  # of a stream

    def call(self, body: Mapping[str, Any]) -> ChatCall:
        """Return the request. Raises `Problem` if it cannot be served."""

    def whole(self, body: Mapping[str, Any], model: str, piece: Piece) -> dict[str, Any]:
        """Return the answer in one piece."""

    def events(self, body: Mapping[str, Any], model: str) -> Events:
        """Return the answer as a stream."""


def encoded(value: object) -> bytes:
    """Encode a value as JSON bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(data: object, event: str | None = None) -> bytes:
    """Encode a value as one server-sent event."""
    head = f"event: {event}\n".encode() if event else b""
    return head + b"data: " + encoded(data) + b"\n\n"


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response."""
    return Response(encoded(value), status, headers, "application/json; charset=utf-8")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. If the client leaves, cancels `work` and raises `ClientDisconnect`."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stream_bytes(events: Events, stream: AsyncAnswerStream) -> AsyncIterator[bytes]:
    """Yield the bytes of a gateway's stream; closing it early ends the generation."""
    try:
        yield events.begin()
        async for part in stream:
            if data := events.piece(piece_of(part)):
                yield data
        yield events.end(piece_of_wire(stream.answer.reply.wire))
    except Exception as error:
        yield events.failed(problem_of(error))
    finally:
        await stream.aclose()
