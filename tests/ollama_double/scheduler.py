"""Loading, eviction and queueing, as the scheduler of the real server does it.

One load at a time; a load evicts an idle model first, else waits for a busy one; a loaded model queues requests
without limit; only waiting loads are refused (503) once `max_pending_loads` wait."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from tests.ollama_double.memory import Loaded, Memory
from tests.ollama_double.models import DoubleModel

RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "num_thread", "use_mmap", "main_gpu")


class QueueFull(Exception):
    """Too many loads wait."""


class Scheduler:
    """Lets one generation after the other at the models. Lives in one event loop."""

    def __init__(self, capacity_gb: float, max_pending_loads: int, keep_alive_s: float) -> None:
        self.memory = Memory(capacity_gb)
        self.loads: list[str] = []  # every load, in order
        self._max_pending = max_pending_loads
        self._keep_alive_s = keep_alive_s
        self._pending = 0
        self._loading = asyncio.Lock()
        self._idle = asyncio.Condition()
        self._slots: dict[str, asyncio.Semaphore] = {}

    @contextlib.asynccontextmanager
    async def running(
        self, model: DoubleModel, options: Mapping[str, Any], keep_alive: Any, extra_load_s: float = 0.0
    ) -> AsyncIterator[float]:
        """Holds the model in memory and one of its slots; yields the seconds the load took, waiting included."""
        began = _now()
        entry = await self._resident(model, options, extra_load_s)
        load_s = _now() - began
        try:
            async with self._slots[model.name]:
                yield load_s
        finally:
            entry.busy -= 1
            self.memory.touch(model.name, _now(), _seconds(keep_alive))
            if entry.keep_alive_s == 0 and entry.busy == 0:
                self.memory.remove(model.name)
            async with self._idle:
                self._idle.notify_all()

    def unload(self, name: str) -> None:
        self.memory.remove(name)

    async def _resident(self, model: DoubleModel, options: Mapping[str, Any], extra_load_s: float) -> Loaded:
        runner = tuple((key, options[key]) for key in RUNNER_OPTIONS if key in options)
        self.memory.expire(_now())
        entry = self.memory.loaded.get(model.name)
        if entry is not None and entry.runner == runner and not extra_load_s:
            entry.busy += 1
            return entry
        if self._pending >= self._max_pending:
            raise QueueFull
        self._pending += 1
        try:
            async with self._loading:
                return await self._load(model, runner, extra_load_s)
        finally:
            self._pending -= 1

    async def _load(self, model: DoubleModel, runner: tuple[tuple[str, object], ...], extra_s: float) -> Loaded:
        entry = self.memory.loaded.get(model.name)
        if entry is not None and entry.runner == runner and not extra_s:
            entry.busy += 1
            return entry
        if entry is not None:
            await self._wait_idle(entry)
            self.memory.remove(model.name)
        while not self.memory.fits(model.size_gb):
            victim = self.memory.victim()
            assert victim is not None
            await self._wait_idle(victim)
            self.memory.remove(victim.name)
        await asyncio.sleep(model.load_s + extra_s)
        stay = self._keep_alive_s
        entry = Loaded(model.name, model.size_gb, stay, _now() + stay, runner, busy=1)
        self.memory.add(entry)
        self.loads.append(model.name)
        self._slots[model.name] = asyncio.Semaphore(model.parallel)
        return entry

    async def _wait_idle(self, entry: Loaded) -> None:
        async with self._idle:
            await self._idle.wait_for(lambda: entry.busy == 0)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _seconds(keep_alive: Any) -> float | None:
    if keep_alive is None:
        return None
    if isinstance(keep_alive, int | float):
        return math.inf if keep_alive < 0 else float(keep_alive)
    units = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
    for unit, factor in units.items():
        if keep_alive.endswith(unit) and keep_alive.removesuffix(unit).lstrip("-").isdigit():
            value = float(keep_alive.removesuffix(unit)) * factor
            return math.inf if value < 0 else value
    return float(keep_alive)
