"""The steps that Redis takes as one, against a model in Python."""

from __future__ import annotations

import fakeredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router_ml.shared_state import scripts

KEYS = ("{m}:calls", "{m}:circuit", "{m}:probe")
LEASES = st.sampled_from([f"{replica}-{number}" for replica in "abc" for number in range(4)])
LIMIT = 3
LEASE_MS = 600_000


class Places(RuleBasedStateMachine):
    """Three replicas that ask for three places, and may find the circuit open."""

    def __init__(self) -> None:
        super().__init__()
        self.redis = fakeredis.FakeRedis()
        self.held: set[str] = set()
        self.open = False
        self.prober = ""

    def _eval(self, script: str, keys: tuple[str, ...], *values: object) -> list[object]:
        return self.redis.eval(script, len(keys), *keys, *values)  # type: ignore[no-any-return]

    @rule(lease=LEASES, at_once=st.booleans())
    def enter(self, lease: str, at_once: bool) -> None:
        if lease in self.held:
            return  # every call has a lease of its own
        granted, running, circuit, *_ = self._eval(scripts.ENTER, KEYS, lease, LIMIT, LEASE_MS, int(at_once), lease[0])
        expected = "closed"
        if self.open:  # for ten minutes: only a probe before its time may pass
            expected = "open" if not at_once else "probing" if self.prober else "probe"
        assert circuit == expected.encode()
        may = expected in ("closed", "probe") and len(self.held) < LIMIT
        assert granted == may
        if may:
            self.held.add(lease)
            self.prober = lease[0] if expected == "probe" else self.prober
        assert running == len(self.held)

    @rule(lease=LEASES)
    def leave(self, lease: str) -> None:
        self.redis.zrem(KEYS[0], lease)
        self.held.discard(lease)

    @rule(replica=st.sampled_from("abc"))
    def renew(self, replica: str) -> None:
        own = sorted(lease for lease in self.held if lease[0] == replica)
        if own:
            self._eval(scripts.RENEW, (KEYS[0], KEYS[2]), LEASE_MS, replica, *own)

    @rule(replica=st.sampled_from("abc"))
    def opened(self, replica: str) -> None:
        self._eval(scripts.OPEN, KEYS[1:], LEASE_MS, replica)
        self.open = True
        self.prober = "" if self.prober == replica else self.prober

    @rule(replica=st.sampled_from("abc"), closed=st.booleans())
    def settled(self, replica: str, closed: bool) -> None:
        self._eval(scripts.RELEASE, KEYS[1:], replica, int(closed))
        self.open = self.open and not closed
        self.prober = "" if self.prober == replica else self.prober

    @invariant()
    def no_more_than_the_limit_run(self) -> None:
        assert self.redis.zcard(KEYS[0]) == len(self.held) <= LIMIT


Places.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPlaces = Places.TestCase


def test_a_bucket_is_emptied_once_whoever_asks() -> None:
    redis = fakeredis.FakeRedis()
    waits = [redis.eval(scripts.TAKE, 1, "bucket", 6) for _ in range(7)]
    assert waits[:6] == [0] * 6
    assert 9_000 < waits[6] <= 10_000


def test_replicas_are_counted_and_a_new_server_says_so() -> None:
    redis = fakeredis.FakeRedis()
    assert redis.eval(scripts.HELLO, 2, "replicas", "since", "a", 5000) == [1, 0]
    replicas, age_ms = redis.eval(scripts.HELLO, 2, "replicas", "since", "b", 5000)
    assert replicas == 2
    assert 0 <= age_ms < 1000
