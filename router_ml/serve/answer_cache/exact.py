"""Exact-match answers, bounded by number, size and age."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

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
        """Share of look-ups that were answered; 0 before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


class ExactCache(Generic[T]):
    """Least recently used entries leave first; none outlives `ttl_s`. Safe from any thread."""

    def __init__(
        self,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 2**20,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_entries < 1 or max_bytes < 1 or not ttl_s > 0:
            raise SettingsError("cache: max_entries, max_bytes and ttl_s must be above 0")
        self._max_entries, self._max_bytes, self._ttl_s = max_entries, max_bytes, ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[float, int, T]] = OrderedDict()
        self._bytes = self._hits = self._misses = 0

    def get(self, key: str) -> T | None:
        """The value, or None; counts a hit or a miss."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and self._clock() - entry[0] >= self._ttl_s:
                self._drop(key)
                entry = None
            if entry is None:
                self._misses += 1
                return None
            self._hits += 1
            self._entries.move_to_end(key)
            return entry[2]

    def put(self, key: str, value: T, size_bytes: int) -> None:
        """Keeps a value. One larger than the whole cache is not kept."""
        if size_bytes > self._max_bytes:
            return
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = (self._clock(), size_bytes, value)
            self._bytes += size_bytes
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Forgets every entry; the counts stay."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    @property
    def stats(self) -> CacheStats:
        with self._lock:
            return CacheStats(self._hits, self._misses, len(self._entries), self._bytes)

    def _drop(self, key: str) -> None:
        self._bytes -= self._entries.pop(key)[1]
