"""Live speeds of one model on one host, learned from each answer."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

# A model in memory reports a load of milliseconds, on a busy host of tenths of a second; a cold one of tenths and more.
_COLD_LOAD_S = 0.1
_COLD_LOAD_THOUGH_SEEN_S = 0.5  # where it was seen in memory just before: it may have left since
_RATES_GOOD_FOR_S = 900.0  # without a call; then predictions stand alone: a slow period is not remembered for ever
_LOAD_GOOD_FOR_S = 3600.0
_MIN_PROMPT_TOKENS = 16
_MIN_OUTPUT_TOKENS = 4


class Average:
    """A running geometric mean that follows changes: exponential weights, exact over the first few values."""

    def __init__(self, weight: float = 0.2, weight_up: float | None = None) -> None:
        self._weight = weight
        self._weight_up = weight if weight_up is None else weight_up
        self._log: float | None = None
        self._count = 0

    @property
    def value(self) -> float | None:
        """Return the mean; None before the first value."""
        return None if self._log is None else math.exp(self._log)

    def add(self, value: float) -> None:
        """Count a value above 0; others are ignored."""
        if not value > 0 or not math.isfinite(value):
            return
        log = math.log(value)
        self._count += 1
        if self._log is None:
            self._log = log
            return
        weight = self._weight_up if log > self._log else self._weight
        self._log += max(weight, 1 / self._count if self._count <= 3 else 0.0) * (log - self._log)


class LiveRates:
    """Prompt and decode rates in tokens/s, load and service seconds, and recent success. Thread-safe."""

    def __init__(self, clock: Callable[[], float], window: int = 50, window_s: float = 600.0) -> None:
        self._clock = clock
        self._window_s = window_s
        self._lock = threading.Lock()
        # prompt_eval_count counts cached tokens, its duration does not: a cached prompt looks far too fast, so a
        # rate above the mean moves it less than one below.
        self._prompt = Average(weight_up=0.05)
        self._decode = Average()
        self._load = Average(weight=0.3)
        self._service = Average()
        self._recent: deque[tuple[float, bool]] = deque(maxlen=window)
        self._called_at = self._loaded_at = clock()

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Return the rate at which prompts are read; None before the first."""
        return self._prompt.value if self._is_fresh else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Return the rate at which tokens are generated; None before the first."""
        return self._decode.value if self._is_fresh else None

    @property
    def load_s(self) -> float | None:
        """Return the seconds of a load; None before the first."""
        return self._load.value if self._clock() - self._loaded_at <= _LOAD_GOOD_FOR_S else None

    @property
    def service_s(self) -> float | None:
        """Return the seconds of one call, without loads and waits in the gateway's queue; None before the first."""
        return self._service.value if self._is_fresh else None

    @property
    def _is_fresh(self) -> bool:
        return self._clock() - self._called_at <= _RATES_GOOD_FOR_S

    def recent(self) -> tuple[float | None, int]:
        """Return the success rate of the recent calls, and how many they were."""
        with self._lock:
            oldest = self._clock() - self._window_s
            marks = [ok for at, ok in self._recent if at >= oldest]
        return (sum(marks) / len(marks) if marks else None), len(marks)

    def succeeded(
        self,
        service_s: float,
        load_s: float | None = None,
        prompt_tokens: int | None = None,
        prompt_eval_s: float | None = None,
        output_tokens: int | None = None,
        eval_s: float | None = None,
        resident: bool | None = None,
    ) -> None:
        """Learn from one answer; durations in seconds. `resident`: the model was seen in memory before the call."""
        with self._lock:
            self._forget_old()
            self._recent.append((self._called_at, True))
            cold = was_cold(load_s, resident)
            self._service.add(service_s - (load_s or 0.0) if cold else service_s)
            if load_s is not None and cold:
                self._load.add(load_s)
                self._loaded_at = self._called_at
            if prompt_tokens and prompt_eval_s and prompt_tokens >= _MIN_PROMPT_TOKENS:
                self._prompt.add(prompt_tokens / prompt_eval_s)
            if output_tokens and eval_s and output_tokens >= _MIN_OUTPUT_TOKENS:
                self._decode.add(output_tokens / eval_s)

    def failed(self) -> None:
        """Count a failure that was the model's own."""
        with self._lock:
            self._recent.append((self._clock(), False))

    def _forget_old(self) -> None:
        """Start anew where nothing was learned for long."""
        now_s = self._clock()
        if not self._is_fresh:
            self._prompt, self._decode, self._service = Average(weight_up=0.05), Average(), Average()
        if now_s - self._loaded_at > _LOAD_GOOD_FOR_S:
            self._load = Average(weight=0.3)
        self._called_at = now_s


def was_cold(load_s: float | None, resident: bool | None = None) -> bool | None:
    """Return whether a reported load duration means that the model had to be loaded; None if none was reported."""
    if load_s is None:
        return None
    return load_s > (_COLD_LOAD_THOUGH_SEEN_S if resident else _COLD_LOAD_S)
