"""Live speeds of one model on one host, learned from each answer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from router_ml.hosts.average import Average, Estimate

# A model in memory reports a load of milliseconds, on a busy host of tenths of a second; a cold one of tenths and more.
_COLD_LOAD_S = 0.1
_COLD_LOAD_THOUGH_SEEN_S = 0.5  # where it was seen in memory just before: it may have left since
# Every so long without an answer a model's own rates count half as much against what its host's pace predicts, so a
# model that was slow is tried again after an hour or so; after 2.6 hours they are forgotten.
RATES_HALF_LIFE_S = 600.0
LOAD_HALF_LIFE_S = 3600.0
COUNTED_ANSWERS = 20  # after so many the seconds of an answer count as measured, whoever judged it
_MIN_PROMPT_TOKENS = 16
_MIN_OUTPUT_TOKENS = 4


class LiveRates:
    """Prompt and decode rates in tokens/s, load and service seconds, and recent success. Thread-safe."""

    def __init__(self, clock: Callable[[], float], window: int = 50, window_s: float = 600.0) -> None:
        self._clock = clock
        self._window_s = window_s
        self._lock = threading.Lock()
        # prompt_eval_count counts cached tokens, its duration does not: a cached prompt looks far too fast, so a
        # rate above the mean moves it less than one below.
        self._prompt = Average(weight_up=0.05, clock=clock, half_life_s=RATES_HALF_LIFE_S)
        self._decode = Average(clock=clock, half_life_s=RATES_HALF_LIFE_S)
        self._load = Average(weight=0.3, clock=clock, half_life_s=LOAD_HALF_LIFE_S)
        self._service = Average(clock=clock, half_life_s=RATES_HALF_LIFE_S)
        self._recent: deque[tuple[float, bool]] = deque(maxlen=window)
        self._answers = 0

    def prompt(self, half_life_s: float | None = None) -> Estimate | None:
        """Return the rate at which prompts are read, in tokens/s; None before the first."""
        return self._prompt.estimate(half_life_s)

    def decode(self, half_life_s: float | None = None) -> Estimate | None:
        """Return the rate at which tokens are generated, in tokens/s; None before the first."""
        return self._decode.estimate(half_life_s)

    def load(self) -> Estimate | None:
        """Return the seconds of a load; None before the first."""
        return self._load.estimate()

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Return the rate at which prompts are read; None before the first."""
        return self._prompt.value

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Return the rate at which tokens are generated; None before the first."""
        return self._decode.value

    @property
    def load_s(self) -> float | None:
        """Return the seconds of a load; None before the first."""
        return self._load.value

    @property
    def service_s(self) -> float | None:
        """Return the seconds of one call, without loads and waits in the gateway's queue; None before the first."""
        return self._service.value

    @property
    def measured_service_s(self) -> float | None:
        """Return the seconds of one call once enough answers were counted; they need no tokens and no judgement."""
        return self._service.value if self._answers >= COUNTED_ANSWERS else None

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
            if self._service.value is None:
                self._answers = 0
            self._answers += 1
            self._recent.append((self._clock(), True))
            cold = was_cold(load_s, resident)
            self._service.add(service_s - (load_s or 0.0) if cold else service_s)
            if load_s is not None and cold:
                self._load.add(load_s)
            if prompt_tokens and prompt_eval_s and prompt_tokens >= _MIN_PROMPT_TOKENS:
                self._prompt.add(prompt_tokens / prompt_eval_s)
            if output_tokens and eval_s and output_tokens >= _MIN_OUTPUT_TOKENS:
                self._decode.add(output_tokens / eval_s)

    def failed(self) -> None:
        """Count a failure that was the model's own."""
        with self._lock:
            self._recent.append((self._clock(), False))


def was_cold(load_s: float | None, resident: bool | None = None) -> bool | None:
    """Return whether a reported load duration means that the model had to be loaded; None if none was reported."""
    if load_s is None:
        return None
    return load_s > (_COLD_LOAD_THOUGH_SEEN_S if resident else _COLD_LOAD_S)
