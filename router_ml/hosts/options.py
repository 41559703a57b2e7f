"""Options of a gateway. Every value has a working default; all times are seconds."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from router_ml.errors import SettingsError

_NONE: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


def _check_numbers(options: Any, others: Collection[str]) -> None:
    """Raise `SettingsError` if a field that is not among the `others` is not a number of 0 or more."""
    for name in (each.name for each in fields(options) if each.name not in others):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value) >= 0:
            raise SettingsError(f"{name} must be a number of 0 or more, found {value!r:.60}")


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """When a circuit opens, and for how long."""

    consecutive_failures: int = 3
    window: int = 20  # number of latest calls that the failure rate is computed from
    window_failure_share: float = 0.5  # of a window that holds at least `window_minimum` calls
    window_minimum: int = 10
    open_s: float = 5.0
    open_max_s: float = 60.0  # each failed probe doubles the wait up to this

    def __post_init__(self) -> None:
        _check_numbers(self, ())
        if self.consecutive_failures < 1 or self.window_minimum < 1 or not 0 < self.open_s <= self.open_max_s:
            raise SettingsError("breaker: counts must be 1 or more and 0 < open_s <= open_max_s")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Limits, lifetimes and optional behaviour of a gateway."""

    deadline_s: float = 120.0  # of one request, all attempts together
    last_resort: str | None = "qwen3:8b"  # tried after every ranked model; None: nothing is added
    # An attempt may last attempt_factor times the predicted p95, and no less than attempt_min_s, nor than an answer of
    # attempt_min_tokens takes at the rate seen here: after a few short answers a long one is not a fault. A model that
    # is not in memory gets its load time on top (cold_load_s until one was seen). Time for a fallback is reserved
    # where it could finish.
    attempt_factor: float = 3.0
    attempt_min_s: float = 10.0
    attempt_min_tokens: int = 1000
    cold_load_s: float = 60.0
    idle_s: float = 30.0  # longest silence within a stream
    connect_s: float = 2.0
    parallel: int = 4  # calls at once per model and host
    max_waiting: int = 64  # callers waiting per model and host; more are shed
    availability_ttl_s: float = 300.0
    residency_ttl_s: float = 3.0
    probe_wait_s: float = 0.25  # longest wait of a request for the first listing of a host
    residency_wait_s: float = 0.03  # longest wait of a request for a fresh listing of loaded models
    breaker: BreakerOptions = BreakerOptions()
    model_options: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: _NONE)  # one option set per model
    max_num_ctx: int = 32_768  # num_ctx is raised up to this, so that a long prompt is not cut; 0: it never is
    keep_alive: float | str | None = None  # sent where the caller sends none
    stick_margin: float | None = None  # a session leaves its model only for a utility higher by more than this
    preload: bool = False  # load the likely next model while the host is idle
    # The answer to an ambiguous query under a policy with on_ambiguous = "clarify", instead of calling a model; None:
    # a model answers all the same, and the caller may act on `answer.decision.action`.
    clarifying_question: str | None = "What exactly do you mean? Please say a little more."

    def __post_init__(self) -> None:
        _check_numbers(self, ("last_resort", "breaker", "model_options", "keep_alive", "stick_margin", "preload",
                              "clarifying_question"))  # fmt: skip
        positive = ("deadline_s", "attempt_factor", "attempt_min_s", "idle_s", "connect_s", "parallel")
        for name in positive:
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} must be above 0, found {getattr(self, name)!r}")
