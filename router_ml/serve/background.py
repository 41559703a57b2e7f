"""An event loop in a thread of its own, so that plain functions and coroutines share one set of connections."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines in one background thread, which starts with the first. Thread-safe.

    A thread does not survive a fork: in the child another loop is needed (`usable`)."""

    def __init__(self, name: str = "router-ml-gateway") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    @property
    def usable(self) -> bool:
        """Whether this is the process it was made in."""
        return self._process == os.getpid()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine. Cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which is started if necessary."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def close(self, last: Coroutine[Any, Any, None] | None = None, wait_s: float = 5.0) -> None:
        """Cancel what runs, run `last`, and end the thread. A forked child leaves what is its parent's alone."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or not self.usable:
            if last is not None:
                last.close()
            return
        ending = asyncio.run_coroutine_threadsafe(_end(last), loop)
        if thread is threading.current_thread():
            ending.add_done_callback(lambda _: loop.stop())
            return
        concurrent.futures.wait([ending], timeout=wait_s)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(wait_s)
        if not thread.is_alive():
            loop.close()


async def _end(last: Coroutine[Any, Any, None] | None) -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if last is not None:
        await last
    await asyncio.get_running_loop().shutdown_asyncgens()
