"""The state of one process: what is used without Redis, and while it is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cachetools import LRUCache

from router_ml.shared_state.state import Entry, Figures

_SESSIONS = 10_000  # sessions whose last model is remembered
_USERS = 10_000


class Buckets:
    """A bucket of requests for each user, refilled evenly. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: LRUCache[str, tuple[float, float]] = LRUCache(_USERS)  # requests left, when that was so

    def take(self, user: str, per_minute: float) -> float:
        """Take one request; 0 if it may be served, else the seconds until the next one may."""
        rate, most = per_minute / 60.0, max(1.0, per_minute)
        with self._lock:
            now = self._clock()
            left, at = self._left.get(user, (most, now))
            left = min(most, left + (now - at) * rate)
            served = left >= 1.0
            self._left[user] = (left - 1.0 if served else left, now)
        return 0.0 if served else (1.0 - left) / rate


class LocalState:
    """A `SharedState` that is shared with nobody."""

    alone = True
    problem = ""
    replicas = 1

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sessions: LRUCache[str, str] = LRUCache(_SESSIONS)
        self._lock = threading.Lock()
        self._buckets = Buckets(clock)

    async def enter(self, backend: str, limit: int, at_once: bool = False) -> Entry:
        """Grant every place: the gate of the process bounds them."""
        return Entry(True)

    def leave(self, backend: str, place: str, limit: int, waiting: bool = False) -> bool:
        """Do nothing."""
        return False

    def opened(self, backend: str, wait_s: float) -> None:
        """Do nothing."""

    def closed(self, backend: str) -> None:
        """Do nothing."""

    def released(self, backend: str) -> None:
        """Do nothing."""

    async def model_of(self, session: str) -> str | None:
        """Return the model that a session spoke with last."""
        return self.known_model(session)

    def known_model(self, session: str) -> str | None:
        """Return the same without waiting."""
        with self._lock:
            return self._sessions.get(session)

    def remember(self, session: str, model: str) -> None:
        """Note the model that a session spoke with."""
        with self._lock:
            self._sessions[session] = model

    async def wait_s(self, user: str, per_minute: int) -> float:
        """Take one request from a user's bucket; 0 if it may be served, else the seconds until the next one may."""
        return self._buckets.take(user, per_minute)

    def take_share(self, user: str, per_minute: int, replicas: int) -> float:
        """Do the same where this replica may serve an equal share of the requests only."""
        return self._buckets.take(user, per_minute / max(1, replicas))

    def tell(self, backend: str, figures: Figures) -> None:
        """Do nothing."""

    def listen(self, heard: Callable[[str, Figures], None]) -> None:
        """Do nothing."""

    def start(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
