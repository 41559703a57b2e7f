"""The background writer: a bounded queue in front of the store, so that no request ever waits for a disk."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass

from router_ml.errors import StoreError
from router_ml.events.event import DecisionEvent, Event
from router_ml.events.retention import Pruning, Retention
from router_ml.events.store import EventStore, RefusedRecord

_LOG = logging.getLogger("router_ml.events")

CAPACITY = 20_000
BATCH = 1000
_GATHER_S = 0.02  # collect a few events before a commit
_IDLE_S = 60.0  # without events: how often to see whether anything is due to be pruned
_RETRY_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
_EXIT_S = 5.0  # the interpreter's end waits so long for all writers together
_WITHOUT_CONTEXT = 1000  # events that wait before further ones are queued without their conversation


@dataclass(frozen=True, slots=True)
class WriterState:
    """Counts of a writer."""

    written: int
    dropped: int  # never written: the queue was full, or the database refused the event
    pending: int
    failures: int  # commits that failed and were tried again
    last_error: str | None


class EventWriter:
    """A `Recorder` that writes to a store from a thread of its own.

    `open_store` is called in that thread, and again after a failure, so a store that is away at the start does no
    harm. Events wait in memory while it is away, up to `capacity`; then new ones are dropped and counted. Safe to use
    from threads, signal handlers and forked children, each of which writes what it recorded itself. What waits is
    written when the writer is no longer referenced, and at the interpreter's end."""

    def __init__(
        self,
        open_store: Callable[[], EventStore],
        *,
        capacity: int = CAPACITY,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        pruning = None if retention is None else Pruning(retention, clock, monotonic)
        self._capacity = capacity
        self._worker = _Worker(open_store, pruning)
        weakref.finalize(self, self._worker.stop).atexit = False

    def record(self, event: Event) -> None:
        """Take one event: it is appended to a queue without waiting."""
        worker = self._worker
        waiting = worker.queue.qsize()
        if waiting >= self._capacity or worker.stopped:
            worker.dropped += 1
            return
        if waiting >= _WITHOUT_CONTEXT and isinstance(event, DecisionEvent) and event.context is not None:
            event = dataclasses.replace(event, context=None)
        worker.queue.put(event)
        worker.ensure_thread()

    def state(self) -> WriterState:
        """Return the counts of events written, dropped, and waiting."""
        worker = self._worker
        pending = worker.queue.qsize() + len(worker.batch)
        return WriterState(worker.written, worker.dropped, pending, worker.failures, worker.last_error)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything recorded so far is in the store; False if the time did not suffice."""
        return self._worker.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits, stop the thread and close the store; False if something could not be written.

        A store that is away is waited for a second at most."""
        return self._worker.close(timeout_s)


class _Worker:
    """The writer's thread with its queue. It holds no reference to the `EventWriter`, which may go before it."""

    def __init__(self, open_store: Callable[[], EventStore], pruning: Pruning | None) -> None:
        self._open_store = open_store
        self._pruning = pruning
        self._store: EventStore | None = None
        self.written = self.dropped = self.failures = 0
        self.last_error: str | None = None
        self.stopped = False
        self._refusal_logged = False
        self.reset()
        _WORKERS.add(self)

    def reset(self) -> None:
        """Begin with empty queues and new locks, as a forked child must: the parent writes what it recorded."""
        # SimpleQueue.put may be interrupted by a signal handler that calls it again, and by a fork.
        self.queue: queue.SimpleQueue[Event | threading.Event | None] = queue.SimpleQueue()
        self.batch: list[Event] = []
        self._flushed: list[threading.Event] = []
        self._hurry = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def ensure_thread(self) -> None:
        """Start the thread where it does not run; never waits."""
        if (self._thread is not None and self._thread.is_alive()) or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None or not self._thread.is_alive():
                _OPEN.add(self)
                _close_with_process(self)
                self._thread = threading.Thread(target=self._run, name="router-ml-events", daemon=True)
                self._thread.start()
        except RuntimeError:  # the interpreter is about to end: `close` writes what waits
            self._thread = None
        finally:
            self._starting.release()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is in the store."""
        if self.queue.empty() and not self.batch and self._thread is None:
            return True
        deadline_s = time.monotonic() + timeout_s
        done = threading.Event()
        self.queue.put(done)
        while True:
            self._hurry.set()
            self.ensure_thread()
            left_s = deadline_s - time.monotonic()
            if done.wait(min(0.1, max(0.0, left_s))):
                return True
            if left_s <= 0:
                return False

    def stop(self) -> None:
        """Let the thread write what waits and end. Takes no lock: garbage collection may call it anywhere."""
        self.stopped = True
        self.queue.put(None)

    def close(self, timeout_s: float) -> bool:
        """Write what waits, stop the thread and close the store; whether all was written."""
        deadline_s = time.monotonic() + timeout_s
        done = self.flush(min(timeout_s, 1.0)) or (self.last_error is None and self.flush(timeout_s - 1.0))
        self.stop()
        self._hurry.set()
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(max(0.1, deadline_s - time.monotonic()))
        elif not done:
            done = self._drain()  # no thread could be started any more
            self._end()
        return done

    def _run(self) -> None:
        tries = 0
        while True:
            if self.batch or self._take(_IDLE_S) or self._flushed:
                if tries:
                    self._hurry.wait(_RETRY_S[min(tries, len(_RETRY_S)) - 1])
                else:
                    time.sleep(_GATHER_S)
                self._hurry.clear()
                tries = 0 if self._drain() else tries + 1
            if self._pruning is not None and self._store is not None:
                self._prune()
            if self.stopped and (tries or self.queue.empty()):
                break
        self._end()

    def _end(self) -> None:
        left = self.queue.qsize() + len(self.batch)
        if left:
            _LOG.warning("%d events could not be stored before the end: %s", left, self.last_error)
        if self._store is not None:
            self._store.close()
            self._store = None
        _OPEN.discard(self)

    def _take(self, timeout_s: float | None = None) -> bool:
        """Move one event from the queue to the batch; False if there was none."""
        try:
            item = self.queue.get(timeout=timeout_s) if timeout_s else self.queue.get_nowait()
        except queue.Empty:
            return False
        if isinstance(item, threading.Event):
            self._flushed.append(item)
        elif item is not None:
            self.batch.append(item)
        return item is not None

    def _drain(self) -> bool:
        """Write batch after batch until the queue is empty; False after a failure, which keeps the batch."""
        while True:
            while len(self.batch) < BATCH and self._take():
                pass
            try:
                if self.batch:
                    self._write(self.batch)
            except RefusedRecord:
                if not self._write_singly():
                    return False
            except StoreError as error:
                self._note_failure(error)
                return False
            self.batch = []
            for flushed in self._flushed:
                flushed.set()
            self._flushed = []
            if self.queue.empty():
                return True

    def _write(self, events: list[Event]) -> None:
        try:
            if self._store is None:
                self._store = self._open_store()
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"the event store cannot be opened: {type(error).__name__}: {error}") from error
        try:
            self._store.append(events)
        except StoreError:
            raise
        except Exception as error:  # of an event that cannot be converted: it must not hold up the others
            raise RefusedRecord(f"{type(error).__name__}: {error}") from error
        self.written += len(events)
        self.last_error = None

    def _write_singly(self) -> bool:
        """Write the batch one by one, without those that are refused; False if the store fails meanwhile."""
        while self.batch:
            try:
                self._write(self.batch[:1])
            except RefusedRecord as error:
                self._drop(self.batch[0], error)
            except StoreError as error:
                self._note_failure(error)
                return False
            del self.batch[0]
        return True

    def _drop(self, event: Event, error: StoreError) -> None:
        self.dropped += 1
        self.last_error = f"dropped an event: {error}"
        if not self._refusal_logged:
            self._refusal_logged = True
            _LOG.warning("dropped an event of type %s (further ones are only counted): %s", type(event).__name__, error)

    def _note_failure(self, error: StoreError) -> None:
        self.failures += 1
        if self.last_error is None:
            _LOG.warning("events wait in memory (at most %d, then they are dropped): %s", CAPACITY, error)
        self.last_error = str(error)

    def _prune(self) -> None:
        assert self._pruning is not None
        assert self._store is not None
        try:
            self._pruning.run(self._store)
        except StoreError as error:
            self._note_failure(error)


_WORKERS: weakref.WeakSet[_Worker] = weakref.WeakSet()
_OPEN: set[_Worker] = set()  # with a thread, or with events that wait for one


def _close_with_process(worker: _Worker) -> None:
    """Have a process of `multiprocessing` close the writer at its end, where no `atexit` runs."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(worker, worker.close, args=(_EXIT_S,), exitpriority=0)


def _close_at_exit() -> None:
    deadline_s = time.monotonic() + _EXIT_S
    for worker in list(_OPEN):
        worker.close(max(0.1, deadline_s - time.monotonic()))


def _after_fork_in_child() -> None:
    _OPEN.clear()
    for worker in list(_WORKERS):
        worker.reset()


atexit.register(_close_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
