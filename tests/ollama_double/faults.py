"""What can go wrong with a server, and for which model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import StrEnum


class Fault(StrEnum):
    """One way to fail. `CHAT` faults concern one generation, `SERVER` faults the whole host."""

    REFUSED = "refused"  # nobody listens (server)
    HANG_BEFORE_HEADERS = "hang_before_headers"
    HANG_AFTER_HEADERS = "hang_after_headers"
    HANG_MID_STREAM = "hang_mid_stream"
    RESET_BEFORE_HEADERS = "reset_before_headers"
    RESET_MID_STREAM = "reset_mid_stream"
    ERROR_500 = "error_500"
    QUEUE_FULL_503 = "queue_full_503"
    MISSING_404 = "missing_404"
    MALFORMED_JSON = "malformed_json"
    TRUNCATED_CHUNK = "truncated_chunk"
    SLOW_DRIP = "slow_drip"
    JITTER = "jitter"
    COLD_LOAD = "cold_load"  # the model loads for 30 s first
    WRONG_MODEL = "wrong_model"
    EMPTY_ANSWER = "empty_answer"
    ERROR_LINE = "error_line"  # {"error"} under status 200
    TAGS_DOWN = "tags_down"  # /api/tags and /api/ps fail, chat works (server)
    CHAT_DOWN = "chat_down"  # chat fails, /api/tags works (server)
    FLAPPING = "flapping"  # every other generation fails


SERVER_FAULTS = frozenset({Fault.REFUSED, Fault.TAGS_DOWN, Fault.CHAT_DOWN})

FaultPlan = Callable[[str, int], "Fault | None"]  # (model, how many requests it had before) -> fault


class Faults:
    """The faults in force, by model; `"*"` is every model. Safe to change from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_model: dict[str, tuple[Fault, int | None]] = {}
        self._plan: FaultPlan | None = None
        self._seen: dict[str, int] = {}

    def set(self, model: str, fault: Fault, times: int | None = None) -> None:
        """Puts a fault in force for a model (or `"*"`), for the next `times` requests or until cleared."""
        with self._lock:
            self._by_model[model] = (fault, times)

    def clear(self, model: str | None = None) -> None:
        """Ends one model's fault, or all of them and the plan."""
        with self._lock:
            if model is None:
                self._by_model.clear()
                self._plan = None
            else:
                self._by_model.pop(model, None)

    def plan(self, plan: FaultPlan | None) -> None:
        """Lets a function choose the fault of each generation."""
        with self._lock:
            self._plan = plan

    def active(self, fault: Fault) -> bool:
        """Whether a fault of the whole host is in force."""
        with self._lock:
            return any(kind is fault for kind, _ in self._by_model.values())

    def take(self, model: str) -> Fault | None:
        """The fault the next generation of this model meets; counts it."""
        with self._lock:
            index = self._seen.get(model, 0)
            self._seen[model] = index + 1
            fault = self._one_of(model) or self._one_of("*")
            if fault in SERVER_FAULTS:
                fault = None  # in force for the host as a whole, see `active`
            if fault is None and self._plan is not None:
                fault = self._plan(model, index)
            if fault is Fault.FLAPPING:
                return Fault.ERROR_500 if index % 2 == 0 else None
            return fault

    def _one_of(self, key: str) -> Fault | None:
        entry = self._by_model.get(key)
        if entry is None:
            return None
        fault, left = entry
        if left is not None:
            if left <= 1:
                del self._by_model[key]
            else:
                self._by_model[key] = (fault, left - 1)
        return fault
