"""A circuit breaker: after repeated failures a model is left alone for a while, then tried by exactly one caller.

The states are those of Nygard, *Release It!* (closed, open, half-open). A permit of an earlier period cannot change
the state of a later one: a slow success from before the circuit opened does not close it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

from router_ml.hosts.options import BreakerOptions

State: TypeAlias = Literal["closed", "open", "half_open"]


class Permit:
    """Leave to make one call. Say how it went exactly once; later words are ignored."""

    __slots__ = ("_breaker", "_spoken", "period", "probe")

    def __init__(self, breaker: Breaker, period: int, probe: bool) -> None:
        self._breaker = breaker
        self._spoken = False
        self.period = period
        self.probe = probe

    def succeeded(self) -> None:
        """The model answered."""
        self._say(True)

    def failed(self) -> None:
        """The model failed in a way that is its own fault."""
        self._say(False)

    def released(self) -> None:
        """Nothing was learned about the model (cancelled, or the request was at fault)."""
        self._say(None)

    def _say(self, ok: bool | None) -> None:
        if not self._spoken:
            self._spoken = True
            self._breaker._settle(self, ok)


class Breaker:
    """One circuit. Safe from any thread."""

    def __init__(self, options: BreakerOptions | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options or BreakerOptions()
        self._clock = clock
        self._lock = threading.Lock()
        self._period = 0  # raised whenever the circuit opens or closes
        self._state: State = "closed"
        self._in_a_row = 0
        self._latest: deque[bool] = deque(maxlen=self._options.window)
        self._opened_at = 0.0
        self._wait_s = self._options.open_s
        self._probing = False

    @property
    def state(self) -> State:
        """Closed, open, or half-open (an open circuit whose wait is over counts as half-open)."""
        with self._lock:
            return self._now_state()

    @property
    def retry_after_s(self) -> float:
        """Seconds until an open circuit may be probed; 0 where a call may be made."""
        with self._lock:
            if self._state != "open":
                return 0.0
            return max(0.0, self._opened_at + self._wait_s - self._clock())

    def admits(self) -> bool:
        """Whether `acquire` would give a permit now. Changes nothing."""
        with self._lock:
            state = self._now_state()
            return state == "closed" or (state == "half_open" and not self._probing)

    def acquire(self) -> Permit | None:
        """A permit, or None while the circuit is open or its one probe is on its way."""
        with self._lock:
            state = self._now_state()
            if state == "closed":
                return Permit(self, self._period, probe=False)
            if state == "open" or self._probing:
                return None
            self._state = "half_open"
            self._probing = True
            return Permit(self, self._period, probe=True)

    def _now_state(self) -> State:
        if self._state == "open" and self._clock() >= self._opened_at + self._wait_s:
            return "half_open"
        return self._state

    def _settle(self, permit: Permit, ok: bool | None) -> None:
        with self._lock:
            if permit.period != self._period:
                return
            if permit.probe:
                self._settle_probe(ok)
            elif ok is not None and self._state == "closed":
                self._settle_call(ok)

    def _settle_probe(self, ok: bool | None) -> None:
        self._probing = False
        if ok is None:
            return  # nothing learned: the next caller probes
        if ok:
            self._close()
        else:
            self._open(min(self._wait_s * 2, self._options.open_max_s))

    def _settle_call(self, ok: bool) -> None:
        self._latest.append(ok)
        self._in_a_row = 0 if ok else self._in_a_row + 1
        failures = len(self._latest) - sum(self._latest)
        often = (
            len(self._latest) >= self._options.window_minimum
            and failures / len(self._latest) >= self._options.window_failure_share
        )
        if not ok and (self._in_a_row >= self._options.consecutive_failures or often):
            self._open(self._options.open_s)

    def _open(self, wait_s: float) -> None:
        self._period += 1
        self._state, self._opened_at, self._wait_s = "open", self._clock(), wait_s

    def _close(self) -> None:
        self._period += 1
        self._state, self._in_a_row, self._wait_s = "closed", 0, self._options.open_s
        self._latest.clear()
