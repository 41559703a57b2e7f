"""Routers that follow the active bundle: a process that runs takes a promoted bundle without dropping a request."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from router_ml.catalogue import Catalogue
from router_ml.decide.query import ContextLike
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy
from router_ml.errors import RouterError
from router_ml.periodic import Periodic
from router_ml.types import Context, Decision, MachineState

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloader(Generic[T]):
    """Loads something anew when its stamp changes, checked by a thread every `every_s` seconds.

    What cannot be loaded is refused once, with a warning; the last one that could goes on serving. The thread ends
    with the object that `adopt` belongs to."""

    def __init__(
        self, stamp: Callable[[], object], load: Callable[[], T], adopt: Callable[[T], None], every_s: float
    ) -> None:
        self.refused = ""  # why the newest was not taken; "" if it was
        self._stamp, self._load = stamp, load
        self._adopt = weakref.WeakMethod(adopt)
        self._last = stamp()
        self._renew()
        self._thread = Periodic(self._check_quietly, every_s, "router_ml-reload", forked=self._renew)

    def start(self) -> None:
        """Begin to check."""
        self._thread.start()

    def stop(self) -> None:
        """End the checks; one that is under way adopts nothing any more."""
        self._thread.stop()

    def check(self) -> bool:
        """Load and adopt what is new; return whether something was adopted."""
        with self._lock:
            now = self._stamp()
            if now == self._last:
                return False
            self._last = now
            try:
                new = self._load()
            except RouterError as error:
                self.refused = str(error)
                log.warning("the new bundle or catalogue is refused, the last good one stays: %s", error)
                return False
            self.refused = ""
            if (adopt := self._adopt()) is None or self._thread.stopped:
                return False
            adopt(new)
            return True

    def _check_quietly(self) -> None:
        if self._adopt() is None:
            self.stop()
            return
        try:
            self.check()
        except Exception:  # a check that fails must not be the last one
            log.exception("cannot check for a new bundle")

    def _renew(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent process may have held it


class LiveRouter:
    """The router of the active bundle, replaced by the next as soon as that is loaded and has decided a few queries.

    A request is decided by one router from beginning to end. `on_change` gets each new router."""

    def __init__(
        self,
        router: Router,
        load: Callable[[], Router],
        stamp: Callable[[], object],
        every_s: float = 1.0,
        on_change: Callable[[Router], None] | None = None,
    ) -> None:
        self.router = router
        self.on_change = on_change
        self.reloader: Reloader[Router] = Reloader(stamp, load, self._adopt, every_s)
        self.reloader.start()

    @property
    def name(self) -> str:
        """Return the name of the bundle that serves."""
        return self.router.name

    @property
    def degraded(self) -> str:
        """Return why the bundle that serves is not all learned; "" if it is."""
        return self.router.degraded

    @property
    def refused(self) -> str:
        """Return why the newest bundle was not taken; "" if it was."""
        return self.reloader.refused

    @property
    def catalogue(self) -> Catalogue:
        """Return the catalogue of the bundle that serves."""
        return self.router.catalogue

    def decide(
        self,
        query: Any,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Choose a model for one query, as `Router.decide` does."""
        return self.router.decide(query, context, policy, machine, variant)

    def remembers(self, query: str, context: ContextLike = None) -> bool:
        """Return whether a query need not be read, as `Router.remembers` does."""
        return self.router.remembers(query, context)

    def close(self) -> None:
        """Follow the active bundle no longer."""
        self.reloader.stop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)

    def _adopt(self, router: Router) -> None:
        self.router = router
        log.info("the bundle %s serves from now on", router.name)
        if self.on_change is not None:
            self.on_change(router)
