"""How many requests share one load of a model: those expected before it leaves memory again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

DEFAULT_KEEP_ALIVE_S = 300.0  # Ollama's own
MOST_REQUESTS = 1000.0
SHORT_OF_MEMORY_S = 3600.0  # so long a model that had to leave early says that not all models fit
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def keep_alive_s(keep_alive: float | str | None) -> float:
    """Return the seconds that an unused model stays in memory: a number, or a duration such as "10m" or "1h30m".

    Below 0 it stays for ever; what cannot be read counts as the server's default."""
    if keep_alive is None:
        return DEFAULT_KEEP_ALIVE_S
    if isinstance(keep_alive, str):
        text = keep_alive.strip().lstrip("-")
        try:
            seconds = float(text)
        except ValueError:
            parts = _PART.findall(text)
            if not parts or "".join(map("".join, parts)) != text:
                return DEFAULT_KEEP_ALIVE_S
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        keep_alive = -seconds if keep_alive.strip().startswith("-") else seconds
    return math.inf if keep_alive < 0 else float(keep_alive)


class Stays:
    """How long the models of one host stay in memory, in requests.

    Where requests for a model come at random with a rate r, it leaves after the first gap longer than its keep-alive
    K, which e^(rK) requests precede on average. Where not all models fit, it leaves once another one is wanted, before
    which there are as many requests as it is wanted more often than the others."""

    def __init__(self, clock: Callable[[], float], keep_alive_s: float = DEFAULT_KEEP_ALIVE_S) -> None:
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._memory_s = keep_alive_s if 0 < keep_alive_s < math.inf else DEFAULT_KEEP_ALIVE_S
        self._wanted: dict[str, tuple[float, float]] = {}  # requests, each forgotten over one keep-alive; until when
        self._served_at: dict[str, float] = {}
        self._left_early_at = -math.inf

    def wanted(self, model: str) -> None:
        """Count a request that would go to a model if all were in memory."""
        self._wanted[model] = (self._recent(model) + 1.0, self._clock())

    def served(self, model: str, cold: bool) -> None:
        """Note an answer of a model; `cold`: it had to be loaded for it, so that it had left."""
        now_s = self._clock()
        if cold and now_s - self._served_at.get(model, -math.inf) < 0.9 * self._keep_alive_s:
            self._left_early_at = now_s
        self._served_at[model] = now_s

    def requests(self, model: str, in_memory: int = 1) -> float:
        """Return how many requests a load now is expected to serve, at least 1. `in_memory`: models there now."""
        if self._keep_alive_s <= 0 or (recent := self._recent(model)) == 0.0:
            return 1.0
        expected = MOST_REQUESTS if math.isinf(self._keep_alive_s) else math.exp(min(recent, 100.0))
        if self._clock() - self._left_early_at < SHORT_OF_MEMORY_S:
            others = sorted((self._recent(other) for other in list(self._wanted) if other != model), reverse=True)
            crowding = sum(others[max(in_memory, 1) - 1 :])  # the most wanted stay beside it
            expected = min(expected, recent / crowding if crowding > 0 else expected)
        return min(max(expected, 1.0), MOST_REQUESTS)

    def _recent(self, model: str) -> float:
        if model not in self._wanted:
            return 0.0
        requests, until_s = self._wanted[model]
        return requests * math.exp(-max(0.0, self._clock() - until_s) / self._memory_s)
