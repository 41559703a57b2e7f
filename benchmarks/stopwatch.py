"""Time contenders in turn, in wall and in processor time, so that other load slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Row: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[[], Any]
IN_A_ROW = 5  # calls of one contender before the next one


class Samples:
    """Wall and processor times of one contender, in seconds."""

    def __init__(self) -> None:
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []

    def add(self, call: Call) -> None:
        """Time one call."""
        cpu = time.process_time()
        wall = time.perf_counter()  # innermost: reading the other clock takes most of a microsecond
        call()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(time.process_time() - cpu)

    def row(self) -> Row:
        """Return quantiles in microseconds."""
        p50, p95, p99 = (float(x) * 1e6 for x in np.quantile(self.wall_s, (0.5, 0.95, 0.99)))
        cpu50, cpu99 = (float(x) * 1e6 for x in np.quantile(self.cpu_s, (0.5, 0.99)))
        return {"p50_us": p50, "p95_us": p95, "p99_us": p99, "cpu_p50_us": cpu50, "cpu_p99_us": cpu99}


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, Row]:
    """Time every contender in turn, a few calls in a row, after one that is not counted and fills the caches."""
    samples = {name: Samples() for name in calls}
    for _ in range(max(1, rounds // IN_A_ROW)):
        for name, call in calls.items():
            call()
            for _ in range(IN_A_ROW):
                samples[name].add(call)
    return {name: sample.row() for name, sample in samples.items()}


def alone(call: Call, rounds: int) -> Row:
    """Time one contender by itself."""
    return interleaved({"": call}, rounds)[""]
