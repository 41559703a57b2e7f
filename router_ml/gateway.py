"""One request through real models, whatever breaks: choose -> call -> fall back -> record."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import queue
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload

import ollama

from router_ml.backends.answer import Answer, Attempt, Timings, seconds, server_queue_s
from router_ml.backends.background import BackgroundLoop
from router_ml.backends.failure import Failure, classify
from router_ml.backends.fallback import attempt_timeout_s, chain, pin, plain_decision, stick
from router_ml.backends.fleet import Backend, Fleet
from router_ml.backends.gate import Shed
from router_ml.backends.ollama import ClientFactory, default_client
from router_ml.backends.options import GatewayOptions
from router_ml.backends.preload import Demand
from router_ml.backends.rates import was_cold
from router_ml.backends.request import ChatRequest, OptionPins, adapt, can, checked, part, plain
from router_ml.backends.stream import AnswerStream, AsyncAnswerStream, Item, Opened, Sink, joined
from router_ml.cache.exact import CacheStats, ExactCache
from router_ml.cache.key import CacheKey, cache_key, deterministic
from router_ml.cache.semantic import SemanticCache
from router_ml.catalogue import Catalogue
from router_ml.context import parse_context
from router_ml.errors import (
    AttemptsFailed,
    DeadlineExceeded,
    InputError,
    NoModelAvailable,
    Overloaded,
    QueryError,
    StreamInterrupted,
)
from router_ml.experiments.assignment import Assignment
from router_ml.schema import Candidate, Context, Decision, MachineState
from router_ml.selection.policy import Policy
from router_ml.telemetry.event import AttemptEvent, NullRecorder, OutcomeEvent, Recorder, decision_event

log = logging.getLogger(__name__)

Message = Mapping[str, Any] | ollama.Message
Assigner = Callable[[str, Context], Assignment | None]

_SESSIONS = 10_000  # sessions whose last model is remembered
_GRACE_S = 1.0  # how long past the deadline a caller's thread waits for the loop before it gives up on it
_COLD_TIMEOUTS = 3  # in a row: then it is no longer believed to be loading


class Decider(Protocol):
    """What chooses: a `Router`, or anything that decides as one does."""

    def decide(
        self,
        query: str,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Choose a model for one query."""


@dataclass
class _Job:
    """One request on its way."""

    request: ChatRequest
    context: Context
    policy: Policy | str
    began_s: float
    deadline_s: float  # a point on the clock, not a duration
    model: str | None = None
    key: CacheKey | None = None
    assignment: Assignment | None = None
    decision: Decision | None = None
    decide_s: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    waited_s: float = 0.0
    resident: bool | None = None
    first_token_s: float | None = None

    @property
    def policy_name(self) -> str:
        return self.policy if isinstance(self.policy, str) else self.policy.name

    def candidate(self, model: str) -> Candidate | None:
        ranked = self.decision.ranked if self.decision else ()
        return next((c for c in ranked if c.model == model), None)


class Gateway:
    """Carries requests out. Thread-safe; plain and async callers share one background loop and its connections.

    `decider` chooses (a `Router`); `catalogue` says which models and hosts there are; `recorder` gets the events;
    `assigner` says which variant of a running experiment a unit (session or request) gets, and `decider_of` which
    decider serves a variant's bundle. `cache` and `semantic_cache` are off unless given."""

    def __init__(
        self,
        decider: Decider,
        catalogue: Catalogue,
        *,
        default_host: str = "http://127.0.0.1:11434",
        policy: Policy | str = "balanced",
        options: GatewayOptions | None = None,
        recorder: Recorder | None = None,
        assigner: Assigner | None = None,
        decider_of: Callable[[str], Decider] | None = None,
        cache: ExactCache[Answer] | None = None,
        semantic_cache: SemanticCache[Answer] | None = None,
        cache_unscoped: bool = False,
        clock: Callable[[], float] = time.monotonic,
        client_factory: ClientFactory = default_client,
        closers: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._closers = tuple(closers)  # what ends with this gateway (the writer of its events, say)
        self.options = options or GatewayOptions()
        self.catalogue = catalogue
        self._decider = decider
        self._decider_of = decider_of
        self._policy = policy
        self._recorder = recorder or NullRecorder()
        self._assigner = assigner
        self._cache, self._semantic, self._cache_unscoped = cache, semantic_cache, cache_unscoped
        self._clock = clock
        self._loop = BackgroundLoop()
        self._fleet = Fleet(catalogue, default_host, self.options, clock, client_factory)
        self._pins = OptionPins(
            {self._fleet.names.canonical(name): options for name, options in self.options.model_options.items()}
        )
        self._deciding = ThreadPoolExecutor(2, thread_name_prefix="router-ml-decide")
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._cold_timeouts: dict[int, int] = {}
        self._demand = Demand()
        self._preloading: asyncio.Task[None] | None = None
        self._closed = False

    # -- the doors ----------------------------------------------------------------------------------------------

    @overload
    def chat(self, messages: str | Sequence[Message], *, stream: Literal[False] = False, **more: Any) -> Answer: ...
    @overload
    def chat(self, messages: str | Sequence[Message], *, stream: Literal[True], **more: Any) -> AnswerStream: ...
    @overload
    def chat(self, messages: str | Sequence[Message], *, stream: bool, **more: Any) -> Answer | AnswerStream: ...

    def chat(self, messages: str | Sequence[Message], *, stream: bool = False, **more: Any) -> Answer | AnswerStream:
        """Answers a conversation with the model that suits it.

        `more`, all optional: `tools`, `context` (see `select_model`), `policy`, `deadline_s` (of the whole request),
        `model` (one the caller insists on trying first), and `think`, `format`, `options`, `keep_alive`, `logprobs`,
        `top_logprobs` as the ollama client takes them.

        With `stream=True` it returns once the first part is there; iterate to read on.

        Raises `InputError` for a request no model can take, and of `GatewayError`: `NoModelAvailable`, `Overloaded`
        (with `retry_after_s`), `DeadlineExceeded`, `AttemptsFailed`, and, within a stream, `StreamInterrupted`."""
        job = self._job(messages, **more)
        if not stream:
            return self._wait(self._loop.submit(self._answer(job)), job)
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        task = self._loop.submit(self._stream(job, Sink(items.put)))
        try:
            first = items.get(timeout=self._patience_s(job))
        except queue.Empty:
            task.cancel()
            raise DeadlineExceeded("the gateway gave no sign within the deadline") from None
        if isinstance(first, BaseException):
            raise first
        assert isinstance(first, Opened)
        return AnswerStream(first, items, task, self._patience_s(job))

    @overload
    async def achat(
        self, messages: str | Sequence[Message], *, stream: Literal[False] = False, **more: Any
    ) -> Answer: ...
    @overload
    async def achat(
        self, messages: str | Sequence[Message], *, stream: Literal[True], **more: Any
    ) -> AsyncAnswerStream: ...
    @overload
    async def achat(
        self, messages: str | Sequence[Message], *, stream: bool, **more: Any
    ) -> Answer | AsyncAnswerStream: ...

    async def achat(
        self, messages: str | Sequence[Message], *, stream: bool = False, **more: Any
    ) -> Answer | AsyncAnswerStream:
        """`chat` for coroutines; cancelling it ends the generation. Same arguments and errors."""
        job = self._job(messages, **more)
        if not stream:
            return await asyncio.wrap_future(self._loop.submit(self._answer(job)))
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()
        put = functools.partial(_put_across, loop, items)
        task = self._loop.submit(self._stream(job, Sink(put)))
        try:
            async with asyncio.timeout(self._patience_s(job)):
                first = await items.get()
        except (TimeoutError, asyncio.CancelledError) as error:
            task.cancel()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded("the gateway gave no sign within the deadline") from None
            raise
        if isinstance(first, BaseException):
            raise first
        assert isinstance(first, Opened)
        return AsyncAnswerStream(first, items, task, self._patience_s(job))

    def machine(self) -> MachineState:
        """What is known of every model right now, by the latest looks; asks nobody."""
        return self._fleet.state()

    def refresh(self) -> MachineState:
        """Looks at every host anew, and says what is known then."""

        async def look() -> MachineState:
            self._fleet.probe_all()
            await self._fleet.look()
            return self._fleet.state()

        return self._loop.submit(look()).result(10.0)

    def preload(self, model: str) -> None:
        """Puts a model in memory. Raises `NoModelAvailable` where its host does not do so within the deadline."""
        loading = self._loop.submit(self._load(self._fleet.names.canonical(model)))
        try:
            loading.result(self.options.deadline_s + _GRACE_S)
        except Exception as error:
            loading.cancel()
            raise NoModelAvailable(f"{model} could not be loaded: {classify(error)}") from error

    @property
    def cache_stats(self) -> CacheStats | None:
        """Hits, misses and hit rate of the answer cache; None where there is none."""
        return self._cache.stats if self._cache is not None else None

    def status(self) -> dict[str, Any]:
        """A JSON-ready view: every model on every host, and the caches."""
        rows = [
            {
                "model": backend.model,
                "host": backend.host.url,
                "breaker": backend.breaker.state,
                "running": backend.gate.inside,
                "waiting": backend.gate.waiting,
                "service_s": backend.rates.service_s,
                **dataclasses.asdict(backend.state()),
            }
            for model in self.catalogue.models
            for backend in self._fleet.backends(model.name)
        ]
        stats = self.cache_stats
        cache = None if stats is None else {**dataclasses.asdict(stats), "hit_rate": stats.hit_rate}
        return {"backends": rows, "cache": cache}

    def close(self) -> None:
        """Ends what runs and closes every connection."""
        if not self._closed:
            self._closed = True
            self._loop.close(self._fleet.close())
            self._deciding.shutdown(wait=False, cancel_futures=True)
            for close in self._closers:
                close()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one request --------------------------------------------------------------------------------------------

    def _job(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str | None = None,
        deadline_s: float | None = None,
        model: str | None = None,
        **form: Any,
    ) -> _Job:
        began_s = self._clock()
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        try:
            request = checked(ChatRequest(tuple(turns or ()), tuple(tools or ()), **form))
        except TypeError as error:
            raise QueryError(f"chat takes no such argument: {error}") from error
        limit_s = self.options.deadline_s if deadline_s is None else deadline_s
        if not limit_s > 0:
            raise QueryError(f"deadline_s must be above 0, found {deadline_s!r}")
        if self._closed:
            raise NoModelAvailable("this gateway is closed; make a new one")
        chosen = self._policy if policy is None else policy
        return _Job(request, _context(request, context), chosen, began_s, began_s + limit_s, model)

    def _wait(self, future: concurrent.futures.Future[Answer], job: _Job) -> Answer:
        try:
            return future.result(self._patience_s(job))
        except concurrent.futures.TimeoutError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            future.cancel()
            raise DeadlineExceeded("the gateway gave no sign within the deadline") from None
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _patience_s(self, job: _Job) -> float:
        return max(0.0, job.deadline_s - self._clock()) + _GRACE_S

    async def _stream(self, job: _Job, sink: Sink) -> None:
        try:
            answer = await self._answer(job, sink)
        except asyncio.CancelledError:
            sink.ended(StreamInterrupted("the stream was closed"))
            raise
        except Exception as error:
            sink.ended(error)
        else:
            if not sink.started:  # from a cache: one part that is the whole
                assert job.decision is not None
                sink.opened(Opened(job.decision, answer.model, ()))
                sink.part(answer.response)
            sink.ended(answer)

    async def _answer(self, job: _Job, sink: Sink | None = None) -> Answer:
        kept = await self._from_cache(job)
        if kept is not None:
            return kept
        try:
            await self._decide(job)
            answer = await self._walk(job, sink)
        except asyncio.CancelledError:
            self._record_failure(job, "cancelled")
            raise
        except Exception as error:
            self._record_failure(job, type(error).__name__)
            raise
        self._record_success(job, answer)
        self._keep(job, answer)
        self._maybe_preload(answer.model)
        return answer

    # -- choose -------------------------------------------------------------------------------------------------

    async def _decide(self, job: _Job) -> None:
        await self._fleet.look()
        began_s = self._clock()
        session = job.context.session_id
        unit = session or uuid.uuid4().hex
        job.assignment = self._assign(unit, job.context)
        work = functools.partial(self._decide_now, job, self._fleet.state())
        deciding = asyncio.get_running_loop().run_in_executor(self._deciding, work)
        try:
            async with asyncio.timeout(max(0.0, job.deadline_s - self._clock())):
                decision = await deciding
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before a model was chosen") from None
        if session is not None and job.model is None:
            decision = stick(decision, self._sessions.get(session), self.options.stick_margin, self._fleet.names)
        job.decision = decision
        job.decide_s = self._clock() - began_s
        self._demand.chose(decision.model)

    def _decide_now(self, job: _Job, machine: MachineState) -> Decision:
        variant = job.assignment.variant if job.assignment else None
        policy = (variant.policy if variant else None) or job.policy
        decider = self._decider
        if variant and variant.bundle and self._decider_of is not None:
            decider = self._decider_of(variant.bundle)
        try:
            decision = decider.decide(
                job.request.text, job.context, policy, machine, variant=variant.name if variant else None
            )
        except InputError:
            raise
        except Exception as error:  # whatever the decider is, the request goes on
            log.warning("the decider failed, routing plainly: %s", error)
            why = f"the decider failed ({type(error).__name__}); the catalogue's order stands in"
            decision = plain_decision(self.catalogue, job.policy_name, why)
        named = job.model or (variant.model if variant else None)
        return pin(decision, named, self._fleet.names) if named else decision

    def _assign(self, unit: str, context: Context) -> Assignment | None:
        if self._assigner is None:
            return None
        try:
            return self._assigner(unit, context)
        except Exception as error:  # an experiment must never cost an answer
            log.warning("no experiment for this request: %s", error)
            return None

    # -- call and fall back -------------------------------------------------------------------------------------

    async def _walk(self, job: _Job, sink: Sink | None) -> Answer:
        assert job.decision is not None
        models = self._ordered(job)
        for position, model in enumerate(models):
            backends = self._fleet.backends(model)
            for index, backend in enumerate(backends):
                later = [*([model] * (len(backends) - index - 1)), *models[position + 1 :]]
                response = await self._try(job, backend, later, sink)
                if response is not None:
                    return self._finished(job, backend, response)
                if sink is not None and sink.started:
                    raise StreamInterrupted(f"{model} broke off: {job.attempts[-1].error}")
                self._raise_if_over(job)
        raise self._nothing_left(job)

    def _ordered(self, job: _Job) -> list[str]:
        """The chain, with the models that cannot use the tools offered at its end."""
        assert job.decision is not None
        models = chain(job.decision, self.options.last_resort, self._fleet.names)
        if not job.request.tools:
            return list(models)
        return sorted(models, key=lambda model: not self._can(self._fleet.backends(model)[0], "tools"))

    def _can(self, backend: Backend, capability: str) -> bool:
        return can(self.catalogue.find(backend.model), backend.capabilities(self.catalogue), capability)

    def _raise_if_over(self, job: _Job) -> None:
        last = job.attempts[-1]
        if last.failure is not None and last.failure.kind == "invalid":
            raise QueryError(f"no model can take this request: {last.failure.message}")
        if self._clock() >= job.deadline_s:
            raise DeadlineExceeded(f"no answer within the deadline; tried {_tried(job.attempts)}")

    def _nothing_left(self, job: _Job) -> Exception:
        failures = [attempt.failure for attempt in job.attempts if attempt.failure is not None]
        kinds = {failure.kind for failure in failures}
        if kinds & {"shed", "busy"} and kinds <= {"shed", "busy", "open", "absent", "missing"}:
            waits = [failure.retry_after_s for failure in failures if failure.retry_after_s is not None]
            wait_s = min(waits, default=1.0)
            return Overloaded(f"every model is busy; try again in {wait_s:.1f} s", wait_s)
        if kinds <= {"open", "absent", "missing"}:
            return NoModelAvailable(f"no model can be called: {_tried(job.attempts)}")
        return AttemptsFailed(f"every model failed: {_tried(job.attempts)}", job.attempts)

    async def _try(
        self, job: _Job, backend: Backend, later: Sequence[str], sink: Sink | None
    ) -> ollama.ChatResponse | None:
        """One model on one host, and once more where it only refused a part of the request it can do without."""
        response = await self._attempt(job, backend, later, sink)
        failure = job.attempts[-1].failure
        if response is None and failure is not None and failure.unsupported:
            backend.lacks |= {failure.unsupported}
            stripped = failure.unsupported == "thinking" or (failure.unsupported == "tools" and not later)
            if stripped and self._clock() < job.deadline_s:
                response = await self._attempt(job, backend, later, sink)
        return response

    async def _attempt(
        self, job: _Job, backend: Backend, later: Sequence[str], sink: Sink | None
    ) -> ollama.ChatResponse | None:
        passed_over = _passed_over(backend)
        if passed_over is not None:
            job.attempts.append(self._tried(backend, failure=passed_over))
            return None
        timeout_s = self._timeout_s(job, backend, later)
        service_s = backend.rates.service_s or (self._p50_s(job, backend.model) or 1.0)
        try:
            waited_s = await backend.gate.enter(timeout_s, service_s)
        except Shed as shed:
            failure = Failure("shed", str(shed), retry_after_s=shed.retry_after_s)
            job.attempts.append(self._tried(backend, failure=failure))
            return None
        try:
            job.waited_s += waited_s
            return await self._call(job, backend, timeout_s, later, sink)
        finally:
            backend.gate.leave()

    async def _call(
        self, job: _Job, backend: Backend, timeout_s: float, later: Sequence[str], sink: Sink | None
    ) -> ollama.ChatResponse | None:
        permit = backend.breaker.acquire()
        if permit is None:
            failure = Failure("open", "its circuit opened while we waited", retry_after_s=backend.breaker.retry_after_s)
            job.attempts.append(self._tried(backend, failure=failure))
            return None
        arguments, adapted = adapt(
            job.request, self.catalogue.find(backend.model), backend.capabilities(self.catalogue), self._pins,
            backend.model, self.options.keep_alive,
        )  # fmt: skip
        began_s = self._clock()
        timeout_s = max(0.0, min(timeout_s, job.deadline_s - began_s))
        warm = backend.resident is True
        call = _Call(job, backend, arguments, began_s, timeout_s, self.options.idle_s, self._clock)
        try:
            response = await call.run(sink)
        except asyncio.CancelledError:
            permit.released()
            raise
        except Exception as error:
            failure = self._judge(job, backend, classify(error, cold=not warm), timeout_s)
            (permit.failed if failure.blames_model else permit.released)()
            if failure.blames_model:
                backend.rates.failed()
            if failure.kind == "missing":
                backend.host.missing(backend.model)
            if sink is not None and sink.started:
                log.info("a stream of %s broke off: %s", backend.model, failure)
            job.attempts.append(self._tried(backend, call, failure, adapted))
            return None
        permit.succeeded()
        self._cold_timeouts.pop(id(backend), None)
        self._learn(job, backend, response, call)
        job.attempts.append(self._tried(backend, call, None, adapted))
        return response

    def _judge(self, job: _Job, backend: Backend, failure: Failure, timeout_s: float) -> Failure:
        """Whether running out of time says anything about the model."""
        if failure.kind == "cold_timeout":
            times = self._cold_timeouts.get(id(backend), 0) + 1
            self._cold_timeouts[id(backend)] = times
            # A load is no failure. But a host that never gets done loading, or that does not even say what it has in
            # memory, is not loading.
            if times >= _COLD_TIMEOUTS or backend.host.running.failing:
                return dataclasses.replace(failure, kind="timeout")
        if failure.kind == "timeout":
            usual_s = self._p95_s(job, backend.model)
            if usual_s is not None and timeout_s < usual_s:
                return dataclasses.replace(failure, kind="cut_short", message="the deadline left it too little time")
        return failure

    def _timeout_s(self, job: _Job, backend: Backend, later: Sequence[str]) -> float:
        candidate = job.candidate(backend.model)
        after = [c.latency_s if (c := job.candidate(model)) else None for model in later if self._may_serve(model)]
        return attempt_timeout_s(
            candidate.latency_s if candidate else None, backend.resident, backend.load_s,
            job.deadline_s - self._clock(), after, self.options, probe=backend.breaker.state == "half_open",
        )  # fmt: skip

    def _may_serve(self, model: str) -> bool:
        return any(_passed_over(backend) is None for backend in self._fleet.backends(model))

    def _p50_s(self, job: _Job, model: str) -> float | None:
        candidate = job.candidate(model)
        return candidate.latency_s.p50 if candidate else None

    def _p95_s(self, job: _Job, model: str) -> float | None:
        candidate = job.candidate(model)
        return candidate.latency_s.p95 if candidate else None

    def _learn(self, job: _Job, backend: Backend, response: ollama.ChatResponse, call: _Call) -> None:
        load_s = seconds(response.load_duration)
        backend.host.answered(backend.model)
        backend.rates.succeeded(
            self._clock() - call.began_s, load_s, response.prompt_eval_count, seconds(response.prompt_eval_duration),
            response.eval_count, seconds(response.eval_duration),
        )  # fmt: skip
        cold = was_cold(load_s)
        if cold and load_s is not None:
            backend.loaded_in(load_s)
        job.resident = None if cold is None else not cold
        if job.context.session_id is not None:
            self._sessions[job.context.session_id] = backend.model
            self._sessions.move_to_end(job.context.session_id)
            while len(self._sessions) > _SESSIONS:
                self._sessions.popitem(last=False)

    def _tried(
        self, backend: Backend, call: _Call | None = None, failure: Failure | None = None,
        adapted: tuple[str, ...] = (),
    ) -> Attempt:  # fmt: skip
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

    def _finished(self, job: _Job, backend: Backend, response: ollama.ChatResponse) -> Answer:
        assert job.decision is not None
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
        return Answer(response, job.decision, backend.model, timings, tuple(job.attempts), host=backend.host.url)

    # -- caches -------------------------------------------------------------------------------------------------

    async def _from_cache(self, job: _Job) -> Answer | None:
        if self._cache is None and self._semantic is None:
            return None
        job.key = self._key(job)
        if job.key is None:
            return None
        kept = self._cache.get(job.key.whole) if self._cache is not None else None
        if kept is None and self._semantic is not None:
            near = functools.partial(self._semantic.get, job.key)
            kept = await asyncio.get_running_loop().run_in_executor(self._deciding, near)
        if kept is None:
            return None
        decision = dataclasses.replace(kept.decision, decision_id=uuid.uuid4().hex)
        job.decision = decision
        timings = Timings(total_s=self._clock() - job.began_s)
        response = kept.response.model_copy(deep=True)  # the caller may write into it
        answer = dataclasses.replace(
            kept, response=response, decision=decision, timings=timings, attempts=(), cached=True
        )
        self._recorder.record(self._outcome(job, answer, ok=True, error=None))
        return answer

    def _key(self, job: _Job) -> CacheKey | None:
        request, extra = job.request, job.context.extra
        scope = str(extra.get("user_id") or job.context.session_id or "")
        if not deterministic(request.options) or not (scope or self._cache_unscoped):
            return None
        form = {"format": request.format, "think": request.think, "model": job.model, "logprobs": request.logprobs,
                "top": request.top_logprobs}  # fmt: skip
        messages = [
            {key: part(m, key) for key in ("role", "content", "images", "tool_calls", "tool_name", "thinking")}
            for m in request.messages
        ]
        return cache_key(scope, messages, [plain(t) for t in request.tools], request.options, form, job.policy_name)

    def _keep(self, job: _Job, answer: Answer) -> None:
        finished = answer.response.done and answer.response.done_reason in ("stop", None)
        if job.key is None or not finished or job.assignment is not None:
            return
        own = dataclasses.replace(answer, response=answer.response.model_copy(deep=True))  # the caller may write in his
        if self._cache is not None:
            self._cache.put(job.key.whole, own, len(answer.response.model_dump_json()))
        if self._semantic is not None:
            self._deciding.submit(self._semantic.put, job.key, own)

    # -- record -------------------------------------------------------------------------------------------------

    def _record_success(self, job: _Job, answer: Answer) -> None:
        self._record(job, self._outcome(job, answer, ok=True, error=None))

    def _record_failure(self, job: _Job, error: str) -> None:
        if job.decision is not None:
            self._record(job, self._outcome(job, None, ok=False, error=error))

    def _record(self, job: _Job, outcome: OutcomeEvent) -> None:
        assert job.decision is not None
        experiment = job.assignment.experiment if job.assignment else None
        self._recorder.record(
            decision_event(
                job.decision,
                experiment=experiment,
                unit=outcome.unit,
                pinned=job.model is not None,
                prompt_tokens=job.context.prompt_tokens,
                text=job.request.text,
            )
        )
        for index, attempt in enumerate(job.attempts):
            self._recorder.record(
                AttemptEvent(
                    decision_id=job.decision.decision_id,
                    model=attempt.model,
                    index=index,
                    ok=attempt.ok,
                    latency_s=attempt.latency_s,
                    first_token_s=attempt.first_token_s,
                    error=attempt.failure.kind if attempt.failure else None,
                    host=attempt.host,
                    breaker=attempt.breaker,
                    variant=job.decision.variant,
                )
            )
        self._recorder.record(outcome)
        if job.assignment is not None and job.assignment.shadow is not None:
            self._deciding.submit(self._decide_in_shadow, job, job.assignment)

    def _decide_in_shadow(self, job: _Job, assignment: Assignment) -> None:
        """What the challenger would have chosen, for the record alone."""
        assert assignment.shadow is not None
        shadow = _Job(job.request, job.context, job.policy, job.began_s, job.deadline_s)
        shadow.assignment = dataclasses.replace(assignment, variant=assignment.shadow, shadow=None)
        try:
            decision = self._decide_now(shadow, self._fleet.state())
        except Exception as error:
            log.warning("the shadow could not decide: %s", error)
            return
        event = decision_event(decision, experiment=assignment.experiment, unit=assignment.unit, shadow=True)
        self._recorder.record(event)

    def _outcome(self, job: _Job, answer: Answer | None, *, ok: bool, error: str | None) -> OutcomeEvent:
        decision = job.decision
        assert decision is not None
        response = answer.response if answer else None
        model = answer.model if answer else decision.model
        candidate = job.candidate(model)
        accurate = self.catalogue.by_role("accurate")
        best = job.candidate(accurate.name) if accurate else None
        timings = answer.timings if answer else Timings(total_s=self._clock() - job.began_s)
        return OutcomeEvent(
            decision_id=decision.decision_id,
            model=model,
            success=None if ok else 0.0,
            latency_s=timings.total_s,
            ok=ok,
            prompt_tokens=response.prompt_eval_count if response else None,
            output_tokens=response.eval_count if response else None,
            queue_s=timings.queue_s,
            load_s=timings.load_s,
            prompt_eval_s=timings.prompt_eval_s,
            eval_s=timings.eval_s,
            first_token_s=timings.first_token_s,
            cost_usd=self._cost_usd(model, response) if response and not (answer and answer.cached) else None,
            resident=job.resident,
            error=error,
            cache_hit=bool(answer and answer.cached),
            attempts=sum(1 for a in job.attempts if a.failure is None or a.failure.called),
            fallback=bool(answer and answer.fallback),
            complexity=decision.complexity,
            policy=decision.policy,
            bundle=decision.bundle,
            p_success=candidate.p_success if candidate else None,
            predicted_latency_s=candidate.latency_s.p50 if candidate else None,
            budget_s=job.context.latency_budget_s,
            accurate_latency_s=best.latency_s.p50 if best else None,
            accurate_cost_usd=best.cost_usd if best else None,
            experiment=job.assignment.experiment if job.assignment else None,
            variant=decision.variant,
            unit=job.assignment.unit if job.assignment else job.context.session_id,
            pinned=job.model is not None,
        )

    def _cost_usd(self, model: str, response: ollama.ChatResponse) -> float:
        entry = self.catalogue.find(model)
        if entry is None:
            return 0.0
        input_usd = (response.prompt_eval_count or 0) * entry.price_input_usd_per_mtok
        return (input_usd + (response.eval_count or 0) * entry.price_output_usd_per_mtok) / 1e6

    # -- preloading ---------------------------------------------------------------------------------------------

    def _maybe_preload(self, served: str) -> None:
        if not self.options.preload or (self._preloading is not None and not self._preloading.done()):
            return
        backends = [backend for model in self.catalogue.models for backend in self._fleet.backends(model.name)]
        busy = any(b.gate.inside for b in backends if b.model != served)
        wanted = self._demand.next_to_load({b.model: b.resident for b in backends if _passed_over(b) is None})
        if wanted is not None and not busy:
            self._preloading = asyncio.get_running_loop().create_task(self._load_quietly(wanted))

    async def _load_quietly(self, model: str) -> None:
        try:
            await self._load(model)
        except Exception as error:
            log.info("%s was not loaded ahead of time: %s", model, error)

    async def _load(self, model: str) -> None:
        backend = self._fleet.backends(model)[0]
        async with asyncio.timeout(self.options.deadline_s):
            await backend.host.transport.load(backend.wire_name, self._pins.of(model), self.options.keep_alive)
        backend.host.answered(model)


class _Call:
    """One call under its time limit."""

    def __init__(
        self, job: _Job, backend: Backend, arguments: Mapping[str, Any], began_s: float, timeout_s: float,
        idle_s: float, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.job, self.backend, self.arguments = job, backend, arguments
        self.began_s, self.timeout_s, self.idle_s = began_s, timeout_s, idle_s
        self.first_token_s: float | None = None
        self._clock = clock

    async def run(self, sink: Sink | None) -> ollama.ChatResponse:
        transport = self.backend.host.transport
        async with asyncio.timeout(self.timeout_s) as limit:
            if sink is None:
                return await transport.chat(self.backend.wire_name, self.arguments)
            parts: list[ollama.ChatResponse] = []
            async for piece in transport.stream(self.backend.wire_name, self.arguments):
                if not parts:
                    self._open(sink)
                parts.append(piece)
                sink.part(piece)
                now_s = asyncio.get_running_loop().time()
                limit.reschedule(now_s + min(self.idle_s, max(0.0, self.job.deadline_s - self._clock())))
            return joined(parts)

    def _open(self, sink: Sink) -> None:
        now_s = self._clock()
        self.first_token_s = now_s - self.began_s
        self.job.first_token_s = now_s - self.job.began_s
        assert self.job.decision is not None
        sink.opened(Opened(self.job.decision, self.backend.model, tuple(self.job.attempts)))


def _passed_over(backend: Backend) -> Failure | None:
    """Why a model is not even called."""
    if backend.installed is False:
        return Failure("absent", "it is not installed there")
    if not backend.breaker.admits():
        wait_s = backend.breaker.retry_after_s
        return Failure("open", f"resting after failures for another {wait_s:.1f} s", retry_after_s=wait_s)
    return None


def _tried(attempts: Sequence[Attempt]) -> str:
    return "; ".join(f"{a.model} at {a.host}: {a.error or 'ok'}" for a in attempts) or "nothing"


def _context(request: ChatRequest, given: Context | Mapping[str, Any] | None) -> Context:
    """The context of a request: what the caller gave, filled up from the messages and tools."""
    context = parse_context(given)
    derived = parse_context(
        {
            "tools": [plain(tool) for tool in request.tools],
            "history": [{"role": part(m, "role"), "content": part(m, "content")} for m in request.history],
            "attachment": "image" if request.has_images else None,
        }
    )
    return dataclasses.replace(
        context,
        tools=context.tools or derived.tools,
        n_tools=context.n_tools or derived.n_tools,
        history=context.history or derived.history,
        attachment=context.attachment or derived.attachment,
        attachment_kind=context.attachment_kind or derived.attachment_kind,
        prompt_tokens=request.prompt_tokens if context.prompt_tokens is None else context.prompt_tokens,
    )


def _put_across(loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Item], item: Item) -> None:
    try:
        loop.call_soon_threadsafe(items.put_nowait, item)
    except RuntimeError:  # the caller's loop is closed: nobody reads any more
        log.info("a stream's reader is gone")


__all__ = ["Answer", "AnswerStream", "AsyncAnswerStream", "Decider", "Gateway", "GatewayOptions"]
