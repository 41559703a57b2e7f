"""Which models fit in the accelerator's memory, and who has to leave. No clock and no I/O of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Loaded:
    """One model in memory."""

    name: str
    size_gb: float
    keep_alive_s: float
    expires_s: float
    runner: tuple[tuple[str, object], ...] = ()  # the options whose change forces a reload
    busy: int = 0


@dataclass
class Memory:
    """The models loaded now. Ollama evicts an idle model first and, among equals, the one with the shortest
    keep_alive; the age of the last use plays no part (scheduler of Ollama v0.33)."""

    capacity_gb: float
    loaded: dict[str, Loaded] = field(default_factory=dict)

    def fits(self, size_gb: float) -> bool:
        return self.used_gb + size_gb <= self.capacity_gb + 1e-9 or not self.loaded

    @property
    def used_gb(self) -> float:
        return sum(model.size_gb for model in self.loaded.values())

    def victim(self) -> Loaded | None:
        """Who is asked to leave next. It may still be busy: then the load waits for it."""
        return min(self.loaded.values(), key=lambda m: (m.busy > 0, m.keep_alive_s), default=None)

    def add(self, model: Loaded) -> None:
        self.loaded[model.name] = model

    def remove(self, name: str) -> None:
        self.loaded.pop(name, None)

    def touch(self, name: str, now_s: float, keep_alive_s: float | None) -> None:
        """Restarts a model's stay after a use."""
        model = self.loaded.get(name)
        if model is None:
            return
        if keep_alive_s is not None:
            model.keep_alive_s = keep_alive_s
        model.expires_s = now_s + model.keep_alive_s if math.isfinite(model.keep_alive_s) else math.inf

    def expire(self, now_s: float) -> None:
        """Drops idle models whose stay is over."""
        for name in [m.name for m in self.loaded.values() if m.busy == 0 and m.expires_s <= now_s]:
            self.remove(name)

    def load(self, model: Loaded) -> list[str]:
        """Puts a model in, evicting idle models as needed; the names of those that left. For replays, in
        which nothing is busy."""
        evicted = []
        while not self.fits(model.size_gb):
            victim = self.victim()
            assert victim is not None
            self.remove(victim.name)
            evicted.append(victim.name)
        self.add(model)
        return evicted
