"""HTTP/1.1 over asyncio streams, by hand, so that it can also be broken on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
            500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One parsed request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request of a connection, or None where the peer is gone."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
        return None
    first, *lines = head.strip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target.split("?", 1)[0], headers, body)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)


class Response:
    """Writes one response, whole or in chunks, and can stop or lie anywhere."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.started = False
        self.reset = False

    async def whole(self, status: int, body: str | bytes, content_type: str = JSON_TYPE, chunked: bool = False) -> None:
        raw = body.encode() if isinstance(body, str) else body
        if chunked:
            await self.begin(content_type, status)
            await self.chunk(raw)
            await self.end()
            return
        self._head(status, content_type, f"Content-Length: {len(raw)}")
        self._writer.write(raw)
        await self._writer.drain()

    async def declare(self, status: int, length: int, content_type: str = JSON_TYPE) -> None:
        """Sends the headers of a whole response whose body follows, or does not."""
        self._head(status, content_type, f"Content-Length: {length}")
        await self._writer.drain()

    async def raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def begin(self, content_type: str = NDJSON_TYPE, status: int = 200) -> None:
        self._head(status, content_type, "Transfer-Encoding: chunked")
        await self._writer.drain()

    async def chunk(self, data: bytes) -> None:
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self._writer.drain()

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def abort(self) -> None:
        """Resets the connection."""
        self.reset = True
        self._writer.transport.abort()

    def _head(self, status: int, content_type: str, length: str) -> None:
        self.started = True
        head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nContent-Type: {content_type}\r\n{length}\r\n\r\n"
        self._writer.write(head.encode())
