"""The seam to a server that runs models: what the gateway asks of it, and the errors it may raise.

A new kind of server is one class with these methods and one row in `router_ml.hosts.fleet.HOST_TYPES`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from router_ml.hosts.reply import Reply


@dataclass(frozen=True, slots=True)
class HostRequest:
    """One chat for one model.

    `arguments` are ready for JSON and named as in Ollama's `/api/chat`: `messages`, and where they are given `tools`,
    `think`, `format`, `options`, `keep_alive`, `logprobs` and `top_logprobs`. Other servers translate them."""

    model: str  # as the host calls it
    arguments: Mapping[str, Any]


class Installed(NamedTuple):
    """A model that a host has."""

    own_name: str  # as the host calls it
    capabilities: frozenset[str] | None  # None: the host does not say
    size_gb: float | None


class Running(NamedTuple):
    """A model that a host has in memory."""

    context_tokens: int | None = None  # the window it was loaded with; None: the host does not say


class Host(Protocol):
    """One server. Lives in one event loop; time limits are the caller's (`asyncio.timeout`).

    Every method raises `HostError` (`router_ml.hosts.failure`), which says what went wrong and whether it is the
    model's fault; other exceptions count as a broken connection."""

    @property
    def url(self) -> str:
        """Return the address, without user name and password."""

    async def chat(self, request: HostRequest) -> Reply:
        """Return the whole reply."""

    def stream(self, request: HostRequest) -> AsyncIterator[Reply]:
        """Yield the parts of the reply as they come; the last one has `done` set."""

    async def load(self, model: str, options: Mapping[str, Any], keep_alive: float | str | None) -> None:
        """Put a model in memory without generating anything."""

    async def installed(self) -> Mapping[str, Installed]:
        """Return the installed models by catalogue name."""

    async def running(self) -> Mapping[str, Running]:
        """Return the models in memory by catalogue name."""

    async def close(self) -> None:
        """Close every connection."""
