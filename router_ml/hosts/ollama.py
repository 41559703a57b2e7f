"""An Ollama server as a host: chat, loading, and the listings of installed and loaded models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from router_ml.hosts.failure import HostError, failure_of
from router_ml.hosts.host import HostRequest, Installed, Running
from router_ml.hosts.http import MAX_LIST_BYTES, api_key_headers, http_client, lines, parsed, read_error, read_json
from router_ml.hosts.names import ModelNames
from router_ml.hosts.reply import Reply
from router_ml.settings import without_credentials

_PROBE_S = 2.0
_MAX_MODELS = 2_000  # of a list; a host has no more
_MAX_NAME_CHARS = 256
_MAX_LOAD_BYTES = 2**20


class OllamaHost:
    """The calls to one Ollama server. Lives in one event loop.

    Time limits are the caller's (`asyncio.timeout`): the client itself only limits connecting. Raises `SettingsError`
    where no client can be made for the address."""

    def __init__(self, url: str, names: ModelNames, connect_s: float = 2.0) -> None:
        self._names = names
        self.url = without_credentials(url.rstrip("/"))
        headers = api_key_headers()
        self._client = http_client(url, httpx.Timeout(None, connect=connect_s), headers)
        # Listings have connections of their own, so that they never wait behind generations that hang.
        self._probe = http_client(url, httpx.Timeout(_PROBE_S), headers)

    async def chat(self, request: HostRequest) -> Reply:
        """Return the whole reply."""
        async with self._post("/api/chat", request, stream=False) as response:
            wire = await read_json(response)
        return self._reply(wire, request.model)

    async def stream(self, request: HostRequest) -> AsyncIterator[Reply]:
        """Yield the parts of the reply as they come."""
        finished = False
        async with self._post("/api/chat", request, stream=True) as response:
            async for line in lines(response):
                part = self._reply(parsed(line), request.model)
                finished = part.done
                yield part
        if not finished:
            raise HostError("connection", "the stream ended before its final part")

    async def load(self, model: str, options: Mapping[str, Any], keep_alive: float | str | None) -> None:
        """Put a model in memory without generating anything."""
        given = {"options": dict(options) or None, "keep_alive": keep_alive}
        arguments = {key: value for key, value in given.items() if value is not None}
        async with self._post("/api/generate", HostRequest(model, arguments), stream=False) as response:
            await read_json(response, _MAX_LOAD_BYTES)

    async def installed(self) -> Mapping[str, Installed]:
        """Return the installed models by catalogue name."""
        found: dict[str, Installed] = {}
        for own, entry in await self._models("/api/tags"):
            name = self._names.canonical(own)
            # Where two installed models share a catalogue entry, the one with the entry's own name wins.
            if name not in found or own == name:
                found[name] = Installed(own, _capabilities(entry.get("capabilities")), _size_gb(entry.get("size")))
        return found

    async def running(self) -> Mapping[str, Running]:
        """Return the models in memory by catalogue name. A model that is still loading is not among them."""
        return {
            self._names.canonical(own): Running(_tokens(entry.get("context_length")))
            for own, entry in await self._models("/api/ps")
        }

    async def close(self) -> None:
        """Close every connection."""
        await self._probe.aclose()
        await self._client.aclose()

    @contextlib.asynccontextmanager
    async def _post(self, path: str, request: HostRequest, stream: bool) -> AsyncIterator[httpx.Response]:
        body = json.dumps({"model": request.model, **request.arguments, "stream": stream}, separators=(",", ":"))
        headers = {"content-type": "application/json"}
        async with self._client.stream("POST", path, content=body.encode(), headers=headers) as response:
            if response.is_error:
                failure = failure_of(response.status_code, await read_error(response))
                raise HostError(
                    failure.kind, failure.message, failure.status, failure.unsupported, failure.retry_after_s
                )
            yield response

    def _reply(self, wire: Any, asked: str) -> Reply:
        if not isinstance(wire, Mapping):
            raise HostError("malformed", f"the reply is not a chat answer ({type(wire).__name__})")
        if "error" in wire and "message" not in wire:
            raise HostError("server_error", str(wire["error"]))
        try:
            reply = Reply.from_wire(wire)
        except ValueError as error:
            raise HostError("malformed", f"the reply is not a chat answer: {error}") from error
        if reply.model and not self._names.same(asked, reply.model):
            raise HostError("wrong_model", f"{reply.model:.100} answered in place of {asked}")
        return reply

    async def _models(self, path: str) -> list[tuple[str, Mapping[str, Any]]]:
        async with self._probe.stream("GET", path) as response:
            if response.is_error:
                raise HostError.of(failure_of(response.status_code, await read_error(response)))
            listed = await read_json(response, MAX_LIST_BYTES)
        entries = listed.get("models") if isinstance(listed, Mapping) else None
        if not isinstance(entries, list):
            raise HostError("malformed", "the reply is not a list of models")
        named = ((_name(entry), entry) for entry in entries[:_MAX_MODELS] if isinstance(entry, Mapping))
        return [(name, entry) for name, entry in named if name]


def _name(entry: Mapping[str, Any]) -> str:
    name = entry.get("model") or entry.get("name")
    return name if isinstance(name, str) and len(name) <= _MAX_NAME_CHARS else ""


def _capabilities(stated: Any) -> frozenset[str] | None:
    if not isinstance(stated, list):
        return None
    return frozenset(word for word in stated[:_MAX_NAME_CHARS] if isinstance(word, str))


def _size_gb(size: Any) -> float | None:
    return size / 1e9 if isinstance(size, int | float) and 0 < size < 1e15 else None


def _tokens(length: Any) -> int | None:
    return length if isinstance(length, int) and 0 < length < 10**9 else None
