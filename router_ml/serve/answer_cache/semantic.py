"""Answers to texts that mean the same: equal setting, high cosine, and past the guard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache, TTLCache

from router_ml.serve.answer_cache.guard import near_miss
from router_ml.serve.answer_cache.key import CacheKey

T = TypeVar("T")
Vector = npt.NDArray[np.float32]
Embed = Callable[[str], Vector]


class SemanticCache(Generic[T]):
    """Answers to texts that mean the same, within one setting (see `CacheKey`). Thread-safe.

    Off unless code asks for it; no setting turns it on: `Gateway(..., semantic_cache=SemanticCache(embed))`, where
    `embed` gives the vector of a text. Least recently used settings leave first, `max_texts` are held in each."""

    def __init__(
        self,
        embed: Embed,
        threshold: float = 0.95,
        max_settings: int = 1000,
        max_texts: int = 100,
        ttl_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._embed, self._threshold = embed, threshold
        self._max_texts, self._ttl_s, self._clock = max_texts, ttl_s, clock
        self._lock = threading.Lock()
        self._settings: LRUCache[str, TTLCache[str, tuple[Vector, T]]] = LRUCache(max_settings)

    def get(self, key: CacheKey) -> T | None:
        """Return the answer to the nearest text that may share it, or None."""
        with self._lock:
            entries = list(self._settings.get(key.setting, {}).items())
        if not entries:
            return None
        vector = self._unit(key.text)
        near = ((float(vector @ unit), value) for text, (unit, value) in entries if near_miss(text, key.text) is None)
        cosine, value = max(near, key=lambda pair: pair[0], default=(0.0, None))
        return value if cosine >= self._threshold else None

    def put(self, key: CacheKey, value: T) -> None:
        """Cache an answer."""
        vector = self._unit(key.text)
        with self._lock:
            if key.setting not in self._settings:
                self._settings[key.setting] = TTLCache(self._max_texts, self._ttl_s, self._clock)
            self._settings[key.setting][key.text] = (vector, value)

    def _unit(self, text: str) -> Vector:
        vector = np.asarray(self._embed(text), dtype=np.float32).ravel()
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm > 0 else vector
