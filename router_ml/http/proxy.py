"""The way to the hosts for what is not routed: bytes go through unchanged, and what a generation took is recorded."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from router_ml.events.event import DecisionEvent, OutcomeEvent, Recorder, new_id
from router_ml.hosts.breaker import Breaker, Permit
from router_ml.hosts.gate import Gate, Shed
from router_ml.hosts.names import normal
from router_ml.hosts.options import GatewayOptions
from router_ml.http.access_log import note
from router_ml.http.body import lenient_json
from router_ml.http.headers import header_text
from router_ml.http.options import ServerOptions
from router_ml.http.problems import Problem
from router_ml.http.streaming import while_connected

_HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_OURS = frozenset({"host", "content-length", "authorization", "x-api-key", "cookie", "expect"})  # stay with this server
_TAGS_TTL_S = 15.0
_TAGS_WAIT_S = 2.0
_READ_S = 600.0  # longest silence of a host: loading a large model takes minutes
_TAIL_BYTES = 256 * 2**10  # of an answer, kept to find its figures
_RECORDED = ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")


@dataclass
class Place:
    """One model on one host, as bypassed requests meet it."""

    gate: Gate
    breaker: Breaker
    service_s: float = 1.0


@dataclass
class Installed:
    """What a host has, by the latest look."""

    models: list[Mapping[str, Any]] = field(default_factory=list)
    at_s: float = float("-inf")
    answered: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Their names, normalised."""
        return frozenset(normal(str(model.get("model") or model.get("name") or "")) for model in self.models)


class Proxy:
    """Talks to every host over one client. Lives in one event loop."""

    def __init__(
        self, hosts: Sequence[str], limits: GatewayOptions, recorder: Recorder, options: ServerOptions
    ) -> None:
        self._hosts = tuple(hosts)
        self._limits, self._recorder, self._options = limits, recorder, options
        self._places: dict[tuple[str, str], Place] = {}
        self._installed = {host: Installed() for host in self._hosts}
        self._client: httpx.AsyncClient | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """Base URLs, the default host first."""
        return self._hosts

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.aclose()

    async def forward(
        self, request: Request, raw: bytes, *, decision_id: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """The host's own answer to a request, unchanged; `headers` are added to it.

        A request for a generation goes to the least busy host that has its model, is bounded and recorded, as the
        outcome of the decision where there was one. Raises `Problem` where no host can be reached or the model is
        busy."""
        model = lenient_json(raw).get("model") if raw else None
        if not isinstance(model, str):
            return await self._plainly(request, raw, None)
        if request.url.path not in _RECORDED:
            return await self._plainly(request, raw, model)
        return await self._guarded(request, raw, headers or {}, model, decision_id)

    async def manage(self, request: Request) -> Response:
        """The default host's answer; the body streams to it, for a model's file is larger than any other body.

        Raises `Problem` where the host cannot be reached."""
        return await self._plainly(request, request.stream(), None)

    async def models(self) -> list[Mapping[str, Any]]:
        """What all hosts have, each model once; of hosts that do not answer, what they last had."""
        await self._look()
        found: dict[str, Mapping[str, Any]] = {}
        for host in self._hosts:
            for model in self._installed[host].models:
                found.setdefault(str(model.get("model") or model.get("name")), model)
        return list(found.values())

    async def get_each(self, path: str) -> list[Any]:
        """The JSON that each host which answers gives for a path."""
        answers = await asyncio.gather(*(self._get(host, path) for host in self._hosts))
        return [answer for answer in answers if answer is not None]

    # -- one request --------------------------------------------------------------------------------------------

    async def _plainly(self, request: Request, raw: bytes | AsyncIterator[bytes], model: str | None) -> Response:
        for host in await self._order(model):
            try:
                answer = await self._send(host, request, raw)
            except httpx.ConnectError:
                continue
            except httpx.TransportError as error:
                raise Problem("upstream", f"the host broke off ({type(error).__name__})") from None
            return _Passed(answer, _pass(answer), {})
        raise Problem("upstream", "no host takes connections; is Ollama running?", retry_after_s=1.0)

    async def _guarded(
        self, request: Request, raw: bytes, headers: Mapping[str, str], model: str, decision_id: str | None
    ) -> Response:
        waits: list[float] = []
        for host in await self._order(model):
            place = self._place(normal(model), host)
            permit = place.breaker.acquire()
            if permit is None:
                waits.append(place.breaker.retry_after_s)
                continue
            call = _Call(self, model, place, permit, decision_id)
            try:
                await place.gate.enter(self._limits.deadline_s, place.service_s)
            except Shed as shed:
                permit.released()
                waits.append(shed.retry_after_s)
                continue
            try:
                answer = await self._send(host, request, raw)
            except httpx.ConnectError:
                call.ended("refused", learn=False)
                continue
            except httpx.TransportError as error:
                call.ended("connection")
                raise Problem("upstream", f"the host broke off ({type(error).__name__})") from None
            except (asyncio.CancelledError, ClientDisconnect):
                call.ended("cancelled", learn=False)
                raise
            said = {"x-router-ml-model": header_text(model), "x-router-ml-decision-id": call.decision_id,
                    "x-router-ml-arm": header_text(model), "x-router-ml-reason": "named by the caller"}  # fmt: skip
            note(request, model=header_text(model), decision_id=call.decision_id)
            return _Passed(answer, call.passed(answer), {**said, **headers})
        if waits:
            raise Problem("overloaded", f"{model} is busy or failing", retry_after_s=min(waits))
        raise Problem("upstream", "no host takes connections; is Ollama running?", retry_after_s=1.0)

    async def _send(self, host: str, request: Request, raw: bytes | AsyncIterator[bytes]) -> httpx.Response:
        """The head of the host's answer. Raises `httpx.TransportError`, and `ClientDisconnect` once the client left."""
        path = request.scope.get("raw_path") or request.url.path.encode()
        query = request.scope.get("query_string", b"")
        base = httpx.URL(host)
        target = base.copy_with(raw_path=base.raw_path.rstrip(b"/") + path + (b"?" + query if query else b""))
        headers = [(k, v) for k, v in request.headers.items() if k not in _HOP_BY_HOP | _OURS]
        if key := os.environ.get("OLLAMA_API_KEY"):
            headers.append(("authorization", f"Bearer {key}"))
        upstream = httpx.Request(request.method, target, headers=headers, content=raw or None)
        sending = self._http.send(upstream, stream=True)
        return await (while_connected(request, sending) if isinstance(raw, bytes) else sending)

    def record(self, outcome: OutcomeEvent) -> None:
        """Write down what a request gave; a name no host has is none of our models and leaves no trace."""
        if not any(outcome.model in installed.names for installed in self._installed.values()):
            return
        if outcome.pinned:  # nothing was decided: the caller named the model
            began_s = outcome.at_s - (outcome.latency_s or 0.0)
            event = DecisionEvent(outcome.decision_id, outcome.model, "", "", "", 1.0, pinned=True, at_s=began_s)
            self._recorder.record(event)
        self._recorder.record(outcome)

    # -- which host ---------------------------------------------------------------------------------------------

    async def _order(self, model: str | None) -> list[str]:
        """The hosts to try: those that have the model, the least busy first; where none has it, the default one."""
        if len(self._hosts) == 1 or model is None:
            return list(self._hosts)
        name = normal(model)
        having = self._having(name)
        if not having:
            await self._look()
            having = self._having(name)
        return sorted(having, key=lambda host: self._busy(name, host)) or list(self._hosts[:1])

    def _having(self, name: str) -> list[str]:
        return [host for host in self._hosts if name in self._installed[host].names]

    def _busy(self, name: str, host: str) -> int:
        gate = self._place(name, host).gate
        return gate.inside + gate.waiting

    def _place(self, name: str, host: str) -> Place:
        """The gate and breaker of a model; names no host knows share one."""
        known = name if name in self._installed[host].names else ""
        key = (known, host)
        if key not in self._places:
            gate = Gate(self._limits.parallel, self._limits.max_waiting)
            self._places[key] = Place(gate, Breaker(self._limits.breaker))
        return self._places[key]

    async def _look(self) -> None:
        now = time.monotonic()
        stale = [host for host in self._hosts if now - self._installed[host].at_s > _TAGS_TTL_S]
        await asyncio.gather(*(self._look_at(host) for host in stale))

    async def _look_at(self, host: str) -> None:
        before = self._installed[host]
        found = await self._get(host, "/api/tags")
        listed = found.get("models") if isinstance(found, dict) else None
        models = before.models if not isinstance(listed, list) else [m for m in listed if isinstance(m, Mapping)]
        self._installed[host] = Installed(
            models, time.monotonic() if listed is not None else before.at_s, listed is not None
        )

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
                mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
            )
        return self._client


class _Call:
    """One bypassed generation: its place, and what becomes of it."""

    def __init__(self, proxy: Proxy, model: str, place: Place, permit: Permit, decision_id: str | None) -> None:
        self._proxy, self._model, self._place, self._permit = proxy, model, place, permit
        self._began = time.monotonic()
        self._decided = decision_id is not None
        self.decision_id = decision_id or new_id()[:16]
        self._first_s: float | None = None
        self._status = 200

    async def passed(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        """The bytes of the answer as they come; afterwards it is recorded."""
        self._status = answer.status_code
        tail = bytearray()
        error: str | None = "cancelled"
        try:
            async for data in answer.aiter_raw():
                if self._first_s is None:
                    self._first_s = time.monotonic() - self._began
                tail += data
                if len(tail) > 2 * _TAIL_BYTES:
                    del tail[:-_TAIL_BYTES]
                yield data
            error = None
        except httpx.TransportError:
            error = "connection"
            raise
        finally:
            self.ended(error, bytes(tail), learn=error != "cancelled")
            await answer.aclose()

    def ended(self, error: str | None, tail: bytes = b"", *, learn: bool = True) -> None:
        """Leave the place, and say how it went."""
        took_s = time.monotonic() - self._began
        self._place.gate.leave()
        figures = final_figures(tail) if error is None else {}
        if error is None and (self._status >= 500 or "error" in figures):
            error = "server_error"
        if error is None and self._status >= 400:
            self._permit.released()  # the caller's mistake says nothing about the model
            return
        if not learn:
            self._permit.released()
        else:
            (self._permit.succeeded if error is None else self._permit.failed)()
        if error is None:
            self._place.service_s += 0.2 * (took_s - self._place.service_s)
        elif error == "refused":
            return
        self._proxy.record(self._outcome(error, took_s, figures))

    def _outcome(self, error: str | None, took_s: float, figures: Mapping[str, Any]) -> OutcomeEvent:
        return OutcomeEvent(
            decision_id=self.decision_id,
            model=normal(self._model),
            success=None if error in (None, "cancelled") else 0.0,
            latency_s=took_s,
            ok=error is None,
            prompt_tokens=figures.get("prompt_tokens"),
            output_tokens=figures.get("output_tokens"),
            load_s=figures.get("load_s"),
            prompt_eval_s=figures.get("prompt_eval_s"),
            eval_s=figures.get("eval_s"),
            first_token_s=self._first_s,
            error=error,
            pinned=not self._decided,
        )


class _Passed(StreamingResponse):
    """A host's answer with its own status and headers."""

    def __init__(self, answer: httpx.Response, body: AsyncIterator[bytes], more: Mapping[str, str]) -> None:
        super().__init__(body, answer.status_code)
        kept = [(k.lower(), v) for k, v in answer.headers.raw if k.lower().decode("latin-1") not in _HOP_BY_HOP]
        added = [(k.encode(), v.encode("latin-1", "replace")) for k, v in more.items()]
        self.raw_headers = [*(pair for pair in kept if pair[0] != b"date"), *added]


async def _pass(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for data in answer.aiter_raw():
            yield data
    finally:
        await answer.aclose()


def final_figures(tail: bytes) -> dict[str, Any]:
    """Tokens and seconds that the end of an answer tells, in any of the APIs' forms; `error` where it is one."""
    for line in reversed(tail.strip().split(b"\n")):
        text = line.strip().removeprefix(b"data:").strip()
        if not text.startswith(b"{"):
            continue
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        if isinstance(found, dict) and (figures := _figures(found)):
            return figures
    return {}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
    if found.get("error") is not None:
        return {"error": True}
    if "eval_count" in found or "prompt_eval_count" in found:
        seconds = {name: found.get(f"{name[:-2]}_duration") for name in ("load_s", "prompt_eval_s", "eval_s")}
        counts = {"prompt_tokens": found.get("prompt_eval_count"), "output_tokens": found.get("eval_count")}
        return {**counts, **{k: v * 1e-9 for k, v in seconds.items() if isinstance(v, int)}}
    inner = found.get("response")
    usage = found.get("usage") or (inner.get("usage") if isinstance(inner, Mapping) else None)
    if not isinstance(usage, Mapping):
        return {}
    read = usage.get("prompt_tokens", usage.get("input_tokens"))
    return {"prompt_tokens": read, "output_tokens": usage.get("completion_tokens", usage.get("output_tokens"))}
