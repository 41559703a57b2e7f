"""How many requests share one load of a model: those expected before it leaves memory again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from router_ml.hosts.average import Average, Estimate, combined

DEFAULT_KEEP_ALIVE_S = 300.0  # Ollama's own
MOST_REQUESTS = 1000.0
_STAY_HALF_LIFE_S = 3600.0
_STAY_LOG_SD = 1.0  # of the requests between two loads of one model
_FORECAST_LOG_SD = 2.0  # of the forecast from demand alone, which knows nothing of other models' need for memory
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


class Stay:
    """Requests per load of one model on one host.

    Where they come at random with a rate r, the model leaves after the first gap longer than its keep-alive K, which
    e^(rK) requests precede on average. How many it really served between two loads corrects that: it also leaves
    where another model needs its memory."""

    def __init__(self, clock: Callable[[], float], keep_alive_s: float = DEFAULT_KEEP_ALIVE_S) -> None:
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._rate_times_stay = 0.0  # wanted requests, each forgotten over one keep-alive
        self._wanted_at = clock()
        self._served = 0
        self._seen = Average(weight=0.3, clock=clock, half_life_s=_STAY_HALF_LIFE_S, log_sd=_STAY_LOG_SD)

    def wanted(self) -> None:
        """Count a request that would go to the model if every model were in memory."""
        self._rate_times_stay = self._recent() + 1.0
        self._wanted_at = self._clock()

    def served(self, cold: bool) -> None:
        """Count an answer; `cold`: the model had to be loaded for it."""
        if cold:
            self._seen.add(self._served)
            self._served = 0
        self._served += 1

    @property
    def requests(self) -> float:
        """Return how many requests a load now is expected to serve, at least 1."""
        if self._keep_alive_s <= 0:
            return 1.0
        forecast = MOST_REQUESTS if math.isinf(self._keep_alive_s) else math.exp(min(self._recent(), 100.0))
        logs = Estimate(math.log(min(forecast, MOST_REQUESTS)), _FORECAST_LOG_SD**2)
        expected = combined((logs, self._seen.estimate))
        assert expected is not None
        return max(1.0, expected.value)

    def _recent(self) -> float:
        idle_s = max(0.0, self._clock() - self._wanted_at)
        if not 0 < self._keep_alive_s < math.inf:
            return self._rate_times_stay
        return self._rate_times_stay * math.exp(-idle_s / self._keep_alive_s)
