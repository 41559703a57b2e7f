"""The gateway's doors, and the order in which its parts serve a request."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import logging
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, overload

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.errors import DeadlineExceeded, InputError, NoModelAvailable, QueryError, StreamInterrupted
from router_ml.events.event import NullRecorder, Recorder
from router_ml.hosts.failure import classify
from router_ml.hosts.fleet import Fleet
from router_ml.hosts.ollama import ClientFactory, default_client
from router_ml.hosts.options import GatewayOptions
from router_ml.serve.answer import Answer
from router_ml.serve.answer_cache.answers import CachedAnswers
from router_ml.serve.answer_cache.exact import CacheStats, ExactCache
from router_ml.serve.answer_cache.semantic import SemanticCache
from router_ml.serve.background import BackgroundLoop
from router_ml.serve.choose import Assigner, Chooser, Decider
from router_ml.serve.clarify import asked_back, asks_back
from router_ml.serve.fallback import FallbackRunner
from router_ml.serve.preload import Preloader
from router_ml.serve.record import EventRecorder
from router_ml.serve.request import Messages, OptionPins, build_request
from router_ml.serve.request_state import RequestState, context_of
from router_ml.serve.stream import AnswerStream, AsyncAnswerStream, Item, Opened, Sink
from router_ml.types import Context, MachineState

log = logging.getLogger(__name__)

_GRACE_S = 1.0  # how long past the deadline a caller waits for the loop before giving up on it
_LOOK_S = 10.0


class Gateway:
    """Carries requests out. Thread-safe; plain and async callers share one background loop and its connections.

    `decider` chooses (a `Router`); `catalogue` says which models and hosts there are; `recorder` gets the events;
    `assigner` says which variant of a running experiment a unit (session or request) gets, and `decider_of` which
    decider serves a variant's bundle. `cache` and `semantic_cache` are off unless given; answers are kept per user
    (`context["user_id"]`) or session, and for everybody together only with `cache_unscoped`. `closers` are called when
    the gateway is closed."""

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
        self.options = options or GatewayOptions()
        self.catalogue = catalogue
        self._policy = policy
        self._clock = clock
        self._closers = tuple(closers)
        self._closed = False
        self._loop = BackgroundLoop()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="router-ml-decide")
        self._fleet = fleet = Fleet(catalogue, default_host, self.options, clock, client_factory)
        pins = OptionPins({fleet.names.canonical(name): own for name, own in self.options.model_options.items()})
        self._chooser = Chooser(
            decider,
            catalogue,
            fleet.names,
            assigner=assigner,
            decider_of=decider_of,
            stick_margin=self.options.stick_margin,
            clock=clock,
            pool=self._pool,
        )
        self._walker = FallbackRunner(fleet, catalogue, pins, self.options, clock)
        self._kept = CachedAnswers(cache, semantic_cache, unscoped=cache_unscoped, clock=clock, pool=self._pool)
        self._journal = EventRecorder(recorder or NullRecorder(), catalogue, clock)
        self._preloader = Preloader(fleet, pins, self.options)

    # -- the doors ----------------------------------------------------------------------------------------------

    @overload
    def chat(self, messages: Messages, *, stream: Literal[False] = False, **more: Any) -> Answer: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[True], **more: Any) -> AnswerStream: ...
    @overload
    def chat(self, messages: Messages, *, stream: bool, **more: Any) -> Answer | AnswerStream: ...

    def chat(self, messages: Messages, *, stream: bool = False, **more: Any) -> Answer | AnswerStream:
        """Answers a conversation with the model that suits it.

        `more`, all optional: `tools`, `context` (see `select_model`; `user_id` scopes kept answers), `policy`,
        `deadline_s` (of the whole request), `model` (one the caller insists on trying first), and `think`, `format`,
        `options`, `keep_alive`, `logprobs`, `top_logprobs` as the ollama client takes them.

        With `stream=True` it returns once the first part is there; iterate to read on. Where the policy asks back and
        the query is ambiguous, no model is called: `answer.clarify` is true and the message is
        `options.clarifying_question`. Where that is None, or the user was asked just before, a model answers.

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
            raise _no_sign() from None
        except KeyboardInterrupt:
            task.cancel()
            raise
        return AnswerStream(_opened(first), items, task, self._patience_s(job))

    @overload
    async def achat(self, messages: Messages, *, stream: Literal[False] = False, **more: Any) -> Answer: ...
    @overload
    async def achat(self, messages: Messages, *, stream: Literal[True], **more: Any) -> AsyncAnswerStream: ...
    @overload
    async def achat(self, messages: Messages, *, stream: bool, **more: Any) -> Answer | AsyncAnswerStream: ...

    async def achat(self, messages: Messages, *, stream: bool = False, **more: Any) -> Answer | AsyncAnswerStream:
        """`chat` for coroutines; cancelling it ends the generation. Same arguments and errors."""
        job = self._job(messages, **more)
        if not stream:
            return await self._await(self._loop.submit(self._answer(job)))
        items: asyncio.Queue[Item] = asyncio.Queue()
        put = functools.partial(_put_across, asyncio.get_running_loop(), items)
        task = self._loop.submit(self._stream(job, Sink(put)))
        try:
            async with asyncio.timeout(self._patience_s(job)):
                first = await items.get()
        except TimeoutError:
            task.cancel()
            raise _no_sign() from None
        except asyncio.CancelledError:
            task.cancel()
            raise
        return AsyncAnswerStream(_opened(first), items, task, self._patience_s(job))

    def feedback(self, decision_id: str, score: float, comment: str | None = None) -> bool:
        """Records what an answer was worth, 0 bad .. 1 good; the id is `answer.decision.decision_id`, and a comment is
        kept only where text is.

        False, and a warning in the log, where it is none of the latest answers of this gateway; it is recorded all the
        same, for another process may have given that answer. Raises `InputError` for another score."""
        if not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError(f"a score is a number between 0 and 1, found {score!r:.60}")
        known = self._journal.judged(decision_id, float(score), comment)
        if not known:
            log.warning("feedback on %.60r, which is none of this gateway's latest decisions", decision_id)
        return known

    def machine(self) -> MachineState:
        """What is known of every model right now, by the latest looks; asks nobody."""
        return self._fleet.state()

    def refresh(self) -> MachineState:
        """Looks at every host anew, and says what is known then. Raises `NoModelAvailable` on a closed gateway."""
        self._check_open()

        async def look() -> MachineState:
            self._fleet.probe_all()
            await self._fleet.look()
            return self._fleet.state()

        return self._loop.submit(look()).result(_LOOK_S)

    def warm_up(self) -> None:
        """Takes the first look at every host now, in the background, so that no request waits for it."""
        self._check_open()
        self._loop.submit(self._fleet.look())

    def preload(self, model: str) -> None:
        """Puts a model in memory. Raises `NoModelAvailable` where its host does not do so within the deadline."""
        self._check_open()
        loading = self._loop.submit(self._preloader.load(self._fleet.names.canonical(model)))
        try:
            loading.result(self.options.deadline_s + _GRACE_S)
        except Exception as error:
            loading.cancel()
            raise NoModelAvailable(f"{model} could not be loaded: {classify(error)}") from error

    @property
    def cache_stats(self) -> CacheStats | None:
        """Hits, misses and hit rate of the answer cache; None where there is none."""
        return self._kept.stats

    def status(self) -> dict[str, Any]:
        """A JSON-ready view: every model on every host, and the cache."""
        stats = self.cache_stats
        cache = None if stats is None else {**dataclasses.asdict(stats), "hit_rate": stats.hit_rate}
        return {"backends": self._fleet.rows(), "cache": cache}

    def close(self) -> None:
        """Ends what runs, closes every connection, and then whatever was to be closed with it."""
        if self._closed:
            return
        self._closed = True
        self._loop.close(self._fleet.close())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for close in self._closers:
            close()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- one request --------------------------------------------------------------------------------------------

    def _job(
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
        began_s = self._clock()
        request = build_request(messages, tools, **form)
        limit_s = self.options.deadline_s if deadline_s is None else deadline_s
        if not limit_s > 0:
            raise QueryError(f"deadline_s must be above 0, found {deadline_s!r}")
        self._check_open()
        chosen = self._policy if policy is None else policy
        return RequestState(request, context_of(request, context), chosen, began_s, began_s + limit_s, model)

    async def _answer(self, job: RequestState, sink: Sink | None = None) -> Answer:
        kept = await self._kept.find(job)
        if kept is not None:
            self._journal.served_from_cache(job, kept)
            return kept
        try:
            await self._fleet.look()
            await self._chooser.choose(job, self._fleet.state())
            question = self.options.clarifying_question
            if question is not None and asks_back(job, question):
                return self._ask(job, question)
            self._preloader.chose(job.chosen.model)
            answer = await self._walker.walk(job, sink)
        except asyncio.CancelledError:
            self._journal.failed(job, "cancelled")
            raise
        except Exception as error:
            self._journal.failed(job, type(error).__name__)
            raise
        self._after(job, answer)
        return answer

    def _ask(self, job: RequestState, question: str) -> Answer:
        answer = asked_back(job, question, self._clock())
        self._journal.answered(job, answer)
        self._shadow(job)
        return answer

    def _after(self, job: RequestState, answer: Answer) -> None:
        """What need not be waited for."""
        self._journal.answered(job, answer)
        self._kept.keep(job, answer)
        self._chooser.answered(job.context.session_id, answer.model)
        self._preloader.consider()
        self._shadow(job)

    def _shadow(self, job: RequestState) -> None:
        if job.assignment is not None and job.assignment.shadow is not None:
            self._pool.submit(self._in_shadow, job)

    def _in_shadow(self, job: RequestState) -> None:
        decision = self._chooser.shadow(job, self._fleet.state())
        if decision is not None:
            self._journal.shadow(job, decision)

    async def _stream(self, job: RequestState, sink: Sink) -> None:
        try:
            answer = await self._answer(job, sink)
        except asyncio.CancelledError:
            sink.ended(StreamInterrupted("the stream was closed"))
            raise
        except Exception as error:
            sink.ended(error)
        else:
            if not sink.started:  # a kept answer or a question: one part that is the whole
                sink.opened(Opened(job.chosen, answer.model, ()))
                sink.part(answer.response)
            sink.ended(answer)

    def _wait(self, future: concurrent.futures.Future[Answer], job: RequestState) -> Answer:
        try:
            return future.result(self._patience_s(job))
        except KeyboardInterrupt:
            future.cancel()
            raise
        except concurrent.futures.CancelledError:
            raise _closed() from None
        except concurrent.futures.TimeoutError:
            if future.done():  # the request's own error
                raise
            future.cancel()
            raise _no_sign() from None

    async def _await(self, future: concurrent.futures.Future[Answer]) -> Answer:
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _closed() from None
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    def _patience_s(self, job: RequestState) -> float:
        return max(0.0, job.deadline_s - self._clock()) + _GRACE_S


def _opened(item: Item) -> Opened:
    if isinstance(item, BaseException):
        raise item
    assert isinstance(item, Opened)
    return item


def _closed() -> NoModelAvailable:
    return NoModelAvailable("this gateway is closed; make a new one")


def _no_sign() -> DeadlineExceeded:
    return DeadlineExceeded("the gateway gave no sign within the deadline")


def _put_across(loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Item], item: Item) -> None:
    try:
        loop.call_soon_threadsafe(items.put_nowait, item)
    except RuntimeError:  # the caller's loop is closed: nobody reads any more
        log.info("a stream's reader is gone")
