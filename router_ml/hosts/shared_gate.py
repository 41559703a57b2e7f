"""A gate and a circuit breaker that hold over all replicas."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from router_ml.hosts.breaker import Breaker, State
from router_ml.hosts.gate import CircuitOpen, Gate, Shed
from router_ml.hosts.names import normal
from router_ml.hosts.options import BreakerOptions
from router_ml.settings import without_credentials
from router_ml.shared_state import patience
from router_ml.shared_state.state import Entry, SharedState

_FIRST_PAUSE_S, _PAUSE_MAX_S = 0.005, 0.1  # between two requests for a place that is taken elsewhere
_SEEN_S = 2.0  # how long the number of places that all replicas hold describes the queue


def backend_key(model: str, url: str) -> str:
    """Return the name that all replicas have for a model on a host."""
    return f"{normal(model)}@{without_credentials(url)}"


def shared_pair(
    key: str,
    limit: int,
    max_waiting: int,
    options: BreakerOptions,
    shared: SharedState | None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Gate, Breaker]:
    """Return the gate and the breaker of a backend, of this process alone unless there is something to share with."""
    if shared is None or shared.alone:
        return Gate(limit, max_waiting), Breaker(options, clock)

    def changed(state: State, wait_s: float) -> None:
        if state == "open":
            shared.opened(key, wait_s)
        elif state == "closed":
            shared.closed(key)
        else:
            shared.released(key)

    breaker = Breaker(options, clock, changed)
    return SharedGate(key, limit, max_waiting, shared, breaker), breaker


class SharedGate(Gate):
    """Lets `limit` callers of all replicas in at once. Lives in one event loop.

    Each call runs on a place that this replica holds, and that others get if it dies. While the shared state is away
    it lets callers in on the places that it holds."""

    def __init__(self, key: str, limit: int, max_waiting: int, shared: SharedState, breaker: Breaker) -> None:
        super().__init__(limit, max_waiting)
        self._key, self._shared, self._breaker = key, shared, breaker
        self._places: list[str] = []  # on which calls run
        self._kept = asyncio.Event()  # a call ended, and has left its place to the next one
        self._turn = asyncio.Lock()  # the caller that has waited longest asks for the next place
        self._others = 0  # places of the other replicas, when last known
        self._others_at_s = float("-inf")

    def wait_s(self, service_s: float) -> float:
        """Return the expected wait in seconds of a new caller if one call takes `service_s`."""
        own_s = super().wait_s(service_s)
        if own_s or time.monotonic() - self._others_at_s > _SEEN_S or self.inside + self._others < self._limit:
            return own_s
        return service_s * 0.5 / self._limit

    async def enter(self, patience_s: float, service_s: float, at_once: bool = False) -> float:
        """Wait for a slot here and a place among all replicas' calls, and return the seconds waited.

        Raises `Shed` as `Gate` does, and `CircuitOpen` where another replica found the model failing."""
        waited_s = await super().enter(patience_s, service_s)
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(max(patience_s - waited_s, patience.PATIENCE_S)), self._turn:
                self._places.append(await self._place(service_s, at_once))
        except TimeoutError:
            super().leave()
            raise Shed("all places are taken by other replicas' calls", max(0.1, service_s / self._limit)) from None
        except BaseException:
            super().leave()
            raise
        return waited_s + time.monotonic() - began_s

    def leave(self) -> None:
        """Leave the place to whoever asks next, and the slot to the caller that has waited longest here."""
        waiting = self.waiting > 0 or self._turn.locked()
        if self._places and self._shared.leave(self._key, self._places.pop(), self._limit, waiting):
            self._kept.set()
        super().leave()

    async def _place(self, service_s: float, at_once: bool) -> str:
        """Return the name of a place, once there is one."""
        pause_s, most_s = _FIRST_PAUSE_S, min(_PAUSE_MAX_S, max(_FIRST_PAUSE_S, service_s / 4))
        while True:
            self._kept.clear()
            eager = at_once or self._breaker.state == "half_open"
            entry = await self._shared.enter(self._key, self._limit, eager)
            self._note(entry)
            if entry.granted:
                return entry.place
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * random.uniform(0.5, 1.0)):
                    await self._kept.wait()
            pause_s = min(2 * pause_s, most_s)
            patience.renew()

    def _note(self, entry: Entry) -> None:
        """Take over what all replicas know of this backend. Raises `CircuitOpen`."""
        if entry.held is None:
            return
        self._others = max(0, entry.held - len(self._places) - entry.granted)
        self._others_at_s = time.monotonic()
        if entry.circuit == "closed":
            self._breaker.agree("closed")
        elif entry.circuit == "probe":
            self._breaker.agree("open", 0.0, entry.wait_s)
        else:
            retry_s = max(entry.retry_after_s, 0.5 if entry.circuit == "probing" else 0.0)
            self._breaker.agree("open", retry_s, entry.wait_s)
            raise CircuitOpen("circuit breaker open after failures that another replica saw", retry_s)
