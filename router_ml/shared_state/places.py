"""The places that a replica holds, and on which of them it may begin a call.

A place belongs to the replica that got it until the replica gives it back, or its lease ends. It keeps some while no
call runs on them, since they are what it may use while the server is away: that has given them to nobody else. Times
are those of the replica and count from before the server was asked, so a lease ends here no later than there."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cachetools import LRUCache

DRAIN_S = 125.0  # `GatewayOptions.deadline_s`, and what renewals may be late: by then every call has ended
_MISSES = 3  # looks for the server that failed: so many say that it is away, and this replica not merely slow
_MISSED_S = 1.5  # for so long after the last one
_WANTED_S = 2.0  # others are known to wait for places for so long after the server said so
_NEVER_S = float("-inf")
_BACKENDS = 1000  # at which a place is kept although no call runs there


@dataclass(slots=True)
class _Place:
    until_s: float = _NEVER_S  # held until then; never: only asked for, or begun without the server
    reserved: bool = True  # a request asks for it, or a call runs on it
    runs: bool = False  # a call runs on it

    @property
    def idle(self) -> bool:
        return not self.reserved

    @property
    def held(self) -> bool:
        return self.until_s > _NEVER_S


class Places:
    """The places of one replica at every backend. Thread-safe; talks to nobody.

    `replicas`: how many there are, 0 if that is not known. `shared`: whether the server is there and gives places."""

    def __init__(self, lease_s: float, drain_s: float = DRAIN_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.replicas = 0
        self.shared = False
        self._lease_s, self._drain_s, self._clock = lease_s, drain_s, clock
        self._lock = threading.Lock()
        self._places: dict[str, dict[str, _Place]] = {}  # by backend and name
        self._limits: LRUCache[str, int] = LRUCache(_BACKENDS)  # of backends where calls ended here
        self._wanted_s: dict[str, float] = {}  # by backend: when the server last said that others were refused
        self._met_s = clock()  # when the server last answered
        self._met = False
        self._misses = 0  # failed looks for the server since then
        self._missed_s = _NEVER_S  # the last one

    # -- a call -----------------------------------------------------------------------------------------------------

    def reserve(self, backend: str) -> tuple[str, bool]:
        """Return a place for a call, and whether this replica holds it; a new name to ask for if it has none left."""
        with self._lock:
            own, now_s = self._places.setdefault(backend, {}), self._clock()
            idle = [(place.until_s, name) for name, place in own.items() if place.idle]
            if not idle:
                name = uuid.uuid4().hex[:16]
                own[name] = _Place()
                return name, False
            until_s, name = max(idle)
            own[name].reserved = True
            return name, until_s > now_s

    def granted(self, backend: str, name: str, sent_s: float) -> None:
        """Begin a call on a place that the server gave or renewed; it was asked at `sent_s`."""
        with self._lock:
            self._answered(sent_s)
            place = self._place(backend, name)
            place.runs, place.until_s = True, max(place.until_s, sent_s + self._lease_s)

    def refused(self, backend: str, name: str, held: bool) -> None:
        """Begin no call. `held`: this replica keeps the place all the same."""
        with self._lock:
            if held:
                self._rest(backend, name)
            else:
                self._drop(backend, name)

    def begin_alone(self, backend: str, name: str, limit: int) -> bool:
        """Begin a call without an answer of the server, if that cannot pass the limit.

        At first a replica uses the places that it holds, while there is time to renew them before their lease ends.
        Once the server is certainly away it uses no more of them than its equal share: so when the calls of before
        have ended, each replica may use its whole share."""
        with self._lock:
            place, now_s = self._place(backend, name), self._clock()
            away_s, margin_s = now_s - self._met_s, self._lease_s / 4
            if place.until_s > now_s + margin_s:
                place.runs = True
            elif self._certainly_away(now_s) and (
                (place.held and away_s > self._lease_s - margin_s)
                or away_s > self._lease_s + (self._drain_s if self._met else 0.0)
            ):
                running = sum(other.runs for other in self._places[backend].values())
                place.runs = running < (max(1, limit // self.replicas) if self.replicas else 1)
            return place.runs

    def abandon(self, backend: str, name: str) -> bool:
        """Begin no call, whatever the server did; True if the server must be told that the place is free."""
        with self._lock:
            if self._place(backend, name).held:
                self._rest(backend, name)
                return False
            self._drop(backend, name)
            return True

    def end(self, backend: str, name: str, limit: int, waiting: bool = False) -> bool:
        """End a call; True if its place is given back. `waiting`: another call here waits for one.

        While nobody else wants it, a place is kept for that call, or for later within the equal share."""
        with self._lock:
            self._limits[backend] = limit
            own = self._places.get(backend, {})
            if name not in own:
                return False
            place = own[name]
            share = limit // self.replicas if self.replicas else 0
            kept = not self.shared or (
                not self._wanted_lately(backend) and (waiting or sum(other.held for other in own.values()) <= share)
            )
            if place.held and kept:
                self._rest(backend, name)
                return False
            self._drop(backend, name)
            return True

    # -- the server -------------------------------------------------------------------------------------------------

    def met(self, sent_s: float) -> list[tuple[str, str]]:
        """Note that the server answers; return places without a call whose lease has ended: they are given back."""
        with self._lock:
            self._answered(sent_s)
            self._met = True
            now_s = self._clock()
            return self._give_up(self._places, lambda place: place.until_s <= now_s)

    def missed(self) -> None:
        """Note that the server was looked for and did not answer."""
        with self._lock:
            self._misses, self._missed_s = self._misses + 1, self._clock()
            self.shared = False

    def wanted(self, backend: str) -> list[tuple[str, str]]:
        """Note that others were refused at a backend; return its places without a call, which are given back."""
        with self._lock:
            self._wanted_s[backend] = self._clock()
            return self._give_up([backend], lambda place: True)

    def held(self) -> Mapping[str, tuple[list[str], list[str]]]:
        """Return the places of each backend to renew: those on which a call runs, and the others."""
        with self._lock:
            found = {
                backend: (
                    [name for name, place in own.items() if place.runs],
                    [name for name, place in own.items() if not place.runs and place.held],
                )
                for backend, own in self._places.items()
            }
        return {backend: names for backend, names in found.items() if any(names)}

    def renewed(self, backend: str, names: Iterable[str], lost: Iterable[str], sent_s: float) -> None:
        """Note what the server renewed, and which places it had given to others."""
        with self._lock:
            own = self._places.get(backend, {})
            for name in names:
                if name in own:
                    own[name].until_s = max(own[name].until_s, sent_s + self._lease_s)
            for name in lost:
                if name in own and own[name].idle:
                    self._drop(backend, name)
                elif name in own:
                    own[name].until_s = _NEVER_S

    def lacking(self) -> list[tuple[str, str, int]]:
        """Return backends where this replica holds no place and nobody waits, with a name to ask for and their limit.

        Without a place in hand it could begin no call there while the server is away."""
        with self._lock:
            if not self.shared or not self.replicas:
                return []
            return [
                (backend, uuid.uuid4().hex[:16], limit)
                for backend, limit in self._limits.items()
                if limit >= self.replicas and not self._places.get(backend) and not self._wanted_lately(backend)
            ]

    def kept(self, backend: str, name: str, sent_s: float) -> None:
        """Keep a place that the server gave for a later call; it was asked at `sent_s`."""
        with self._lock:
            self._place(backend, name).until_s = sent_s + self._lease_s
            self._rest(backend, name)

    def clear(self) -> list[tuple[str, str]]:
        """Give everything back."""
        with self._lock:
            gone = [(backend, name) for backend, own in self._places.items() for name in own]
            self._places = {}
        return gone

    def _wanted_lately(self, backend: str) -> bool:
        return self._clock() - self._wanted_s.get(backend, _NEVER_S) <= _WANTED_S

    def _certainly_away(self, now_s: float) -> bool:
        return self._misses >= _MISSES and now_s - self._missed_s < _MISSED_S

    def _answered(self, sent_s: float) -> None:
        self._met_s, self._misses = max(self._met_s, sent_s), 0

    def _give_up(self, backends: Iterable[str], which: Callable[[_Place], bool]) -> list[tuple[str, str]]:
        gone = [
            (backend, name)
            for backend in backends
            for name, place in self._places.get(backend, {}).items()
            if place.idle and which(place)
        ]
        for backend, name in gone:
            self._drop(backend, name)
        return gone

    def _place(self, backend: str, name: str) -> _Place:
        """Return a place; a new one where everything was given back meanwhile."""
        return self._places.setdefault(backend, {}).setdefault(name, _Place())

    def _rest(self, backend: str, name: str) -> None:
        place = self._place(backend, name)
        place.reserved = place.runs = False

    def _drop(self, backend: str, name: str) -> None:
        own = self._places.get(backend, {})
        own.pop(name, None)
        if not own:
            self._places.pop(backend, None)
