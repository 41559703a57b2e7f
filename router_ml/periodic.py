"""A thread that calls a method every few seconds, for as long as its object lives, in forked processes too."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

_RUNNING: weakref.WeakSet[Periodic] = weakref.WeakSet()


class Periodic:
    """Calls a bound method, which must not raise, every `every_s` seconds once it is started; 0 or less: never.

    It ends when it is stopped or the method's object is gone. In a forked process, where only the forking thread lives,
    it begins anew; `forked`, a bound method too, is called first."""

    def __init__(
        self, work: Callable[[], object], every_s: float, name: str, forked: Callable[[], object] | None = None
    ) -> None:
        self._work, self._every_s, self._name = weakref.WeakMethod(work), every_s, name
        self._forked = weakref.WeakMethod(forked) if forked is not None else None
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        """Return whether it was stopped."""
        return self._stopped.is_set()

    def start(self) -> None:
        """Begin; the first call comes after `every_s` seconds."""
        _RUNNING.add(self)
        if self._every_s > 0:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """End; a call under way goes on to its end."""
        self._stopped.set()
        _RUNNING.discard(self)

    def after_fork(self) -> None:
        """Begin anew in a forked process."""
        self._stopped = threading.Event()
        if self._forked is not None and (forked := self._forked()) is not None:
            forked()
        self.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            work = self._work()
            if work is None:
                break
            work()
            del work  # it would keep its object alive


def _after_fork() -> None:
    for one in tuple(_RUNNING):
        one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
