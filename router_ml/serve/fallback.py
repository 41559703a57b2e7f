"""Calls the arms of a decision in their order until one answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from router_ml.arm import is_think
from router_ml.errors import (
    AttemptsFailed,
    DeadlineExceeded,
    GatewayError,
    NoModelAvailable,
    Overloaded,
    QueryError,
    StreamInterrupted,
)
from router_ml.hosts.backend import Backend
from router_ml.hosts.failure import Failure, classify
from router_ml.hosts.fleet import Fleet
from router_ml.hosts.gate import CircuitOpen, Shed
from router_ml.hosts.host import HostRequest
from router_ml.hosts.host_state import HostState
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.rates import was_cold
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import PROMPT_CUT, Answer, Attempt, Timings, is_empty, may_be_empty
from router_ml.serve.call import ModelCall
from router_ml.serve.order import arm_chain, attempt_timeout_s, outage_wait_s, shifted
from router_ml.serve.request import OptionPins, adapt, can
from router_ml.serve.request_state import RequestState
from router_ml.serve.stream import Sink
from router_ml.serve.window import prompt_was_cut, widened
from router_ml.types import Candidate, Quantiles, Think

_COLD_TIMEOUTS = 3  # in a row: then a model is no longer believed to be loading
_MAX_ATTEMPTS = 50  # of one request; a host that comes and goes gets no more
_SERVICE_MARGIN = 1.5  # a call that had to wait begins only where this many times its usual duration is left


class Route(NamedTuple):
    """One arm on one host."""

    backend: Backend
    think: Think | None


@dataclass(slots=True)
class _Untried:
    """The routes a request may still be sent along, best first."""

    left: list[Route]
    open: list[Route] = field(default_factory=list)  # skipped, their circuit breakers being open
    at_once: bool = False  # nothing else can serve: an open circuit is probed before its wait is over

    def return_(self, route: Route) -> None:
        """Put a route back in front: its host took no connection, which says nothing about the model."""
        self.left.insert(0, route)

    def failed(self, route: Route, kind: str) -> None:
        """Drop what would fail alike: this model on this host, and after an empty answer on every host.

        Where thinking took too long the arm that does not think stays; where it led to no answer that arm is next."""
        thought = bool(route.think) and kind in ("empty", "timeout", "cut_short")

        def stays(other: Route) -> bool:
            if other.backend is route.backend:
                return thought and other.think is False
            return kind != "empty" or other.backend.model != route.backend.model

        self.left = [other for other in self.left if stays(other)]
        if kind == "empty":
            self.left.sort(key=lambda other: other.backend is not route.backend)


class FallbackRunner:
    """Calls and falls back. Lives in one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        pins: OptionPins,
        options: GatewayOptions,
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._pins = fleet, pins
        self._options = options
        self._clock = clock

    async def run(self, state: RequestState, sink: Sink | None) -> Answer:
        """Return the first answer of the chain. After an answer's first part went to `sink` nothing is tried again.

        After an empty answer, thinking alone included, one more model is called; where it gives none either, the last
        empty answer is returned. Raises `QueryError` for a request no model can take, and `GatewayError`."""
        try:
            return await self._first_answer(state, _Untried(self._ordered(state)), sink)
        except (AttemptsFailed, DeadlineExceeded, NoModelAvailable, Overloaded):
            if state.empty is None:
                raise
            return self._finished(state, *state.empty)

    async def escalate(self, state: RequestState, candidate: Candidate, limit_s: float) -> Answer | None:
        """Return the answer of an arm that is asked though there is one already; None where it gives none in time.

        Nothing of it is passed on before it is whole."""
        deadline_s, state.deadline_s = state.deadline_s, min(state.deadline_s, self._clock() + limit_s)
        try:
            routes = [Route(backend, candidate.think) for backend in self._fleet.backends(candidate.model)]
            answer = await self._first_answer(state, _Untried(routes), None)
        except (GatewayError, QueryError):
            return None
        finally:
            state.deadline_s, state.empty = deadline_s, None
        return None if answer.empty else answer

    def able(self, state: RequestState, candidate: Candidate) -> bool:
        """Return whether some host can take a request for an arm now, images and tools included."""
        if state.allowed is not None and self._fleet.names.canonical(candidate.model) not in state.allowed:
            return False
        backends = self._fleet.backends(candidate.model)
        needs = ["tools"] * bool(state.request.tools) + ["vision"] * state.request.has_images
        up = any(backend.unavailable() is None and not backend.host.down for backend in backends)
        return up and not self._lacks(backends[0], needs)

    async def _first_answer(self, state: RequestState, untried: _Untried, sink: Sink | None) -> Answer:
        while (route := await self._next(state, untried)) is not None:
            reply = await self._try(state, route, untried, sink)
            latest = state.attempts[-1]
            if reply is not None:
                if latest.ok or state.empty is not None:
                    return self._finished(state, route.backend, reply)
                state.empty = (route.backend, reply)
            elif latest.first_token_s is not None:
                raise StreamInterrupted(f"the stream of {latest.model} failed: {latest.error}")
            if latest.failure is not None and latest.failure.kind != "refused":
                untried.failed(route, latest.failure.kind)
            self._raise_if_over(state)
        raise _nothing_left(state.attempts)

    # -- which backend is next ------------------------------------------------------------------------------------

    def _ordered(self, state: RequestState) -> list[Route]:
        """Return the chain, with the models that cannot see the images or use the tools at its end."""
        arms = list(arm_chain(state.chosen, self._last_resort, self._fleet.names, state.allowed))
        needs = ["tools"] * bool(state.request.tools) + ["vision"] * state.request.has_images
        if needs:
            arms.sort(key=lambda arm: self._lacks(self._fleet.backends(arm[0])[0], needs))
        return [Route(backend, think) for model, think in arms for backend in self._fleet.backends(model)]

    @property
    def _last_resort(self) -> str | None:
        """Return the model tried after every ranked one: one the catalogue lacks only where the host has it."""
        model = self._options.last_resort
        return model if model is not None and self._fleet.knows(model) else None

    def _lacks(self, backend: Backend, needs: Sequence[str]) -> int:
        return sum(not self._can(backend, capability) for capability in needs)

    def _can(self, backend: Backend, capability: str) -> bool:
        return can(self._fleet.catalogue.find(backend.model), backend.capabilities(self._fleet.catalogue), capability)

    async def _next(self, state: RequestState, untried: _Untried) -> Route | None:
        """Return the next route to take, or None; note why others are skipped.

        Where every host that is left is down, wait for one. Where nothing was called since every circuit is open, let
        this call through."""
        while untried.left and len(state.attempts) < _MAX_ATTEMPTS:
            up = next((route for route in untried.left if not route.backend.host.down), None)
            route = up or await self._back(state, untried.left)
            if route is None:
                break
            untried.left.remove(route)
            failure = route.backend.unavailable() or self._crowded_out(state, route.backend)
            if failure is None:
                return route
            self._failed(state, route, failure)
            untried.failed(route, failure.kind)
            if failure.kind == "open":
                untried.open.append(route)
        while untried.left:
            route = untried.left.pop(0)
            self._failed(state, route, Failure("refused", f"{route.backend.host.url} takes no connections"))
            untried.failed(route, "refused")
        if untried.open and not any(a.failure is None or a.failure.called for a in state.attempts):
            untried.at_once = True
            return untried.open.pop(0)
        return None

    async def _back(self, state: RequestState, left: Sequence[Route]) -> Route | None:
        """Wait for the first of the hosts, all down, that takes connections again; None if none does in time."""
        hosts: dict[str, HostState] = {route.backend.host.url: route.backend.host for route in left}
        total_s, left_s = state.deadline_s - state.began_s, state.deadline_s - self._clock()
        waits = [
            asyncio.ensure_future(host.back_within(outage_wait_s(host.down_s, host.seen_up, total_s, left_s)))
            for host in hosts.values()
        ]
        try:
            for wait in asyncio.as_completed(waits):
                if await wait:
                    break
        finally:
            for pending in waits:
                pending.cancel()
        return next((route for route in left if not route.backend.host.down), None)

    def _crowded_out(self, state: RequestState, backend: Backend) -> Failure | None:
        """Return why a model is not loaded on a host that is too busy for this request already."""
        busy = any(a.host == backend.host.url and a.failure and a.failure.kind == "shed" for a in state.attempts)
        if not busy or backend.resident is True:
            return None
        return Failure("shed", "its host is busy with other models, and it would have to be loaded")

    def _raise_if_over(self, state: RequestState) -> None:
        failure = state.attempts[-1].failure
        if failure is not None and failure.kind == "invalid":
            raise QueryError(f"no model can take this request: {failure.message}")
        if self._clock() >= state.deadline_s:
            raise DeadlineExceeded(f"no answer within the deadline; tried {_listed(state.attempts)}")

    # -- one route ------------------------------------------------------------------------------------------------

    async def _try(self, state: RequestState, route: Route, untried: _Untried, sink: Sink | None) -> Reply | None:
        """Call one backend, and once more if it refused only an optional part of the request."""
        backend = route.backend
        reply = await self._attempt(state, route, untried, sink)
        failure = state.attempts[-1].failure
        if failure is not None and failure.kind == "refused":
            untried.return_(route)
        if reply is not None or failure is None or not failure.unsupported:
            return reply
        backend.lacks |= {failure.unsupported}
        can_do_without = failure.unsupported == "thinking" or (failure.unsupported == "tools" and not untried.left)
        if can_do_without and self._clock() < state.deadline_s:
            return await self._attempt(state, route, untried, sink)
        return None

    async def _attempt(self, state: RequestState, route: Route, untried: _Untried, sink: Sink | None) -> Reply | None:
        backend = route.backend
        timeout_s = self._timeout_s(state, route, untried)
        candidate = state.candidate(backend.model, route.think)
        service_s = self._service_s(state, route) or (candidate.latency_s.p50 if candidate else 1.0)
        needed_s = _SERVICE_MARGIN * service_s
        try:
            waited_s = await backend.gate.enter(max(0.0, timeout_s - needed_s), service_s, untried.at_once)
        except CircuitOpen:
            self._failed(state, route, backend.open_circuit())
            if not untried.at_once:
                untried.open.append(route)
            return None
        except Shed as shed:
            self._failed(state, route, Failure("shed", str(shed), retry_after_s=shed.retry_after_s))
            return None
        try:
            state.waited_s += waited_s
            if waited_s and state.deadline_s - self._clock() < needed_s:
                self._failed(state, route, Failure("shed", "too little time is left", retry_after_s=service_s))
                return None
            return await self._call(state, route, timeout_s, sink, untried.at_once)
        finally:
            backend.gate.leave()

    async def _call(
        self, state: RequestState, route: Route, timeout_s: float, sink: Sink | None, at_once: bool
    ) -> Reply | None:
        backend = route.backend
        request, adapted = self._fitted(state, route)
        warm = backend.resident is True
        permit = backend.breaker.acquire(at_once)
        if permit is None:
            self._failed(state, route, backend.open_circuit())
            return None
        think = self._asked(backend, request)
        call = ModelCall(state, backend, request, timeout_s, self._options.idle_s, self._clock, think)
        try:
            reply = await call.run(sink)
        except asyncio.CancelledError:
            permit.released()
            raise
        except Exception as error:
            failure = await self._judged(state, route, classify(error, cold=not warm), call.timeout_s)
            if failure.blames_model:
                permit.failed(broken_connection=failure.kind == "connection")
            else:
                permit.released()
            self._failed(state, route, failure, call, adapted)
            return None
        permit.succeeded()
        signal = reply.logprob_mean
        if state.hides_logprobs:
            reply = reply.without_logprobs()
        if prompt_was_cut(reply, state.context.prompt_tokens, request.arguments, backend):
            adapted = (*adapted, PROMPT_CUT)
            backend.prompts_cut += 1
        if is_empty(reply) and not may_be_empty(state.request.options):
            self._fleet.answered(backend, loaded=bool(was_cold(reply.load_s, warm)))
            self._failed(state, route, Failure("empty", "the reply holds no text and no tool call"), call, adapted)
        else:
            self._learn(state, backend, reply, call, warm)
            self._pins.worked(backend.model, request.arguments.get("options"))
            answered = self._attempt_of(route, None, call, adapted)
            state.attempts.append(dataclasses.replace(answered, logprob_mean=signal))
        return reply

    def _fitted(self, state: RequestState, route: Route) -> tuple[HostRequest, tuple[str, ...]]:
        """Return the request as this backend gets it, and what was changed for it."""
        backend = route.backend
        capabilities = backend.capabilities(self._fleet.catalogue)
        model = self._fleet.catalogue.find(backend.model)
        keep_alive = self._options.keep_alive
        name, think = backend.model, route.think
        arguments, adapted = adapt(state.request, model, capabilities, self._pins, name, keep_alive, think)
        if state.hides_logprobs:
            arguments["logprobs"] = True
        arguments, raised = widened(arguments, state.context.prompt_tokens, model, backend, self._options.max_num_ctx)
        return HostRequest(backend.wire_name, arguments), (*adapted, *raised)

    def _asked(self, backend: Backend, request: HostRequest) -> Think | None:
        """Return how a model is asked; None where nothing is said, or it has no choice."""
        think = request.arguments.get("think")
        return think if is_think(think) and self._can(backend, "thinking") else None

    def _failed(
        self,
        state: RequestState,
        route: Route,
        failure: Failure,
        call: ModelCall | None = None,
        adapted: tuple[str, ...] = (),
    ) -> None:
        """Note a failed attempt, and what it says about the model and its host."""
        backend = route.backend
        if state.request.is_quoted_in(failure.message):
            failure = dataclasses.replace(failure, message="the server's message quotes the request and is left out")
        if failure.blames_model:
            backend.rates.failed()
        if failure.kind == "missing":
            backend.host.missing(backend.model)
        if failure.kind == "refused" and call is not None:
            backend.host.refused()
        state.attempts.append(self._attempt_of(route, failure, call, adapted))

    async def _judged(self, state: RequestState, route: Route, failure: Failure, timeout_s: float) -> Failure:
        """Return what a failure is once it is known whether the model, its host or the deadline caused it."""
        backend = route.backend
        if failure.kind == "connection" and not await self._still_up(state, backend.host):
            return dataclasses.replace(failure, kind="refused", message=f"{failure.message}; the host is down")
        if failure.kind == "cold_timeout":
            backend.cold_timeouts += 1
            # A load is not a failure. But a host that never finishes loading, or does not report what it has in
            # memory, is not loading.
            if backend.cold_timeouts >= _COLD_TIMEOUTS or backend.host.running.failing:
                return dataclasses.replace(failure, kind="timeout")
        candidate = state.candidate(backend.model, route.think)
        if failure.kind == "timeout" and candidate is not None and timeout_s < candidate.latency_s.p95:
            return dataclasses.replace(failure, kind="cut_short", message="the deadline left it too little time")
        return failure

    async def _still_up(self, state: RequestState, host: HostState) -> bool:
        """Return whether a host whose connection broke takes new ones; True if there is no time to check."""
        try:
            async with asyncio.timeout(max(0.0, state.deadline_s - self._clock())):
                return await host.is_up(checked_within_s=0.0)
        except TimeoutError:
            return True

    def _timeout_s(self, state: RequestState, route: Route, untried: _Untried) -> float:
        backend = route.backend
        candidate = state.candidate(backend.model, route.think)
        able = [r for r in untried.left if r.backend.unavailable() is None and not r.backend.host.down]
        return attempt_timeout_s(
            candidate.latency_s if candidate else None,
            backend.resident,
            backend.load_s,
            state.deadline_s - self._clock(),
            [self._expected(state, other) for other in able],
            self._options,
            probe=untried.at_once or backend.breaker.state == "half_open",
            decode_tokens_per_s=backend.decode_tokens_per_s,
            service_s=self._service_s(state, route),
        )

    def _service_s(self, state: RequestState, route: Route) -> float | None:
        """Return the seconds of a call of this arm at the live rate; None if unknown.

        The mean over the model's calls is that of a model with one arm only: thinking takes many times as long."""
        rates = route.backend.rates
        if route.think is None:
            return rates.service_s
        candidate, rate = state.candidate(route.backend.model, route.think), rates.decode_tokens_per_s
        return candidate.output_tokens / rate if candidate and candidate.output_tokens and rate else None

    def _expected(self, state: RequestState, route: Route) -> Quantiles | None:
        """Return what a route should take, its load included."""
        backend = route.backend
        candidate = state.candidate(backend.model, route.think)
        if candidate is None:
            return None
        load_s = 0.0 if backend.resident is not False else backend.load_s or self._options.cold_load_s
        return shifted(candidate.latency_s, load_s)

    def _learn(self, state: RequestState, backend: Backend, reply: Reply, call: ModelCall, warm: bool) -> None:
        cold = was_cold(reply.load_s, warm)
        backend.cold_timeouts = 0
        self._fleet.answered(backend, loaded=bool(cold))
        took_s = self._clock() - call.began_s
        figures = (took_s, reply.load_s, reply.prompt_tokens, reply.prompt_eval_s, reply.output_tokens, reply.eval_s)
        backend.rates.succeeded(*figures, resident=warm)
        self._fleet.tell(backend, (*figures, warm))
        backend.answered(bool(cold))
        state.resident = None if cold is None else not cold

    def _attempt_of(
        self, route: Route, failure: Failure | None, call: ModelCall | None, adapted: tuple[str, ...]
    ) -> Attempt:
        backend = route.backend
        return Attempt(
            model=backend.model,
            host=backend.host.url,
            latency_s=self._clock() - call.began_s if call else 0.0,
            timeout_s=call.timeout_s if call else None,
            failure=failure,
            first_token_s=call.first_token_s if call else None,
            breaker=backend.breaker.state,
            adapted=adapted,
            think=call.think if call else route.think,
        )

    def _finished(self, state: RequestState, backend: Backend, reply: Reply) -> Answer:
        think = next((a.think for a in reversed(state.attempts) if a.model == backend.model), None)
        timings = Timings(
            total_s=self._clock() - state.began_s,
            queue_s=None if reply.queue_s is None else state.waited_s + reply.queue_s,
            load_s=reply.load_s,
            prompt_eval_s=reply.prompt_eval_s,
            eval_s=reply.eval_s,
            decide_s=state.decide_s,
            first_token_s=state.first_token_s,
        )
        attempts, url = tuple(state.attempts), backend.host.url
        return Answer(reply, state.chosen, backend.model, timings, attempts, host=url, think=think)


def _nothing_left(attempts: Sequence[Attempt]) -> GatewayError | QueryError:
    failures = [attempt.failure for attempt in attempts if attempt.failure is not None]
    kinds = {failure.kind for failure in failures}
    if kinds == {"rejected"}:
        return QueryError(f"no model can take this request: {failures[0].message}")
    if kinds & {"shed", "busy"} and kinds <= {"shed", "busy", "open", "absent", "missing", "refused"}:
        waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
        wait_s = min(waits, default=1.0)
        return Overloaded(f"every model is busy; try again in {wait_s:.1f} s", wait_s)
    if kinds == {"refused"}:
        hosts = ", ".join(dict.fromkeys(attempt.host for attempt in attempts))
        return NoModelAvailable(
            f"no model can be called: {hosts} takes no connections; start the model host there, or set OLLAMA_HOST to "
            "where it listens"
        )
    if kinds <= {"open", "absent", "missing", "refused", "forbidden"}:
        return NoModelAvailable(f"no model can be called: {_listed(attempts)}")
    return AttemptsFailed(f"every model failed: {_listed(attempts)}", attempts)


def _listed(attempts: Sequence[Attempt]) -> str:
    return "; ".join(f"{a.model} at {a.host}: {a.error or 'ok'}" for a in attempts[-6:]) or "nothing"
