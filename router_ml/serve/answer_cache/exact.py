"""Exact-match answers, bounded by number, size and age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from cachetools import TTLCache

from router_ml.errors import SettingsError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts since the start, and what is held now."""

    hits: int
    misses: int
    entries: int
    size_bytes: int

    @property
    def hit_rate(self) -> float:
        """Return the share of look-ups that were answered; 0 before the first."""
        lookups = self.hits + self.misses
        return self.hits / lookups if lookups else 0.0


class _Entry(NamedTuple):
    value: object
    size_bytes: int


class ExactCache(Generic[T]):
    """Least recently used entries leave first; none outlives `ttl_s`. Thread-safe."""

    def __init__(
        self,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 2**20,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not max_entries >= 1 or not max_bytes >= 1 or not ttl_s > 0:
            raise SettingsError("cache: max_entries, max_bytes and ttl_s must be above 0")
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._lock = threading.Lock()
        self._entries: TTLCache[str, _Entry] = TTLCache(max_bytes, ttl_s, clock, lambda entry: entry.size_bytes)
        self._hits = self._misses = 0

    def get(self, key: str) -> T | None:
        """Return the value, or None; count a hit or a miss."""
        with self._lock:
            entry = self._entries.get(key)
            self._hits += entry is not None
            self._misses += entry is None
        return None if entry is None else entry.value  # type: ignore[return-value]

    def put(self, key: str, value: T, size_bytes: int) -> None:
        """Cache a value, unless it is larger than the whole cache."""
        if size_bytes > self._max_bytes:
            return
        with self._lock:
            self._entries.pop(key, None)
            self._entries[key] = _Entry(value, size_bytes)
            while len(self._entries) > self._max_entries:
                self._entries.popitem()

    def clear(self) -> None:
        """Remove every entry; the counts stay."""
        with self._lock:
            self._entries.clear()

    @property
    def stats(self) -> CacheStats:
        """Return the counts, and what is held now."""
        with self._lock:
            self._entries.expire()
            return CacheStats(self._hits, self._misses, len(self._entries), int(self._entries.currsize))
