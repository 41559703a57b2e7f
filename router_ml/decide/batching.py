"""Decides for many concurrent callers at once.

A caller that comes alone is served at once. Callers that come while a batch is being decided form the next one: the
busier the process, the larger the batches, and the less each decision costs. One thread hands the batches to the
router, whose encoder shares them out among the cores; so the number of callers never becomes a number of threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

from router_ml.errors import EncoderError
from router_ml.types import Decision

MAX_BATCH = 32  # more would let the first of a batch wait for its last


class BatchDecider(Protocol):
    """What decides for a batch, as `Router` does."""

    def decide_many(self, queries: Sequence[Any], contexts: Sequence[Any] | None, policy: Any) -> list[Decision]:
        """Return one decision for each query, in their order."""
        ...


class PendingDecision(NamedTuple):
    """One caller's query and where its decision goes."""

    decider: BatchDecider
    query: Any
    context: Any
    policy: Any
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Decision]


Answer = tuple[PendingDecision, "Decision | Exception"]


class MicroBatcher:
    """Serves the callers of any number of event loops, first come, first served."""

    def __init__(self, max_batch: int = MAX_BATCH) -> None:
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._pending: deque[PendingDecision] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="router_ml-decide")

    async def decide(self, decider: BatchDecider, query: Any, context: Any, policy: Any) -> Decision:
        """Return one decision; raises what the decider raises for this query alone."""
        loop = asyncio.get_running_loop()
        request = PendingDecision(decider, query, context, policy, loop, loop.create_future())
        with self._lock:
            self._pending.append(request)
            idle, self._busy = not self._busy, True
        if idle:
            self._thread.submit(self._serve)
        return await request.future

    async def call(self, function: Any) -> Any:
        """Run a slow function off the loop, on the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _serve(self) -> None:
        while batch := self._take():
            _deliver(_decided(batch))

    def _take(self) -> list[PendingDecision]:
        with self._lock:
            batch = [self._pending.popleft() for _ in range(min(self._max_batch, len(self._pending)))]
            self._busy = bool(batch)
        return batch


def _decided(batch: list[PendingDecision]) -> list[Answer]:
    """Return an answer for each request whose caller still waits; an error reaches its own caller only."""
    groups: dict[tuple[int, Any], list[PendingDecision]] = {}
    for request in batch:
        if not request.future.cancelled():
            groups.setdefault((id(request.decider), _policy_key(request.policy)), []).append(request)
    answers: list[Answer] = []
    for group in groups.values():
        try:
            answers += zip(group, _decide(group), strict=True)
        except BaseException:  # a panic of native code is not an Exception, and would stop this thread for all callers
            answers += [(request, _decide_alone(request)) for request in group]
    return answers


def _policy_key(policy: Any) -> Any:
    try:
        hash(policy)
    except Exception:  # whatever its `__hash__` does
        return id(policy)
    return policy


def _decide(group: list[PendingDecision]) -> list[Decision]:
    queries, contexts = [request.query for request in group], [request.context for request in group]
    return group[0].decider.decide_many(queries, contexts, group[0].policy)


def _decide_alone(request: PendingDecision) -> Decision | Exception:
    try:
        return _decide([request])[0]
    except BaseException as error:
        return error if isinstance(error, Exception) else EncoderError(f"native code failed: {error!r:.200}")


def _deliver(answers: list[Answer]) -> None:
    """Wake each loop once for all its answers."""
    loops: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        loops.setdefault(answer[0].loop, []).append(answer)
    for loop, own in loops.items():
        with contextlib.suppress(RuntimeError):  # nothing waits in a closed loop
            loop.call_soon_threadsafe(_resolve, own)


def _resolve(answers: list[Answer]) -> None:
    for request, answer in answers:
        if request.future.done():  # cancelled meanwhile
            continue
        if isinstance(answer, Exception):
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)
