"""A thread that calls a method every few seconds."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest

from router_ml.periodic import Periodic
from tests.timing import until


class Counter:
    """Counts its calls, and how often it was told of a fork."""

    def __init__(self, every_s: float = 0.01) -> None:
        self.calls = self.forks = 0
        self.thread = Periodic(self.work, every_s, "counter", forked=self.forked)
        self.thread.start()

    def work(self) -> None:
        self.calls += 1

    def forked(self) -> None:
        self.calls, self.forks = 0, self.forks + 1


def living() -> int:
    return sum(thread.name == "counter" for thread in threading.enumerate())


def test_it_calls_until_it_is_stopped() -> None:
    counter = Counter()
    until(lambda: counter.calls >= 3)
    counter.thread.stop()
    until(lambda: not living())
    seen = counter.calls
    time.sleep(0.05)
    assert counter.calls == seen


def test_it_ends_with_its_object() -> None:
    counter = Counter()
    gone = weakref.ref(counter)
    del counter
    gc.collect()
    until(lambda: gone() is None and not living())


def test_it_never_begins_where_the_seconds_are_none() -> None:
    counter = Counter(every_s=0.0)
    assert not living()
    counter.thread.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_thread_of_its_own_and_was_told_first() -> None:
    counter = Counter()
    until(lambda: counter.calls)
    if (child := os.fork()) == 0:
        try:
            until(lambda: counter.calls >= 2)
            os._exit(0 if counter.forks == 1 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    counter.thread.stop()
