"""A bounded cache that no thread, signal handler or fork can block."""

from __future__ import annotations

import os

import pytest
from cachetools import LRUCache

from router_ml.decide.shared_cache import MAX_WAIT_S, SharedCache
from tests.timing import Stopwatch


def _cache(size: int = 3) -> SharedCache[str, int]:
    return SharedCache(lambda: LRUCache(size))


def test_values_are_found_until_others_push_them_out() -> None:
    cache = _cache()
    cache.put({"a": 1, "b": 2, "c": 3})
    assert (cache.get("a"), cache.get("z")) == (1, None)
    cache.put({"d": 4})
    assert cache.get_many(["a", "b", "c", "d"]) == {"a": 1, "c": 3, "d": 4}
    assert len(cache) == 3


def test_who_cannot_have_the_lock_goes_on_without_the_cache() -> None:
    cache = _cache()
    cache.put({"a": 1})
    with cache._lock:  # as a signal handler finds it that interrupted its holder
        with Stopwatch() as watch:
            assert cache.get("a") is None
            assert cache.get_many(["a"]) == {}
            cache.put({"b": 2})
        assert watch.s < 20 * MAX_WAIT_S
    assert cache.get_many(["a", "b"]) == {"a": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_starts_anew_whoever_held_the_lock() -> None:
    cache = _cache()
    cache.put({"a": 1})
    with cache._lock:
        child = os.fork()
        if child == 0:
            cache.put({"b": 2})
            os._exit(0 if cache.get_many(["a", "b"]) == {"b": 2} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("a") == 1
