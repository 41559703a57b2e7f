"""Change detection by cumulative sums (Page 1954, Biometrika 41).

With log likelihood ratios as gains, the mean run between false alarms is at least exp(threshold) events
(Lorden 1971, Annals of Mathematical Statistics 42).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Cusum:
    """A one-sided CUSUM: fires at its threshold, and resolves when the sum is back at zero."""

    threshold: float
    total: float = 0.0
    firing: bool = False

    def add(self, gain: float, *, allowed: bool = True) -> bool:
        """Take the evidence of one event; return whether it fires. It begins to fire only where `allowed`."""
        # Capped at 1.25 x threshold, so that the alert resolves soon after the fault ends.
        self.total = min(max(0.0, self.total + gain), 1.25 * self.threshold)
        self.firing = self.total > 0 if self.firing else allowed and self.total >= self.threshold
        return self.firing
