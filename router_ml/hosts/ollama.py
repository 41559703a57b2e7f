"""One Ollama host: chat through the ollama client, and the few looks at what is there and what is in memory."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple

import httpx
import ollama

from router_ml.hosts.failure import BadAnswer
from router_ml.hosts.names import ModelNames

ClientFactory = Callable[[str, httpx.Timeout], ollama.AsyncClient]

_PROBE_S = 2.0


class Installed(NamedTuple):
    """A model that a host has."""

    own_name: str  # as the host calls it
    capabilities: frozenset[str] | None  # None: the host does not say
    size_gb: float | None


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context()


def default_client(url: str, timeout: httpx.Timeout) -> ollama.AsyncClient:
    """The client all calls go through. It does not limit connections: the gates do."""
    limits = httpx.Limits(max_keepalive_connections=64)
    return ollama.AsyncClient(host=url, timeout=timeout, limits=limits, verify=_tls())


class OllamaHost:
    """The calls to one host. Lives in one event loop.

    Time limits are the caller's (`asyncio.timeout`): the client itself only limits connecting."""

    def __init__(
        self, url: str, names: ModelNames, connect_s: float = 2.0, client_factory: ClientFactory = default_client
    ) -> None:
        self.url = url.rstrip("/")
        self._names = names
        self._client = client_factory(self.url, httpx.Timeout(None, connect=connect_s))
        # Looks at the host never wait behind generations that hang, so they have connections of their own.
        key = os.environ.get("OLLAMA_API_KEY")  # the ollama client sends it, too
        headers = {"authorization": f"Bearer {key}"} if key else None
        self._probe = httpx.AsyncClient(base_url=self.url, timeout=_PROBE_S, verify=_tls(), headers=headers)

    async def chat(self, model: str, arguments: Mapping[str, Any]) -> ollama.ChatResponse:
        """One whole answer. Raises what the client raises, and `BadAnswer` for a reply that is none."""
        response: ollama.ChatResponse = await self._client.chat(model=model, **arguments)
        self._check_model(model, response)
        return response

    async def stream(self, model: str, arguments: Mapping[str, Any]) -> AsyncIterator[ollama.ChatResponse]:
        """Yield the parts of one answer as they come. Raises what the client raises, and `BadAnswer`."""
        parts = await self._client.chat(model=model, stream=True, **arguments)
        finished = False
        try:
            async for part in parts:
                self._check_model(model, part)
                finished = bool(part.done)
                yield part
        finally:
            await parts.aclose()  # type: ignore[attr-defined]
        if not finished:
            raise BadAnswer("connection", "the stream ended before its final part")

    async def load(self, model: str, options: Mapping[str, Any], keep_alive: float | str | None) -> None:
        """Puts a model in memory without generating anything."""
        extra = {} if keep_alive is None else {"keep_alive": keep_alive}
        await self._client.generate(model=model, options=dict(options) or None, **extra)  # type: ignore[call-overload]

    async def installed(self) -> Mapping[str, Installed]:
        """What is installed, by catalogue name."""
        found: dict[str, Installed] = {}
        for entry in await self._models("/api/tags"):
            own = str(entry.get("model") or entry.get("name") or "")
            stated = entry.get("capabilities")
            capabilities = frozenset(map(str, stated)) if isinstance(stated, list) else None
            name = self._names.canonical(own)
            # Where two installed models share a catalogue entry, the one that bears the entry's own name wins.
            if name not in found or own == name:
                size = entry.get("size")
                size_gb = size / 1e9 if isinstance(size, int | float) and size > 0 else None
                found[name] = Installed(own, capabilities, size_gb)
        return found

    async def running(self) -> frozenset[str]:
        """The catalogue names of the models in memory. A model that is still loading is not among them."""
        entries = await self._models("/api/ps")
        return frozenset(self._names.canonical(str(e.get("model") or e.get("name") or "")) for e in entries)

    async def close(self) -> None:
        """Closes every connection."""
        await self._probe.aclose()
        await self._client.close()  # type: ignore[no-untyped-call]

    async def _models(self, path: str) -> list[Mapping[str, Any]]:
        response = await self._probe.get(path)
        response.raise_for_status()
        return [entry for entry in response.json()["models"] if isinstance(entry, Mapping)]

    def _check_model(self, asked: str, response: ollama.ChatResponse) -> None:
        if response.model and not self._names.same(asked, response.model):
            raise BadAnswer("wrong_model", f"{response.model} answered in place of {asked}")
