"""The steps that Redis takes as one, against a model in Python."""

from __future__ import annotations

import time

import fakeredis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router_ml.shared_state import scripts

KEYS = ("server", "{m}:places", "{m}:circuit", "{m}:probe", "{m}:wanted")
LEASES = st.sampled_from([f"{replica}-{number}" for replica in "abc" for number in range(4)])
LIMIT = 3
LEASE_MS = 600_000
SETTLED = (LEASE_MS, 0, LEASE_MS)


class Places(RuleBasedStateMachine):
    """Three replicas that ask for three places, and may find the circuit open."""

    def __init__(self) -> None:
        super().__init__()
        self.redis = fakeredis.FakeRedis()
        self.held: set[str] = set()
        self.refused: set[str] = set()
        self.open = False
        self.prober = ""

    def _eval(self, script: str, keys: tuple[str, ...], *values: object) -> list[object]:
        return self.redis.eval(script, len(keys), *keys, *values)  # type: ignore[no-any-return]

    @rule(lease=LEASES, at_once=st.booleans())
    def enter(self, lease: str, at_once: bool) -> None:
        known = lease in self.held
        values = (*SETTLED, lease, int(known), LIMIT, int(at_once), lease[0])
        granted, still_held, running, wanted, circuit, *_ = self._eval(scripts.ENTER, KEYS, *values)
        expected = "closed"
        if self.open:  # for ten minutes: only a probe before its time may pass
            expected = "open" if not at_once else "probing" if self.prober else "probe"
        assert circuit == expected.encode()
        passes = expected in ("closed", "probe")
        may = passes and (known or len(self.held) < LIMIT)
        assert granted == may
        assert still_held == (may or known)
        if may:
            self.held.add(lease)
            self.prober = lease[0] if expected == "probe" else self.prober
        assert running == len(self.held)
        if passes and not may:
            self.refused.add(lease[0])
        assert wanted == bool(self.refused - {lease[0]})

    @rule(lease=LEASES)
    def keep(self, lease: str) -> None:
        given = self._eval(scripts.KEEP, KEYS[:2], *SETTLED, lease, LIMIT)
        assert given == (len(self.held) < LIMIT)
        if given:
            self.held.add(lease)

    @rule(lease=LEASES)
    def leave(self, lease: str) -> None:
        self.redis.zrem(KEYS[1], lease)
        self.held.discard(lease)

    @rule(replica=st.sampled_from("abc"), running=st.integers(0, 4))
    def renew(self, replica: str, running: int) -> None:
        own = sorted(lease for lease in self.held if lease[0] == replica)
        values = (*SETTLED, replica, min(running, len(own)), *own, "gone")
        wanted, *lost = self._eval(scripts.RENEW, (*KEYS[:2], *KEYS[3:]), *values)
        assert wanted == bool(self.refused - {replica})
        assert lost == [b"gone"]

    @rule(replica=st.sampled_from("abc"))
    def opened(self, replica: str) -> None:
        self._eval(scripts.OPEN, KEYS[2:4], LEASE_MS, replica)
        self.open = True
        self.prober = "" if self.prober == replica else self.prober

    @rule(replica=st.sampled_from("abc"), closed=st.booleans())
    def settled(self, replica: str, closed: bool) -> None:
        self._eval(scripts.RELEASE, KEYS[2:4], replica, int(closed))
        self.open = self.open and not closed
        self.prober = "" if self.prober == replica else self.prober

    @invariant()
    def no_more_than_the_limit_run(self) -> None:
        assert self.redis.zcard(KEYS[1]) == len(self.held) <= LIMIT


Places.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPlaces = Places.TestCase


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The server's time, which stands still."""
    moment = [1e9]
    monkeypatch.setattr(time, "time", lambda: moment[0])
    return moment


def test_a_bucket_is_emptied_once_whoever_asks(now: list[float]) -> None:
    redis = fakeredis.FakeRedis()
    waits = [redis.eval(scripts.TAKE, 1, "bucket", 6) for _ in range(7)]
    assert waits[:6] == [0] * 6
    assert waits[6] == 10_000


def test_replicas_are_counted_and_a_new_server_says_so(now: list[float]) -> None:
    redis = fakeredis.FakeRedis()
    assert redis.eval(scripts.HELLO, 2, "server", "replicas", 5000, 100, "a", 5000) == [1, 0]
    now[0] += 0.12
    assert redis.eval(scripts.HELLO, 2, "server", "replicas", 5000, 100, "b", 5000) == [2, 1]


def test_a_new_server_takes_what_replicas_hold_and_gives_nothing(now: list[float]) -> None:
    redis = fakeredis.FakeRedis()
    new = (5000, 5000, 5000)
    assert redis.eval(scripts.ENTER, 5, *KEYS, *new, "mine", 1, 1, 0, "a")[:3] == [1, 1, 1]
    assert redis.eval(scripts.ENTER, 5, *KEYS, *new, "other", 0, 9, 0, "b")[:3] == [0, 0, 1]
    assert redis.eval(scripts.RENEW, 4, *KEYS[:2], *KEYS[3:], *new, "c", 1, "run", "idle") == [0]
    assert redis.zcard(KEYS[1]) == 3
