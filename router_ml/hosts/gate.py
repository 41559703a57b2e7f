"""Bounded concurrency with a bounded queue: a caller that could not be served in time is refused at once."""

from __future__ import annotations

import asyncio
from collections import deque


class Shed(Exception):
    """No slot becomes free in time; one may after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CircuitOpen(Shed):
    """The replicas' common circuit breaker does not let the call through."""


class Gate:
    """Let `limit` callers in at once, first come first served. Lives in one event loop."""

    def __init__(self, limit: int, max_waiting: int) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def inside(self) -> int:
        """Return how many callers hold a slot."""
        return self._inside

    @property
    def waiting(self) -> int:
        """Return how many callers wait for a slot."""
        return len(self._waiting)

    def wait_s(self, service_s: float) -> float:
        """Return the expected wait in seconds of a new caller if one call takes `service_s`."""
        if self._inside < self._limit:
            return 0.0
        # Those inside are half done on average; a slot becomes free every service_s / limit.
        return service_s * (len(self._waiting) + 0.5) / self._limit

    async def enter(self, patience_s: float, service_s: float, at_once: bool = False) -> float:
        """Wait for a slot and return the seconds waited. `at_once` is that of `Breaker.acquire`.

        Raises `Shed` if the queue is full, or if no slot is expected, or becomes free, within
        `patience_s`."""
        if self._inside < self._limit:
            self._inside += 1
            return 0.0
        expected_s = self.wait_s(service_s)
        if len(self._waiting) >= self._max_waiting:
            raise Shed(f"{len(self._waiting)} callers are waiting already", max(expected_s, 0.1))
        if expected_s > patience_s:
            raise Shed(f"a slot is expected in {expected_s:.1f} s, too late", max(expected_s - patience_s, 0.1))
        return await self._queue(patience_s, service_s)

    def leave(self) -> None:
        """Give the slot to the caller that has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot passes on directly: no other caller can take it in between
                return
        self._inside -= 1

    async def _queue(self, patience_s: float, service_s: float) -> float:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        began = loop.time()
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except TimeoutError:
            self._give_up(turn)
            raise Shed(f"no slot within {patience_s:.1f} s", max(self.wait_s(service_s), 0.1)) from None
        except asyncio.CancelledError:
            self._give_up(turn)
            raise
        return loop.time() - began

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled():
            self.leave()  # the slot had just been given to this caller
        elif turn in self._waiting:
            self._waiting.remove(turn)
