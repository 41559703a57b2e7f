"""The pass-through to hosts of requests that are not routed: bytes are unchanged, generations are recorded."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from router_ml.events.event import DecisionEvent, OutcomeEvent, Recorder
from router_ml.hosts.gate import Shed
from router_ml.hosts.names import normal
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.shared_gate import backend_key, shared_pair
from router_ml.http.access_log import note
from router_ml.http.body import lenient_json
from router_ml.http.headers import header_text
from router_ml.http.named_call import HostedModel, NamedCall
from router_ml.http.problems import Problem
from router_ml.http.streaming import while_connected
from router_ml.shared_state.state import SharedState

_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_NOT_SENT = _HOP_BY_HOP | {"host", "content-length", "authorization", "x-api-key", "cookie", "expect"}
_NOT_RETURNED = _HOP_BY_HOP | {"date"}
TAGS_TTL_S = 15.0
_TAGS_RETRY_S = 2.0  # after a listing that failed
_TAGS_WAIT_S = 2.0
_READ_S = 600.0  # longest silence of a host: loading a large model takes minutes
_GENERATIONS = frozenset({
    "/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses",
})  # fmt: skip


@dataclass
class HostListing:
    """The models of a host, by the latest listing."""

    models: list[Mapping[str, Any]] = field(default_factory=list)
    at_s: float = float("-inf")
    names: frozenset[str] = frozenset()  # normalised


class Proxy:
    """Talks to every host over one client. Lives in one event loop."""

    def __init__(
        self, hosts: Sequence[str], limits: GatewayOptions, recorder: Recorder, shared: SharedState | None = None
    ) -> None:
        self._shared = shared
        self._hosts = tuple(hosts)
        self._limits, self._recorder = limits, recorder
        self._hosted_models: dict[tuple[str, str], HostedModel] = {}
        self._listings = {host: HostListing() for host in self._hosts}
        self._refreshing: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Base URLs, the default host first."""
        return self._hosts

    async def close(self) -> None:
        """Close every connection."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def forward(
        self, request: Request, raw: bytes, *, decision_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return the host's own answer to a request, unchanged except that `headers` are added.

        A request for a generation goes to the least busy host that has its model, is bounded and recorded, as the
        outcome of the decision where there was one. Raises `Problem` if no host can be reached or the model is
        busy, and `ClientDisconnect`."""
        model = lenient_json(raw).get("model") if raw else None
        if not isinstance(model, str):
            return await self._plainly(request, raw, None)
        if request.url.path not in _GENERATIONS:
            return await self._plainly(request, raw, model)
        return await self._guarded(request, raw, model, decision_id, headers or {})

    async def manage(self, request: Request) -> Response:
        """Return the default host's answer; the body is streamed to it, since a model file exceeds the limit on bodies.

        Raises `Problem` if the host cannot be reached."""
        return await self._plainly(request, request.stream(), None)

    async def models(self, max_age_s: float = 0.0) -> list[Mapping[str, Any]]:
        """Return the models of all hosts, each once, from listings at most `max_age_s` old.

        Hosts that do not answer count with their last listing."""
        if self._oldest_listing_s() > max_age_s:
            await self._refresh(max_age_s)
        found: dict[str, Mapping[str, Any]] = {}
        for host in self._hosts:
            for model in self._listings[host].models:
                found.setdefault(str(model.get("model") or model.get("name")), model)
        return list(found.values())

    async def get_each(self, path: str) -> list[Any]:
        """Return the JSON of each host that answers for a path."""
        answers = await asyncio.gather(*(self._get(host, path) for host in self._hosts))
        return [answer for answer in answers if answer is not None]

    # -- one request --------------------------------------------------------------------------------------------

    async def _plainly(self, request: Request, raw: bytes | AsyncIterator[bytes], model: str | None) -> Response:
        for host in await self._order(model):
            sending = self._send(host, request, raw)
            with contextlib.suppress(httpx.ConnectError):
                answer = await (while_connected(request, sending) if isinstance(raw, bytes) else sending)
                return HostResponse(answer, answer.aiter_raw())
        raise _unreachable()

    async def _guarded(
        self, request: Request, raw: bytes, model: str, decision_id: str | None, headers: Mapping[str, str]
    ) -> Response:
        waits: list[float] = []
        for host in await self._order(model):
            hosted = self._hosted(normal(model), host)
            permit = hosted.breaker.acquire()
            if permit is None:
                waits.append(hosted.breaker.retry_after_s)
                continue
            call = NamedCall(model, hosted, permit, self._record, decision_id)
            try:
                answer = await while_connected(request, self._called(call, host, request, raw))
            except Shed as shed:
                waits.append(shed.retry_after_s)
                continue
            except httpx.ConnectError:
                continue
            note(request, model=header_text(model), decision_id=call.decision_id)
            return HostResponse(
                answer,
                call.passed(answer),
                {**_named(model, call), **headers},
                functools.partial(call.ended, "cancelled"),
            )
        if waits:
            raise Problem("overloaded", f"{model} is busy or failing", retry_after_s=min(waits))
        raise _unreachable()

    async def _called(self, call: NamedCall, host: str, request: Request, raw: bytes) -> httpx.Response:
        """Return the head of the host's answer, once there is a free slot. Raises `Shed`, and what `_send` raises."""
        try:
            await call.enter(self._limits.deadline_s)
            return await self._send(host, request, raw)
        except Shed:
            call.ended("shed")
            raise
        except httpx.ConnectError:
            call.ended("refused")
            raise
        except Problem:
            call.ended("connection")
            raise
        except BaseException:
            call.ended("cancelled")
            raise

    async def _send(self, host: str, request: Request, raw: bytes | AsyncIterator[bytes]) -> httpx.Response:
        """Return the head of the host's answer. Raises `httpx.ConnectError`, and `Problem` if the connection breaks."""
        path = request.scope.get("raw_path") or request.url.path.encode()
        query = request.scope.get("query_string", b"")
        base = httpx.URL(host)
        target = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + path + (b"?" + query if query else b""))
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_SENT]
        if key := os.environ.get("OLLAMA_API_KEY"):
            headers.append(("authorization", f"Bearer {key}"))
        upstream = httpx.Request(request.method, target, headers=headers, content=raw or None)
        try:
            return await self._http.send(upstream, stream=True)
        except httpx.ConnectError:
            raise
        except httpx.TransportError as error:
            raise Problem("upstream", f"the host closed the connection ({type(error).__name__})") from None

    def _record(self, outcome: OutcomeEvent) -> None:
        """Write down what a request gave; a failure of a name that no host has leaves no trace."""
        if not outcome.ok and not any(outcome.model in installed.names for installed in self._listings.values()):
            return
        if outcome.pinned:  # nothing was decided: the caller named the model
            began_s = outcome.at_s - (outcome.latency_s or 0.0)
            event = DecisionEvent(outcome.decision_id, outcome.model, "", "", "", 1.0, pinned=True, at_s=began_s)
            self._recorder.record(event)
        self._recorder.record(outcome)

    # -- which host ---------------------------------------------------------------------------------------------

    async def _order(self, model: str | None) -> list[str]:
        """Return the hosts to try: those that have the model, least busy first; if none has it, the default host."""
        if model is None:
            return list(self._hosts)
        name = normal(model)
        if self._oldest_listing_s() > TAGS_TTL_S:
            await self._refresh(TAGS_TTL_S, wait=not self._having(name))
        having = self._having(name)
        return sorted(having, key=lambda host: self._busy(name, host)) or list(self._hosts[:1])

    def _having(self, name: str) -> list[str]:
        return [host for host in self._hosts if name in self._listings[host].names]

    def _busy(self, name: str, host: str) -> int:
        return self._hosted(name, host).calls

    def _hosted(self, name: str, host: str) -> HostedModel:
        """Return the gate and the breaker of a model; names unknown to the host share one pair."""
        key = (name if name in self._listings[host].names else "", host)
        if key not in self._hosted_models:
            limits, shared = self._limits, self._shared if key[0] else None
            pair = shared_pair(backend_key(*key), limits.parallel, limits.max_waiting, limits.breaker, shared)
            self._hosted_models[key] = HostedModel(*pair)
        return self._hosted_models[key]

    def _oldest_listing_s(self) -> float:
        return time.monotonic() - min(installed.at_s for installed in self._listings.values())

    async def _refresh(self, max_age_s: float, wait: bool = True) -> None:
        """Refresh the listings of installed models, in the background unless a request waits for them."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh_stale(max_age_s))
        if wait:
            await asyncio.shield(self._refreshing)

    async def _refresh_stale(self, max_age_s: float) -> None:
        now = time.monotonic()
        stale = [host for host in self._hosts if now - self._listings[host].at_s > max_age_s]
        await asyncio.gather(*(self._refresh_host(host) for host in stale))

    async def _refresh_host(self, host: str) -> None:
        found = await self._get(host, "/api/tags")
        listed = found.get("models") if isinstance(found, dict) else None
        if isinstance(listed, list):
            models = [model for model in listed if isinstance(model, Mapping)]
            names = frozenset(normal(str(model.get("model") or model.get("name") or "")) for model in models)
            self._listings[host] = HostListing(models, time.monotonic(), names)
        else:  # repeat soon
            before = self._listings[host]
            self._listings[host] = dataclasses.replace(before, at_s=time.monotonic() - TAGS_TTL_S + _TAGS_RETRY_S)

    async def _get(self, host: str, path: str) -> Any:
        try:
            response = await self._http.get(host.rstrip("/") + path, timeout=_TAGS_WAIT_S)
            return response.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            return None

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(_READ_S, connect=self._limits.connect_s, pool=None),
                limits=httpx.Limits(max_keepalive_connections=64),
                follow_redirects=False,
                mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},  # no proxy in between
            )
        return self._client


class HostResponse(StreamingResponse):
    """A host's answer with its own status and headers. `ended` is called at the end, even where nothing was sent."""

    def __init__(
        self,
        answer: httpx.Response,
        body: AsyncIterator[bytes],
        more: Mapping[str, str] | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(body, answer.status_code)
        received = [(name.lower(), value) for name, value in answer.headers.raw]
        added = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (more or {}).items()]
        self.raw_headers = [*(pair for pair in received if pair[0].decode("latin-1") not in _NOT_RETURNED), *added]
        self._answer, self._ended = answer, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()
            with contextlib.suppress(httpx.HTTPError):
                await self._answer.aclose()


def _named(model: str, call: NamedCall) -> dict[str, str]:
    found = {"model": model, "decision-id": call.decision_id, "arm": model, "reason": "named by the caller"}
    return {f"x-router-ml-{name}": header_text(value) for name, value in found.items()}


def _unreachable() -> Problem:
    return Problem("upstream", "no host takes connections; is Ollama running?", retry_after_s=1.0)
