"""Engines: run one function over many items on several processes, results in the order of the items.

An engine holds a bounded number of items at once, however many there are.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeVar

from router_ml.errors import InputError, RouterError

A = TypeVar("A")
B = TypeVar("B")

LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
AHEAD = 2  # items for each worker that wait or are done, so that no worker waits for the reader


class Engine(Protocol):
    """Where work is done."""

    @property
    def workers(self) -> int:
        """Return how many processes work."""
        ...

    def map(self, build: Callable[[], Callable[[A], B]], items: Iterable[A]) -> Iterator[B]:
        """Yield the result of each item, in order. `build` is called once in each process; it, the items and the
        results must be picklable. Raises what the function raises, and `RouterError` if a process ends."""
        ...


def open_engine(name: str, workers: int | None = None, *, waiting: bool = False) -> Engine:
    """Return an engine with `workers` processes: by default one a core, or one a machine where they are `waiting` for
    others and need no core. Raises `InputError` for an unknown or missing one."""
    if name == LOCAL:
        return LocalEngine(workers or (1 if waiting else cores()))
    if name == RAY:
        from router_ml.engines.ray_engine import RayEngine

        return RayEngine(workers, waiting=waiting)
    raise InputError(f"engine must be one of {', '.join(ENGINES)}, found {name!r}")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """Processes of this machine; with one worker, this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, build: Callable[[], Callable[[A], B]], items: Iterable[A]) -> Iterator[B]:
        """Yield the result of each item, in order. Raises as an engine does."""
        if self.workers == 1:
            yield from map(build(), items)
            return
        pool = ProcessPoolExecutor(self.workers, get_context("spawn"), _begin, (build,))
        try:
            yield from ordered(lambda item: pool.submit(_apply, item), Future.result, items, self.workers * (1 + AHEAD))
        except BrokenProcessPool as error:
            raise RouterError(
                "a worker process ended (out of memory?); run the command again to go on, or with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def ordered(submit: Callable[[A], Any], result: Callable[[Any], B], items: Iterable[A], at_once: int) -> Iterator[B]:
    """Yield results in order while at most `at_once` items are under way."""
    pending: deque[Any] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) >= at_once:
            yield result(pending.popleft())
    while pending:
        yield result(pending.popleft())


class _Worker:
    """The function of this process, built with its first item, so that an error of building reaches the caller."""

    build: Callable[[], Callable[[Any], Any]]
    function: Callable[[Any], Any] | None = None


def _begin(build: Callable[[], Callable[[Any], Any]]) -> None:
    _Worker.build = staticmethod(build)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent is gone: a killed parent cannot end it."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _apply(item: Any) -> Any:
    if _Worker.function is None:
        _Worker.function = _Worker.build()
    return _Worker.function(item)
