"""How long each kind of event is stored, and when the clock is reliable enough to delete older ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router_ml.events.store import EventStore

_LOG = logging.getLogger("router_ml.events")

_DAY_S = 86_400.0
_FIRST_S, _EVERY_S = 60.0, 3600.0
_SHARE = 0.1  # of each kind that one run deletes at most
_JUMP_S = 7 * _DAY_S  # the clock moved by more against the monotonic one: more than a machine usually sleeps
_STEADY_S = 6 * 3600.0  # the clock must be steady for so long before it may delete most of a store, or after a jump


@dataclass(frozen=True, slots=True)
class Retention:
    """Days that each kind is stored; None: without limit. Events of experiments are never deleted."""

    traffic_days: float | None = 180.0  # decisions, attempts, outcomes, feedback
    text_days: float | None = 30.0  # texts of queries, or their features, if they are stored at all
    alert_days: float | None = 365.0

    def before(self, now_s: float) -> Mapping[str, float]:
        """Return, for each kind with a limit, the Unix time before which its events are deleted."""
        days = {
            "decision": self.traffic_days,
            "attempt": self.traffic_days,
            "outcome": self.traffic_days,
            "feedback": self.traffic_days,
            "text": self.text_days,
            "features": self.text_days,
            "alert": self.alert_days,
        }
        return {kind: now_s - limit * _DAY_S for kind, limit in days.items() if limit is not None}


class Pruning:
    """Deletes old events hourly, in steps of a tenth of each kind, so that a wrong clock does little harm.

    After the clock has jumped nothing is deleted for six hours, and for the first six hours of a process nothing where
    most of the store would go."""

    def __init__(self, retention: Retention, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._retention, self._clock, self._monotonic = retention, clock, monotonic
        now_s = monotonic()
        self._due_s = now_s + _FIRST_S
        self._steady_since_s, self._offset_s = now_s, clock() - now_s
        self._jumped = False

    def run(self, store: EventStore) -> int:
        """Delete what is due; return how many events went. Raises `StoreError`."""
        now_s, wall_s = self._monotonic(), self._clock()
        if now_s < self._due_s:
            return 0
        self._due_s = now_s + _EVERY_S
        offset_s = wall_s - now_s
        if abs(offset_s - self._offset_s) > _JUMP_S:
            _LOG.warning(
                "the clock moved by %.0f days at once; no event is deleted until it has been steady for %.0f hours",
                (offset_s - self._offset_s) / _DAY_S,
                _STEADY_S / 3600,
            )
            self._steady_since_s, self._jumped = now_s, True
        self._offset_s = offset_s
        before = self._retention.before(wall_s)
        if now_s - self._steady_since_s < _STEADY_S and (self._jumped or _most(store.expired(before))):
            return 0
        return store.prune(before, share=_SHARE)


def _most(counts: tuple[int, int]) -> bool:
    old, every = counts
    return old > every / 2
