"""A circuit breaker: after repeated failures a model is not called for a while, then tried by exactly one caller.

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
    """Permission to make one call. Report how it went exactly once; later reports are ignored."""

    __slots__ = ("_breaker", "_reported", "period", "probe")

    def __init__(self, breaker: Breaker, period: int, probe: bool) -> None:
        self._breaker = breaker
        self._reported = False
        self.period = period
        self.probe = probe

    def succeeded(self) -> None:
        """Report that the model answered."""
        self._report(True)

    def failed(self, broken_connection: bool = False) -> None:
        """Report a failure that is the model's own; a `broken_connection` may also have been the host's."""
        self._report(False, broken_connection)

    def released(self) -> None:
        """Report that nothing was learned about the model (cancelled, or the request was the cause)."""
        self._report(None)

    def _report(self, ok: bool | None, broken_connection: bool = False) -> None:
        if not self._reported:
            self._reported = True
            self._breaker._settle(self, ok, broken_connection)


class Breaker:
    """One circuit. Thread-safe."""

    def __init__(
        self,
        options: BreakerOptions | None = None,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[State, float], None] | None = None,
    ) -> None:
        self._options = options or BreakerOptions()
        self._changed = changed  # called with the new state and its wait: opened, closed, a probe without a result
        self._clock = clock
        self._lock = threading.Lock()
        self._period = 0  # raised whenever the circuit opens or closes
        self._state: State = "closed"
        self._in_a_row = 0
        self._latest: deque[bool] = deque(maxlen=self._options.window)
        self._opened_at = 0.0
        self._wait_s = self._options.open_s
        self._probing = False
        self._broken_connection = False  # the latest failure

    @property
    def state(self) -> State:
        """Return closed, open, or half-open (an open circuit whose wait is over counts as half-open)."""
        with self._lock:
            return self._now_state()

    @property
    def retry_after_s(self) -> float:
        """Return the seconds until an open circuit may be probed; 0 if a call may be made."""
        with self._lock:
            if self._state != "open":
                return 0.0
            return max(0.0, self._opened_at + self._wait_s - self._clock())

    def admits(self) -> bool:
        """Return whether `acquire` would give a permit now. Changes nothing."""
        with self._lock:
            state = self._now_state()
            return state == "closed" or (state == "half_open" and not self._probing)

    def acquire(self, at_once: bool = False) -> Permit | None:
        """Return a permit, or None while the circuit is open or its one probe is in flight.

        `at_once`: an open circuit may be probed before its wait is over, as no other backend can serve the request."""
        with self._lock:
            state = self._now_state()
            if state == "closed":
                return Permit(self, self._period, probe=False)
            if self._probing or (state == "open" and not at_once):
                return None
            self._state = "half_open"
            self._probing = True
            return Permit(self, self._period, probe=True)

    @property
    def probing(self) -> bool:
        """Return whether its one probe is in flight here."""
        return self._probing

    def agree(self, state: State, retry_after_s: float = 0.0, wait_s: float = 0.0) -> None:
        """Take over what all replicas agree on: open for another `retry_after_s` of `wait_s`, or closed.

        A probe in flight here will say more and is left alone."""
        with self._lock:
            if self._probing or (state == "closed" and self._state == "closed"):
                return
            if state == "closed":
                self._close()
                return
            self._state, self._wait_s = "open", max(wait_s, retry_after_s)
            self._opened_at = self._clock() + retry_after_s - self._wait_s

    def host_recovered(self) -> None:
        """Let a circuit that a broken connection opened be probed now: another model of the host has answered."""
        with self._lock:
            if self._state == "open" and self._broken_connection:
                self._opened_at = self._clock() - self._wait_s

    def _now_state(self) -> State:
        if self._state == "open" and self._clock() >= self._opened_at + self._wait_s:
            return "half_open"
        return self._state

    def _settle(self, permit: Permit, ok: bool | None, broken_connection: bool) -> None:
        with self._lock:
            if ok is False:
                self._broken_connection = broken_connection
            if permit.period != self._period:
                return
            before = self._period
            if permit.probe:
                self._settle_probe(ok)
            elif ok is not None and self._state == "closed":
                self._settle_call(ok)
            state, wait_s = self._state, self._wait_s
        if self._changed is not None and (permit.probe or self._period != before):
            self._changed(state, wait_s)

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
