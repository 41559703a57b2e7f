"""How long each kind of event is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Retention:
    """Days each kind is kept; None keeps it for good. What an experiment decided is kept for good."""

    traffic_days: float | None = 180.0  # decisions, attempts, outcomes, feedback
    text_days: float | None = 30.0  # texts of queries, where they are kept at all
    alert_days: float | None = 365.0

    def before(self, now_s: float) -> Mapping[str, float]:
        """For each kind that ends, the Unix time before which its events go."""
        days = {
            "decision": self.traffic_days,
            "attempt": self.traffic_days,
            "outcome": self.traffic_days,
            "feedback": self.traffic_days,
            "text": self.text_days,
            "alert": self.alert_days,
        }
        return {kind: now_s - kept * _DAY_S for kind, kept in days.items() if kept is not None}
