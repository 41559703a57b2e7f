"""Walks down the chain of models until one answers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import ollama

from router_ml.catalogue import Catalogue
from router_ml.errors import (
    AttemptsFailed,
    DeadlineExceeded,
    GatewayError,
    NoModelAvailable,
    Overloaded,
    QueryError,
    StreamInterrupted,
)
from router_ml.hosts.failure import Failure, classify
from router_ml.hosts.fleet import Backend, Fleet
from router_ml.hosts.gate import Shed
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.rates import was_cold
from router_ml.serve.answer import Answer, Attempt, Timings, is_empty, may_be_empty, seconds, server_queue_s
from router_ml.serve.call import Call
from router_ml.serve.order import attempt_timeout_s, chain
from router_ml.serve.request import OptionPins, adapt, can
from router_ml.serve.request_state import RequestState
from router_ml.serve.stream import Sink

_COLD_TIMEOUTS = 3  # in a row: then a model is no longer believed to be loading


class FallbackRunner:
    """Calls and falls back. Lives in one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        catalogue: Catalogue,
        pins: OptionPins,
        options: GatewayOptions,
        clock: Callable[[], float],
    ) -> None:
        self._fleet, self._catalogue, self._pins = fleet, catalogue, pins
        self._options = options
        self._clock = clock

    async def walk(self, job: RequestState, sink: Sink | None) -> Answer:
        """Return the first answer of the chain. After the first part went to `sink` nothing is tried again.

        After an empty answer one more model is asked; where it gives none either, the last empty answer is returned.
        Raises `QueryError` for a request no model can take, and `GatewayError`."""
        try:
            return await self._walk(job, sink)
        except (AttemptsFailed, DeadlineExceeded, NoModelAvailable, Overloaded):
            if job.empty is None or (sink is not None and sink.started):
                raise
            return self._finished(job, *job.empty)

    async def _walk(self, job: RequestState, sink: Sink | None) -> Answer:
        models = self._ordered(job)
        for position, model in enumerate(models):
            backends = self._fleet.backends(model)
            for index, backend in enumerate(backends):
                later = [*([model] * (len(backends) - index - 1)), *models[position + 1 :]]
                response = await self._try(job, backend, later, sink)
                if response is not None:
                    if job.attempts[-1].ok or job.empty is not None or (sink is not None and sink.started):
                        return self._finished(job, backend, response)
                    job.empty = (backend, response)
                    break  # the next model, not the same one on another host
                if sink is not None and sink.started:
                    raise StreamInterrupted(f"{model} broke off: {job.attempts[-1].error}")
                self._raise_if_over(job)
        raise _nothing_left(job.attempts)

    def _ordered(self, job: RequestState) -> list[str]:
        """The chain, with the models that cannot see the images or use the tools at its end."""
        models = chain(job.chosen, self._options.last_resort, self._fleet.names)
        needs = ["tools"] * bool(job.request.tools) + ["vision"] * job.request.has_images
        if not needs:
            return list(models)
        return sorted(models, key=lambda model: self._lacks(self._fleet.backends(model)[0], needs))

    def _lacks(self, backend: Backend, needs: Sequence[str]) -> int:
        return sum(not self._can(backend, capability) for capability in needs)

    def _can(self, backend: Backend, capability: str) -> bool:
        return can(self._catalogue.find(backend.model), backend.capabilities(self._catalogue), capability)

    def _raise_if_over(self, job: RequestState) -> None:
        failure = job.attempts[-1].failure
        if failure is not None and failure.kind == "invalid":
            raise QueryError(f"no model can take this request: {failure.message}")
        if self._clock() >= job.deadline_s:
            raise DeadlineExceeded(f"no answer within the deadline; tried {_told(job.attempts)}")

    async def _try(
        self, job: RequestState, backend: Backend, later: Sequence[str], sink: Sink | None
    ) -> ollama.ChatResponse | None:
        """One model on one host, and once more where it only refused a part of the request it can do without."""
        response = await self._attempt(job, backend, later, sink)
        failure = job.attempts[-1].failure
        if response is not None or failure is None or not failure.unsupported:
            return response
        backend.lacks |= {failure.unsupported}
        can_do_without = failure.unsupported == "thinking" or (failure.unsupported == "tools" and not later)
        if can_do_without and self._clock() < job.deadline_s:
            return await self._attempt(job, backend, later, sink)
        return None

    async def _attempt(
        self, job: RequestState, backend: Backend, later: Sequence[str], sink: Sink | None
    ) -> ollama.ChatResponse | None:
        passed_over = why_not(backend)
        if passed_over is not None:
            self._failed(job, backend, passed_over)
            return None
        timeout_s = self._timeout_s(job, backend, later)
        candidate = job.candidate(backend.model)
        service_s = backend.rates.service_s or (candidate.latency_s.p50 if candidate else 1.0)
        try:
            waited_s = await backend.gate.enter(timeout_s, service_s)
        except Shed as shed:
            self._failed(job, backend, Failure("shed", str(shed), retry_after_s=shed.retry_after_s))
            return None
        try:
            job.waited_s += waited_s
            return await self._call(job, backend, timeout_s, sink)
        finally:
            backend.gate.leave()

    async def _call(
        self, job: RequestState, backend: Backend, timeout_s: float, sink: Sink | None
    ) -> ollama.ChatResponse | None:
        capabilities = backend.capabilities(self._catalogue)
        model = self._catalogue.find(backend.model)
        arguments, adapted = adapt(
            job.request, model, capabilities, self._pins, backend.model, self._options.keep_alive
        )
        warm = backend.resident is True
        permit = backend.breaker.acquire()
        if permit is None:
            self._failed(job, backend, _resting(backend))
            return None
        call = Call(job, backend, arguments, timeout_s, self._options.idle_s, self._clock)
        try:
            response = await call.run(sink)
        except asyncio.CancelledError:
            permit.released()
            raise
        except Exception as error:
            failure = self._judged(job, backend, classify(error, cold=not warm), call.timeout_s)
            (permit.failed if failure.blames_model else permit.released)()
            self._failed(job, backend, failure, call, adapted)
            return None
        permit.succeeded()
        if is_empty(response) and not may_be_empty(job.request.options):
            self._failed(job, backend, Failure("empty", "the model answered nothing"), call, adapted)
            return response
        self._pins.worked(backend.model, arguments.get("options"))
        self._learn(job, backend, response, call, warm)
        job.attempts.append(self._told_of(backend, None, call, adapted))
        return response

    def _failed(
        self,
        job: RequestState,
        backend: Backend,
        failure: Failure,
        call: Call | None = None,
        adapted: tuple[str, ...] = (),
    ) -> None:
        """Writes a failed attempt down, and what it says about the model."""
        if failure.blames_model:
            backend.rates.failed()
        if failure.kind == "missing":
            backend.host.missing(backend.model)
        job.attempts.append(self._told_of(backend, failure, call, adapted))

    def _judged(self, job: RequestState, backend: Backend, failure: Failure, timeout_s: float) -> Failure:
        """Whether running out of time says anything about the model."""
        if failure.kind == "cold_timeout":
            backend.cold_timeouts += 1
            # A load is no failure. But a host that never gets done loading, or that does not even say what it has in
            # memory, is not loading.
            if backend.cold_timeouts >= _COLD_TIMEOUTS or backend.host.running.failing:
                return dataclasses.replace(failure, kind="timeout")
        candidate = job.candidate(backend.model)
        if failure.kind == "timeout" and candidate is not None and timeout_s < candidate.latency_s.p95:
            return dataclasses.replace(failure, kind="cut_short", message="the deadline left it too little time")
        return failure

    def _timeout_s(self, job: RequestState, backend: Backend, later: Sequence[str]) -> float:
        candidate = job.candidate(backend.model)
        able = [model for model in later if self._may_serve(model)]
        return attempt_timeout_s(
            candidate.latency_s if candidate else None,
            backend.resident,
            backend.load_s,
            job.deadline_s - self._clock(),
            [after.latency_s if (after := job.candidate(model)) else None for model in able],
            self._options,
            probe=backend.breaker.state == "half_open",
            decode_tokens_per_s=backend.rates.decode_tokens_per_s,
        )

    def _may_serve(self, model: str) -> bool:
        return any(why_not(backend) is None for backend in self._fleet.backends(model))

    def _learn(
        self, job: RequestState, backend: Backend, response: ollama.ChatResponse, call: Call, warm: bool
    ) -> None:
        load_s = seconds(response.load_duration)
        backend.cold_timeouts = 0
        backend.host.answered(backend.model)
        backend.rates.succeeded(
            self._clock() - call.began_s,
            load_s,
            response.prompt_eval_count,
            seconds(response.prompt_eval_duration),
            response.eval_count,
            seconds(response.eval_duration),
            resident=warm,
        )
        cold = was_cold(load_s, warm)
        if cold and load_s is not None:
            backend.loaded_in(load_s)
        job.resident = None if cold is None else not cold

    def _told_of(
        self, backend: Backend, failure: Failure | None, call: Call | None, adapted: tuple[str, ...]
    ) -> Attempt:
        return Attempt(
            model=backend.model,
            host=backend.host.url,
            latency_s=self._clock() - call.began_s if call else 0.0,
            timeout_s=call.timeout_s if call else None,
            failure=failure,
            first_token_s=call.first_token_s if call else None,
            breaker=backend.breaker.state,
            adapted=adapted,
        )

    def _finished(self, job: RequestState, backend: Backend, response: ollama.ChatResponse) -> Answer:
        server_s = server_queue_s(response)
        timings = Timings(
            total_s=self._clock() - job.began_s,
            queue_s=None if server_s is None else server_s + job.waited_s,
            load_s=seconds(response.load_duration),
            prompt_eval_s=seconds(response.prompt_eval_duration),
            eval_s=seconds(response.eval_duration),
            decide_s=job.decide_s,
            first_token_s=job.first_token_s,
        )
        return Answer(response, job.chosen, backend.model, timings, tuple(job.attempts), host=backend.host.url)


def why_not(backend: Backend) -> Failure | None:
    """Why a model is not even called, or None."""
    if backend.installed is False:
        return Failure("absent", "it is not installed there")
    return None if backend.breaker.admits() else _resting(backend)


def _resting(backend: Backend) -> Failure:
    wait_s = backend.breaker.retry_after_s
    return Failure("open", f"resting after failures for another {wait_s:.1f} s", retry_after_s=wait_s)


def _nothing_left(attempts: Sequence[Attempt]) -> GatewayError:
    failures = [attempt.failure for attempt in attempts if attempt.failure is not None]
    kinds = {failure.kind for failure in failures}
    if kinds & {"shed", "busy"} and kinds <= {"shed", "busy", "open", "absent", "missing"}:
        waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
        wait_s = min(waits, default=1.0)
        return Overloaded(f"every model is busy; try again in {wait_s:.1f} s", wait_s)
    if kinds <= {"open", "absent", "missing"}:
        return NoModelAvailable(f"no model can be called: {_told(attempts)}")
    return AttemptsFailed(f"every model failed: {_told(attempts)}", attempts)


def _told(attempts: Sequence[Attempt]) -> str:
    return "; ".join(f"{a.model} at {a.host}: {a.error or 'ok'}" for a in attempts) or "nothing"
