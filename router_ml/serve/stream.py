"""Streamed answers: the parts pass from the gateway's loop to the caller as they come, without a buffer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from router_ml.errors import StreamInterrupted
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import Answer, Attempt, ChatResponse, response_of
from router_ml.types import Decision, Think


@dataclass(frozen=True, slots=True)
class Opened:
    """The first part is there; which model answers."""

    decision: Decision
    model: str
    attempts: tuple[Attempt, ...]
    think: Think | None = None  # how it was asked


Item = Opened | Reply | Answer | BaseException


class Sink:
    """Where the gateway puts the parts of a stream. `started` is true once a part was passed on, `finished` once the
    last one was."""

    def __init__(self, put: Callable[[Item], None]) -> None:
        self._put = put
        self.started = self.finished = False

    def opened(self, opened: Opened) -> None:
        """Pass on which model answers; if thinking of another model came before, the final answer names this one."""
        if not self.started:
            self.started = True
            self._put(opened)

    def part(self, part: Reply) -> None:
        """Pass a part on."""
        self.finished = part.done
        self._put(part)

    def ended(self, end: Answer | BaseException) -> None:
        """Pass on how the stream ended."""
        self._put(end)


class _Stream:
    """What both kinds of stream share."""

    def __init__(self, opened: Opened, task: concurrent.futures.Future[None]) -> None:
        self.decision = opened.decision
        self.model = opened.model  # the catalogue's name of the model that answers
        self.think = opened.think  # how it was asked
        self.attempts = opened.attempts  # those before it
        self._task = task
        self._answer: Answer | None = None
        self._over = False

    @property
    def answer(self) -> Answer:
        """Return the whole answer with its timings, once the stream has ended.

        Raises `StreamInterrupted` if it has not ended, or failed."""
        if self._answer is None:
            raise StreamInterrupted("the stream has not ended; read it to its end first")
        return self._answer

    def _take(self, item: Item) -> ChatResponse | None:
        """Return the next part, or None at the end. Raises the error the stream ended with."""
        if isinstance(item, Reply):
            return response_of(item)
        self._over = True
        if isinstance(item, Answer):
            self._answer, self.model, self.think = item, item.model, item.think
            self.attempts = tuple(attempt for attempt in item.attempts if attempt is not item.served_attempt)
            return None
        assert isinstance(item, BaseException)
        raise item

    def _stop(self) -> None:
        self._over = True
        self._task.cancel()

    def _timed_out(self) -> StreamInterrupted:
        self._stop()
        return StreamInterrupted("no further part of the stream within the deadline; the request was cancelled")

    def __del__(self) -> None:
        if not self._over:
            self._task.cancel()  # it has no reader, so the generation can end


class AnswerStream(_Stream):
    """The parts of an answer, as the ollama client's generator gives them. Close it, or leave it to a `with`
    block, to end the generation early."""

    def __init__(
        self, opened: Opened, items: queue.SimpleQueue[Item], task: concurrent.futures.Future[None], patience_s: float
    ) -> None:
        super().__init__(opened, task)
        self._items = items
        self._patience_s = patience_s

    def __iter__(self) -> Iterator[ChatResponse]:
        return self

    def __next__(self) -> ChatResponse:
        if self._over:
            raise StopIteration
        try:
            item = self._items.get(timeout=self._patience_s)
        except queue.Empty:
            raise self._timed_out() from None
        part = self._take(item)
        if part is None:
            raise StopIteration
        return part

    def close(self) -> None:
        """End the generation."""
        self._stop()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncAnswerStream(_Stream):
    """The parts of an answer for `async for`. Close it to end the generation early."""

    def __init__(
        self, opened: Opened, items: asyncio.Queue[Item], task: concurrent.futures.Future[None], patience_s: float
    ) -> None:
        super().__init__(opened, task)
        self._items = items
        self._patience_s = patience_s

    def __aiter__(self) -> AsyncIterator[ChatResponse]:
        return self

    async def __anext__(self) -> ChatResponse:
        if self._over:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout(self._patience_s):
                item = await self._items.get()
        except TimeoutError:
            raise self._timed_out() from None
        part = self._take(item)
        if part is None:
            raise StopAsyncIteration
        return part

    async def aclose(self) -> None:
        """End the generation."""
        self._stop()

    async def __aenter__(self) -> AsyncAnswerStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
