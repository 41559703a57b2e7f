"""The gateway: its entry points, and the steps that serve a request."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
import numbers
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.errors import DeadlineExceeded, InputError, NoModelAvailable, QueryError, StreamInterrupted
from router_ml.events.event import NullRecorder, Recorder
from router_ml.hosts.failure import classify
from router_ml.hosts.fleet import HOST_TYPES, Fleet, HostFactory
from router_ml.hosts.options import GatewayOptions
from router_ml.numbers import short_repr
from router_ml.serve.answer import Answer
from router_ml.serve.answer_cache.answers import CachedAnswers
from router_ml.serve.answer_cache.exact import CacheStats, ExactCache
from router_ml.serve.answer_cache.semantic import SemanticCache
from router_ml.serve.background import BackgroundLoop
from router_ml.serve.cascade import CascadeStep
from router_ml.serve.choose import Assigner, Decider, DecisionStep
from router_ml.serve.clarify import asks_clarifying_question, clarifying_answer
from router_ml.serve.fallback import FallbackRunner
from router_ml.serve.judge import BlindJudge
from router_ml.serve.order import wanted
from router_ml.serve.preload import Preloader
from router_ml.serve.record import CANCELLED, EventRecorder
from router_ml.serve.request import ChatArguments, Messages, OptionPins, build_request
from router_ml.serve.request_state import RequestState, context_of
from router_ml.serve.stream import AnswerStream, AsyncAnswerStream, Item, Opened, Sink
from router_ml.shared_state import patience
from router_ml.shared_state.state import SharedState
from router_ml.types import Context, MachineState

log = logging.getLogger(__name__)

_GRACE_S = 1.0  # how long past the deadline a caller waits for the loop before giving up on it
_REFRESH_S = 10.0
_MAX_ID_CHARS = 200
_MAX_DEADLINE_S = 1e7  # 115 days: what a deadline without end means to the clocks of threads and event loops


class Gateway:
    """Sends requests to models. Thread-safe; plain and async callers share one background loop and its connections.

    `decider` chooses (a `Router`); `catalogue` says which models and hosts there are; `recorder` gets the events and
    `judge` a share of the answers; `assigner` says which variant of a running experiment a unit (session or request)
    gets, and `decider_of` which decider serves a variant's bundle. `cache` and `semantic_cache` are off unless given;
    answers are cached per user (`context["user_id"]`) or session, and across all users only with `cache_unscoped`.
    `shared` is what replicas share. `host_types` makes hosts by the prefix of their address. `closers` are called when
    the gateway is closed.

    A gateway that is no longer referenced closes itself, and so does one that is open when the interpreter ends. In a
    process forked from the one it was made in it starts anew, without what it had learned of the hosts."""

    def __init__(
        self,
        decider: Decider,
        catalogue: Catalogue,
        *,
        default_host: str = "http://127.0.0.1:11434",
        policy: Policy | str = "balanced",
        options: GatewayOptions | None = None,
        recorder: Recorder | None = None,
        judge: BlindJudge | None = None,
        assigner: Assigner | None = None,
        decider_of: Callable[[str], Decider] | None = None,
        cache: ExactCache[Answer] | None = None,
        semantic_cache: SemanticCache[Answer] | None = None,
        cache_unscoped: bool = False,
        clock: Callable[[], float] = time.monotonic,
        host_types: Mapping[str, HostFactory] = HOST_TYPES,
        closers: Sequence[Callable[[], object]] = (),
        shared: SharedState | None = None,
    ) -> None:
        self.options = options or GatewayOptions()
        self.catalogue = catalogue
        self._policy = policy
        self._clock = clock
        self._closed = False
        self._start_lock = threading.Lock()
        self._recorder = EventRecorder(recorder or NullRecorder(), catalogue, clock, judge)
        self._parts = functools.partial(
            _Parts, decider, default_host, self.options, assigner, decider_of, cache, semantic_cache,
            cache_unscoped, clock, host_types, shared,
        )  # fmt: skip
        self._running: list[_Parts] = []  # the last one is in use; those before it are a parent process's
        self._start()
        self._closing = weakref.finalize(self, _close_elsewhere, self._running, tuple(closers))
        self._closing.atexit = False  # see `_close_all`
        _OPEN.add(self)

    # -- entry points ---------------------------------------------------------------------------------------------

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = False, **more: Unpack[ChatArguments]) -> Answer: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **more: Unpack[ChatArguments]) -> AnswerStream: ...
    @overload
    def chat(self, messages: Messages, *, stream: bool, **more: Unpack[ChatArguments]) -> Answer | AnswerStream: ...

    def chat(self, messages: Messages, *, stream: bool = False, **more: Unpack[ChatArguments]) -> Answer | AnswerStream:
        """Answer a conversation with the model that suits it.

        `more`, all optional: `tools`, `context` (see `select_model`; `user_id` scopes cached answers), `policy`,
        `deadline_s` (of the whole request), `model` (tried first), and `think`, `format`, `options`, `keep_alive`,
        `logprobs`, `top_logprobs` as the ollama client takes them. `think` holds for whichever model answers. A
        pydantic class as `format` is sent as its schema.

        With `stream=True` it returns once the first part is there; iterate to read on. Where the policy asks
        clarifying questions and the query is ambiguous, no model is called: `answer.clarify` is true and the message is
        `options.clarifying_question`. Where that is None, or the user was asked just before, a model answers.

        Raises `InputError` for a request no model can take, and of `GatewayError`: `NoModelAvailable`, `Overloaded`
        (with `retry_after_s`), `DeadlineExceeded`, `AttemptsFailed`, and, within a stream, `StreamInterrupted`."""
        state = self._request(messages, **more)
        if not stream:
            return self._wait(self._loop.submit(self._serve(state)), state)
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        task = self._loop.submit(self._stream(state, Sink(items.put)))
        try:
            first = items.get(timeout=self._patience_s(state))
        except queue.Empty:
            task.cancel()
            raise _no_response() from None
        except KeyboardInterrupt:
            task.cancel()
            raise
        return AnswerStream(_opened(first), items, task, self._patience_s(state))

    @overload
    async def achat(
        self, messages: Messages, *, stream: Literal[False] = False, **more: Unpack[ChatArguments]
    ) -> Answer: ...
    @overload
    async def achat(
        self, messages: Messages, *, stream: Literal[True], **more: Unpack[ChatArguments]
    ) -> AsyncAnswerStream: ...
    @overload
    async def achat(
        self, messages: Messages, *, stream: bool, **more: Unpack[ChatArguments]
    ) -> Answer | AsyncAnswerStream: ...

    async def achat(
        self, messages: Messages, *, stream: bool = False, **more: Unpack[ChatArguments]
    ) -> Answer | AsyncAnswerStream:
        """Answer as `chat` does, for coroutines; cancelling it ends the generation. Same arguments and errors."""
        state = self._request(messages, **more)
        if not stream:
            return await self._await(self._loop.submit(self._serve(state)))
        items: asyncio.Queue[Item] = asyncio.Queue()
        put = functools.partial(_put_across, asyncio.get_running_loop(), items)
        task = self._loop.submit(self._stream(state, Sink(put)))
        try:
            async with asyncio.timeout(self._patience_s(state)):
                first = await items.get()
        except TimeoutError:
            task.cancel()
            raise _no_response() from None
        except asyncio.CancelledError:
            task.cancel()
            raise
        return AsyncAnswerStream(_opened(first), items, task, self._patience_s(state))

    def feedback(self, decision_id: str, score: float, comment: str | None = None) -> bool:
        """Record feedback on an answer, 0 bad .. 1 good; the id is `answer.decision.decision_id`, and a comment is
        stored only where text is.

        Returns False, and logs a warning, if it is not among the latest answers of this gateway; it is recorded all
        the same, for another process may have given that answer. Raises `InputError` for another score."""
        if not isinstance(decision_id, str) or not 0 < len(decision_id) <= _MAX_ID_CHARS:
            raise InputError(f"decision_id is `answer.decision.decision_id`, found {short_repr(decision_id)}")
        if not isinstance(score, numbers.Real) or not 0 <= score <= 1:
            raise InputError(f"a score is a number between 0 and 1, found {short_repr(score)}")
        known = self._recorder.judged(decision_id, float(score), comment)
        if not known:
            log.warning("feedback on %.60r, which is not among this gateway's latest decisions", decision_id)
        return known

    def machine(self) -> MachineState:
        """Return the state of every model by the latest refresh; no host is called."""
        self._restart_after_fork()
        return self._fleet.state()

    def refresh(self) -> MachineState:
        """Refresh the state of every host and return it. Raises `NoModelAvailable` on a closed gateway."""
        self._check_open()

        async def refreshed() -> MachineState:
            self._fleet.expire()
            await self._fleet.refresh()
            return self._fleet.state()

        return self._loop.submit(refreshed()).result(_REFRESH_S)

    def warm_up(self) -> None:
        """Refresh the state of every host in the background, so that no request waits for it."""
        self._check_open()
        self._loop.submit(self._fleet.refresh())

    def use_catalogue(self, catalogue: Catalogue) -> None:
        """Serve the models of another catalogue from now on; requests under way end with the one they began with."""
        self.catalogue = self._recorder.catalogue = catalogue
        if self._loop.usable and not self._closed:
            self._loop.submit(self._use(catalogue))

    async def _use(self, catalogue: Catalogue) -> None:
        self._fleet.use(catalogue)
        await self._fleet.refresh()

    def preload(self, model: str) -> None:
        """Load a model into memory. Raises `NoModelAvailable` if its host does not do so within the deadline."""
        self._check_open()
        loading = self._loop.submit(self._preloader.load(self._fleet.names.canonical(model)))
        try:
            loading.result(min(self.options.deadline_s, _MAX_DEADLINE_S) + _GRACE_S)
        except Exception as error:
            loading.cancel()
            raise NoModelAvailable(f"{model} could not be loaded: {classify(error)}") from error

    @property
    def cache_stats(self) -> CacheStats | None:
        """Return hits, misses and hit rate of the answer cache; None if there is none."""
        return self._answers.stats

    def status(self) -> dict[str, Any]:
        """Return a JSON-ready view: every model on every host, and the cache."""
        self._restart_after_fork()
        stats = self.cache_stats
        cache = None if stats is None else {**dataclasses.asdict(stats), "hit_rate": stats.hit_rate}
        return {"backends": self._fleet.rows(), "cache": cache}

    def close(self) -> None:
        """Cancel what runs, close every connection, and call the closers."""
        if self._closed:
            return
        self._closed = True
        _OPEN.discard(self)
        closing = self._closing.detach()
        if closing is not None:
            _close(*closing[2])

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one request ----------------------------------------------------------------------------------------------

    async def _serve(self, state: RequestState, sink: Sink | None = None) -> Answer:
        """Serve one request: cache, assign, decide, call with fallback, record."""
        patience.begin()
        state.streamed = sink is not None
        cached = await self._answers.find(state)
        if cached is not None:
            self._recorder.served_from_cache(state, cached)
            return cached
        with self._recorded_failure(state):
            await self._fleet.refresh()
            self._decision.assign(state)
            await self._decision.decide(state, self._fleet.state())
            question = self.options.clarifying_question
            if question is not None and asks_clarifying_question(state, question):
                answer = clarifying_answer(state, question, self._clock())
            else:
                self._preloader.wanted(wanted(state.chosen))
                answer = await self._cascade.run(state, sink)
        try:
            self._answered(state, answer)
        except Exception as error:  # an answer that was given reaches the caller
            log.warning("an answer could not be recorded or cached (%s)", type(error).__name__)
        return answer

    def _answered(self, state: RequestState, answer: Answer) -> None:
        self._recorder.answered(state, answer)
        if not answer.clarify:
            self._answers.store(state, answer)
            self._decision.answered(state, answer)
            self._preloader.consider()
        self._decide_in_shadow(state)

    def _request(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str | None = None,
        deadline_s: float | None = None,
        model: str | None = None,
        **form: Any,
    ) -> RequestState:
        """Build and encode a request, before anything is called for it. Raises `InputError`."""
        began_s = self._clock()
        request = build_request(messages, tools, **form)
        if model is not None and not isinstance(model, str):
            raise QueryError(f"model must be a name, found {type(model).__name__}")
        if policy is not None and not isinstance(policy, Policy | str | Path):
            raise QueryError(f"policy must be a name, a Policy or the path of a file, found {type(policy).__name__}")
        limit_s = _deadline(self.options.deadline_s if deadline_s is None else deadline_s)
        self._check_open()
        chosen = self._policy if policy is None else policy
        context = context_of(request, context)
        if request.think is None and context.think is not None:
            request = dataclasses.replace(request, think=context.think)
        return RequestState(request, context, chosen, began_s, began_s + limit_s, model)

    async def _stream(self, state: RequestState, sink: Sink) -> None:
        try:
            answer = await self._serve(state, sink)
        except asyncio.CancelledError:
            sink.ended(StreamInterrupted("the stream was closed"))
            raise
        except Exception as error:
            sink.ended(error)
        else:
            if not sink.started:  # a cached or empty answer, or a question: one part that is the whole
                sink.opened(Opened(state.chosen, answer.model, (), answer.think))
                sink.part(answer.reply)
            elif not sink.finished:  # thinking alone: its parts were passed on, but not the last one
                sink.part(answer.reply.end())
            sink.ended(answer)

    @contextlib.contextmanager
    def _recorded_failure(self, state: RequestState) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            self._recorder.failed(state, CANCELLED)
            self._decision.interrupted(state)
            raise
        except InputError:  # a mistake of the caller is not an outcome of a model
            raise
        except Exception as error:
            self._recorder.failed(state, type(error).__name__)
            self._decision.interrupted(state)
            raise

    def _decide_in_shadow(self, state: RequestState) -> None:
        if state.assignment is not None and state.assignment.shadow is not None:
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                self._pool.submit(self._record_shadow, state)

    def _record_shadow(self, state: RequestState) -> None:
        decision = self._decision.shadow(state, self._fleet.state())
        if decision is not None:
            self._recorder.shadow(state, decision)

    def _wait(self, future: concurrent.futures.Future[Answer], state: RequestState) -> Answer:
        try:
            return future.result(self._patience_s(state))
        except KeyboardInterrupt:
            future.cancel()
            raise
        except concurrent.futures.CancelledError:
            raise _is_closed() from None
        except concurrent.futures.TimeoutError:
            if future.done():  # the request's own error
                raise
            future.cancel()
            raise _no_response() from None

    async def _await(self, future: concurrent.futures.Future[Answer]) -> Answer:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _is_closed() from None
            raise

    def _patience_s(self, state: RequestState) -> float:
        return max(0.0, state.deadline_s - self._clock()) + _GRACE_S

    # -- its parts ------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Raise `NoModelAvailable` on a closed gateway; in a forked process, start it anew."""
        if self._closed:
            raise _is_closed()
        self._restart_after_fork()

    def _restart_after_fork(self) -> None:
        if not self._loop.usable and not self._closed:
            with self._start_lock:
                if not self._loop.usable:
                    self._start()

    def _start(self) -> None:
        parts = self._parts(catalogue=self.catalogue)
        self._running.append(parts)
        self._loop, self._pool, self._fleet = parts.loop, parts.pool, parts.fleet
        self._decision, self._cascade = parts.decision, parts.cascade
        self._answers, self._preloader = parts.answers, parts.preloader

    def _forked(self) -> None:
        self._start_lock = threading.Lock()  # a thread of the parent may have held it
        self._recorder.forked()


class _Parts:
    """What one process needs to serve requests: a loop with its thread and the connections that live in it."""

    def __init__(
        self,
        decider: Decider,
        default_host: str,
        options: GatewayOptions,
        assigner: Assigner | None,
        decider_of: Callable[[str], Decider] | None,
        cache: ExactCache[Answer] | None,
        semantic_cache: SemanticCache[Answer] | None,
        cache_unscoped: bool,
        clock: Callable[[], float],
        host_types: Mapping[str, HostFactory],
        shared: SharedState | None,
        *,
        catalogue: Catalogue,
    ) -> None:
        self.loop = BackgroundLoop()
        self.pool = pool = ThreadPoolExecutor(2, thread_name_prefix="router-ml-decide")
        self.fleet = fleet = Fleet(catalogue, default_host, options, clock, host_types, shared)
        pins = OptionPins({fleet.names.canonical(name): own for name, own in options.model_options.items()})
        self.decision = DecisionStep(
            decider,
            fleet,
            assigner=assigner,
            decider_of=decider_of,
            stick_margin=options.stick_margin,
            clock=clock,
            pool=pool,
            shared=shared,
        )
        self.cascade = CascadeStep(FallbackRunner(fleet, pins, options, clock), options.attempt_factor, clock)
        self.answers = CachedAnswers(cache, semantic_cache, unscoped=cache_unscoped, clock=clock, pool=pool)
        self.preloader = Preloader(fleet, pins, options)

    def close(self) -> None:
        """End the thread and close every connection; what a parent process made is left alone."""
        if self.loop.usable:
            self.loop.close(self.fleet.close())
            self.pool.shutdown(wait=False, cancel_futures=True)


_OPEN: weakref.WeakSet[Gateway] = weakref.WeakSet()


def _close(running: Sequence[_Parts], closers: Sequence[Callable[[], object]]) -> None:
    for parts in running:
        parts.close()
    for close in closers:
        close()


def _close_elsewhere(running: Sequence[_Parts], closers: Sequence[Callable[[], object]]) -> None:
    """Close a dropped gateway in a thread of its own: the one that dropped it may hold any lock."""
    try:
        threading.Thread(target=_close, args=(running, closers), name="router-ml-close").start()
    except RuntimeError:  # the interpreter is ending and starts no threads
        _close(running, closers)


@atexit.register
def _close_all() -> None:
    """Close what is open when the interpreter ends, so that no recorded event is lost."""
    for gateway in list(_OPEN):
        gateway.close()


def _after_fork() -> None:
    for gateway in list(_OPEN):
        gateway._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _deadline(value: Any) -> float:
    """Return a deadline in seconds. Raises `QueryError` if it is not a number above 0."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    seconds = float(min(value, _MAX_DEADLINE_S)) if real and value > 0 else 0.0
    if not seconds > 0:
        raise QueryError(f"deadline_s must be a number of seconds above 0, found {short_repr(value)}")
    return seconds


def _opened(item: Item) -> Opened:
    if isinstance(item, BaseException):
        raise item
    assert isinstance(item, Opened)
    return item


def _is_closed() -> NoModelAvailable:
    return NoModelAvailable("this gateway is closed; make a new one")


def _no_response() -> DeadlineExceeded:
    return DeadlineExceeded("no response from the gateway within the deadline; the request was cancelled")


def _put_across(loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Item], item: Item) -> None:
    try:
        loop.call_soon_threadsafe(items.put_nowait, item)
    except RuntimeError:  # the caller's loop is closed: the stream has no reader any more
        log.info("the reader of a stream has left")
