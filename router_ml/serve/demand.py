"""Which model is likely to be needed next."""

from __future__ import annotations

from collections.abc import Mapping


class Demand:
    """How often each model is wanted, in memory or not; recent requests count most."""

    def __init__(self, memory: float = 0.9) -> None:
        self._memory = memory
        self._share: dict[str, float] = {}

    def chose(self, model: str) -> None:
        """Count one choice."""
        for name in self._share:
            self._share[name] *= self._memory
        self._share[model] = self._share.get(model, 0.0) + 1.0 - self._memory

    def next_to_load(self, resident: Mapping[str, bool | None], least_share: float = 0.2) -> str | None:
        """Return the most requested model that is not in memory, if it is requested often enough to be worth a load and
        more than some model that is in memory (which might have to leave for it); else None."""
        cold = [name for name, there in resident.items() if there is False]
        warm = [self._share.get(name, 0.0) for name, there in resident.items() if there]
        wanted = max(cold, key=lambda name: self._share.get(name, 0.0), default=None)
        if wanted is None or self._share.get(wanted, 0.0) < least_share:
            return None
        return wanted if not warm or self._share[wanted] > min(warm) else None
