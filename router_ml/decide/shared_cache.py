"""A bounded cache that threads, forked processes and signal handlers may use."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, MutableMapping
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
MAX_WAIT_S = 0.05  # for the lock


class SharedCache(Generic[K, V]):
    """A mapping of cachetools behind a lock.

    Whoever cannot have the lock in `MAX_WAIT_S`, or interrupted its holder (a signal handler), finds and stores
    nothing. A forked process starts with an empty cache, for a thread of its parent may have held the lock."""

    def __init__(self, make: Callable[[], MutableMapping[K, V]]) -> None:
        self._make = make
        self._open()
        _CACHES.add(self)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value stored under a key, or None."""
        if not self._acquire():
            return None
        try:
            return self._entries[key]  # `get` of cachetools looks up twice
        except KeyError:
            return None
        finally:
            self._release()

    def get_many(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the values stored under some of the keys."""
        if not self._acquire():
            return {}
        try:
            entries = self._entries
            return {key: entries[key] for key in keys if key in entries}
        finally:
            self._release()

    def put(self, values: Mapping[K, V]) -> None:
        """Store values; the least recently used leave when there are too many."""
        if self._acquire():
            try:
                self._entries.update(values)
            finally:
                self._release()

    def discard(self, key: K) -> None:
        """Forget the value of a key, where there is one."""
        if self._acquire():
            try:
                self._entries.pop(key, None)
            finally:
                self._release()

    def _open(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0  # the thread that has the lock
        self._entries = self._make()

    def _acquire(self) -> bool:
        caller = threading.get_ident()
        if not self._lock.acquire(blocking=False) and (
            self._holder == caller or not self._lock.acquire(timeout=MAX_WAIT_S)
        ):
            return False
        self._holder = caller
        return True

    def _release(self) -> None:
        self._holder = 0
        self._lock.release()


_CACHES: weakref.WeakSet[SharedCache[Any, Any]] = weakref.WeakSet()


def _open_all() -> None:
    for cache in list(_CACHES):
        cache._open()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_all)
