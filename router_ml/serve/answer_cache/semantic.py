"""Near matches, only where somebody asked for them: same setting, high cosine, and past the guard."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from router_ml.serve.answer_cache.guard import near_miss
from router_ml.serve.answer_cache.key import CacheKey

T = TypeVar("T")
Embed = Callable[[str], npt.NDArray[np.float32]]


class SemanticCache(Generic[T]):
    """Answers to texts that mean the same, within one setting (see `CacheKey`). Safe from any thread."""

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
        self._max_settings, self._max_texts, self._ttl_s = max_settings, max_texts, ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._settings: OrderedDict[str, deque[tuple[float, str, npt.NDArray[np.float32], T]]] = OrderedDict()

    def get(self, key: CacheKey) -> T | None:
        """The answer to the nearest text that may share it, or None."""
        with self._lock:
            entries = list(self._settings.get(key.setting, ()))
        if not entries:
            return None
        vector = self._unit(key.text)
        oldest = self._clock() - self._ttl_s
        near = [
            (float(vector @ kept), value)
            for at, text, kept, value in entries
            if at > oldest and near_miss(text, key.text) is None
        ]
        cosine, value = max(near, key=lambda pair: pair[0], default=(0.0, None))
        return value if cosine >= self._threshold else None

    def put(self, key: CacheKey, value: T) -> None:
        """Keeps an answer."""
        vector = self._unit(key.text)
        with self._lock:
            texts = self._settings.setdefault(key.setting, deque(maxlen=self._max_texts))
            texts.append((self._clock(), key.text, vector, value))
            self._settings.move_to_end(key.setting)
            while len(self._settings) > self._max_settings:
                self._settings.popitem(last=False)

    def _unit(self, text: str) -> npt.NDArray[np.float32]:
        vector = np.asarray(self._embed(text), dtype=np.float32).ravel()
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm > 0 else vector
