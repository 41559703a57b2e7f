"""Waiting and measuring on a machine that may stand still for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0  # for what ends by itself: so long nothing lasts on a machine that is merely busy
TRIES = 5


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
