"""The one background writer: a bounded queue in front of the store, so that no request ever waits for a disk."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router_ml.errors import StoreError
from router_ml.events.event import Event
from router_ml.events.retention import Retention
from router_ml.events.store import EventStore

_LOG = logging.getLogger("router_ml.events")

CAPACITY = 20_000
BATCH = 1000
_GATHER_S = 0.02  # let a few events come together before a commit
_RETRY_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_PRUNE_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class WriterState:
    """What the writer has done so far."""

    written: int
    dropped: int  # never written: the queue was full, or the event could not be put into words
    pending: int
    failures: int  # commits that failed and were tried again
    last_error: str | None


class EventWriter:
    """A `Recorder` that writes to a store from a thread of its own.

    `open_store` is called in that thread, and again after a failure, so a store that is away at the start does no
    harm. Events wait in memory while it is away, up to `capacity`; then new ones are dropped and counted."""

    def __init__(
        self,
        open_store: Callable[[], EventStore],
        *,
        capacity: int = CAPACITY,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_store = open_store
        self._capacity = capacity
        self._retention = retention
        self._clock = clock
        self._queue: deque[Event] = deque()
        self._batch: list[Event] = []
        self._store: EventStore | None = None
        self._wake = threading.Event()
        self._idle = threading.Condition()
        self._closed = threading.Event()
        self._written = self._dropped = self._failures = 0
        self._last_error: str | None = None
        self._next_prune_s = clock() + 60.0
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def record(self, event: Event) -> None:
        """Take one event: an append to a queue, and never a wait."""
        if len(self._queue) >= self._capacity or self._closed.is_set():
            self._dropped += 1
            return
        self._queue.append(event)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None or self._pid != os.getpid() or not self._thread.is_alive():
                self._start_thread()

    def state(self) -> WriterState:
        """What was written, dropped, and still waits."""
        pending = len(self._queue) + len(self._batch)
        return WriterState(self._written, self._dropped, pending, self._failures, self._last_error)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything recorded so far is in the store; False where the time did not suffice."""
        deadline = time.monotonic() + timeout_s
        with self._idle:
            while self._queue or self._batch:
                self._wake.set()
                if self._thread is None or not self._thread.is_alive():
                    self._start_thread()
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(min(left, 0.1))
        return True

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits, stop the thread and close the store; False where something could not be written.

        A store that is away is not waited for long."""
        done = self.flush(min(timeout_s, 1.0)) or (self._last_error is None and self.flush(timeout_s - 1.0))
        self._closed.set()
        self._wake.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(timeout_s)
        return done

    def _start_thread(self) -> None:
        with self._start:
            if self._pid != os.getpid():  # a fork copies the queue but not the thread; the parent writes what it had
                self._pid, self._thread, self._store, self._batch = os.getpid(), None, None, []
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="router-ml-events", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        tries = 0
        while True:
            self._wake.wait(_PRUNE_EVERY_S if self._retention else None)
            self._closed.wait(_GATHER_S if not tries else _RETRY_S[min(tries, len(_RETRY_S)) - 1])
            self._wake.clear()  # before the queue is emptied: what comes later sets it again
            tries = 0 if self._drain() else tries + 1
            if tries and not self._closed.is_set():
                self._wake.set()
            self._prune_if_due()
            if self._closed.is_set() and (tries or not self._queue):
                break
        if self._store is not None:
            self._store.close()
            self._store = None

    def _drain(self) -> bool:
        """Write batch after batch until the queue is empty; False after a failure, which keeps the batch."""
        while self._queue or self._batch:
            while self._queue and len(self._batch) < BATCH:
                self._batch.append(self._queue.popleft())
            try:
                self._write(self._batch)
            except StoreError as error:
                self._note_failure(error)
                return False
            except Exception:  # an event that cannot be put into words must not hold up the others
                self._write_singly()
            with self._idle:
                self._batch = []
                self._idle.notify_all()
        return True

    def _write(self, events: list[Event]) -> None:
        if self._store is None:
            self._store = self._open_store()
        self._store.append(events)
        self._written += len(events)
        self._last_error = None

    def _write_singly(self) -> None:
        for event in self._batch:
            try:
                self._write([event])
            except Exception as error:
                self._dropped += 1
                self._last_error = f"dropped an event: {error}"
                _LOG.warning("dropped an event of type %s: %s", type(event).__name__, error)

    def _note_failure(self, error: StoreError) -> None:
        self._failures += 1
        if self._last_error is None:
            _LOG.warning("events wait in memory: %s", error)
        self._last_error = str(error)

    def _prune_if_due(self) -> None:
        now_s = self._clock()
        if self._retention is None or self._store is None or now_s < self._next_prune_s:
            return
        self._next_prune_s = now_s + _PRUNE_EVERY_S
        try:
            self._store.prune(self._retention.before(now_s))
        except StoreError as error:
            self._note_failure(error)
