"""Waiting and measuring on a machine that may stand still for seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

PATIENCE_S = 60.0  # for what ends by itself: so long nothing lasts on a machine that is merely busy
TRIES = 5
_TICK_S = 0.005
_LATE_S = 0.001  # waking up may take so long on a machine of its own


def until(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait until a condition holds, and return the seconds that took."""
    began_s = time.monotonic()
    while not holds():
        assert time.monotonic() - began_s < patience_s, f"it did not hold within {patience_s:g} s"
        time.sleep(0.005)
    return time.monotonic() - began_s


def best(measure: Callable[[], float], good: float) -> float:
    """Return the least of five measurements, or the first below `good`: a busy machine only makes one longer."""
    found = float("inf")
    for _ in range(TRIES):
        found = min(found, measure())
        if found < good:
            break
    return found


class Stopwatch:
    """Measures the seconds of a `with` block, less those in which the machine kept this process from running.

    A thread that sleeps for a moment, again and again, sees how much later than asked for it wakes up. Where the
    process used a processor meanwhile, that was its own doing and counts."""

    def __init__(self) -> None:
        self.began_s = self.ended_s = 0.0  # points on the monotonic clock
        self.stalls: list[tuple[float, float, float]] = []  # from, to, and how much of that was lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stopwatch", daemon=True)

    def __enter__(self) -> Stopwatch:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended_s = time.monotonic()
        self._over.set()
        self._thread.join()

    @property
    def s(self) -> float:
        """The seconds of the block."""
        return self.between(self.began_s, self.ended_s)

    @property
    def lost_s(self) -> float:
        """What the machine took of the block."""
        return self.ended_s - self.began_s - self.s

    def between(self, began_s: float, ended_s: float) -> float:
        """The seconds between two points within the block."""
        lost_s = (min(lost, max(0.0, min(to, ended_s) - max(at, began_s))) for at, to, lost in self.stalls)
        return ended_s - began_s - sum(lost_s)

    def _watch(self) -> None:
        over = False
        at_s, cpu_s = self.began_s, time.process_time()
        while not over:
            over = self._over.wait(_TICK_S)
            now_s, now_cpu_s = time.monotonic(), time.process_time()
            lost_s = now_s - at_s - _TICK_S - (now_cpu_s - cpu_s)
            if lost_s > _LATE_S:
                self.stalls.append((at_s, now_s, lost_s))
            at_s, cpu_s = now_s, now_cpu_s
