"""Never more calls at once than the limit, whatever dies: replicas against a server in Python and its real scripts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import fakeredis
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router_ml.shared_state import scripts
from router_ml.shared_state.places import Places

LIMIT = 3
LEASE_S, DRAIN_S = 5.0, 20.0
SERVER_ARGUMENTS = (2500, 5000, 5000)
SERVER, PLACES, CIRCUIT, PROBE, WANTED, REPLICAS = "server", "places", "circuit", "probe", "wanted", "replicas"
STEP_S = 0.25
BACKEND = "m"


class Clock:
    """A time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Replica:
    """What `RedisState` does, without connections and threads."""

    name: str
    clock: Clock
    calls: dict[str, float] = field(default_factory=dict)  # when each began
    due_s: float = 0.0

    def __post_init__(self) -> None:
        self.places = Places(LEASE_S, DRAIN_S, self.clock)

    def begin(self, server: fakeredis.FakeRedis | None, late: bool = False) -> bool:
        place, held = self.places.reserve(BACKEND)
        if server is not None:
            keys = (SERVER, PLACES, CIRCUIT, PROBE, WANTED)
            values = (*SERVER_ARGUMENTS, place, int(held), LIMIT, 0, self.name)
            begun, still_held, _, wanted, *_ = server.eval(scripts.ENTER, 5, *keys, *values)
        if server is None or late:
            begun = self.places.begin_alone(BACKEND, place, LIMIT)
            if not begun and self.places.abandon(BACKEND, place) and server is not None:
                server.zrem(PLACES, place)
        else:
            if begun:
                self.places.granted(BACKEND, place, self.clock())
            else:
                self.places.refused(BACKEND, place, bool(still_held))
            if wanted:
                for _, gone in self.places.wanted(BACKEND):
                    server.zrem(PLACES, gone)
        if begun:
            self.calls[place] = self.clock()
        return bool(begun)

    def end(self, place: str, server: fakeredis.FakeRedis | None) -> None:
        del self.calls[place]
        if self.places.end(BACKEND, place, LIMIT) and server is not None:
            server.zrem(PLACES, place)

    def meet(self, server: fakeredis.FakeRedis | None) -> None:
        if server is None:
            self.places.missed()
            self.due_s = self.clock() + STEP_S
            return
        now_s = self.clock()
        replicas, settled = server.eval(scripts.HELLO, 2, SERVER, REPLICAS, *SERVER_ARGUMENTS[:2], self.name, 5000)
        if settled or self.places.replicas:
            self.places.replicas = replicas if settled else max(replicas, self.places.replicas)
        self.places.shared = bool(settled)
        gone = self.places.met(now_s)
        for backend, (running, idle) in self.places.held().items():
            values = (*SERVER_ARGUMENTS, self.name, len(running), *running, *idle)
            wanted, *lost = server.eval(scripts.RENEW, 4, SERVER, PLACES, PROBE, WANTED, *values)
            names = [name.decode() for name in lost]
            self.places.renewed(backend, {*running, *idle} - set(names), names, now_s)
            if wanted:
                gone += self.places.wanted(backend)
        for _, place in gone:
            server.zrem(PLACES, place)
        for backend, place, limit in self.places.lacking():
            if server.eval(scripts.KEEP, 2, SERVER, PLACES, *SERVER_ARGUMENTS, place, limit):
                self.places.kept(backend, place, now_s)
        self.due_s = now_s + 1.0


class Replicas(RuleBasedStateMachine):
    """Three replicas that meet their server each second, or look for it four times a second while it is away."""

    @initialize()
    def start(self) -> None:
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(time, "time", self.clock)  # the server's
        self.redis = fakeredis.FakeRedis()
        self.up = True
        self.number = 0
        self.replicas = [self.new() for _ in range(3)]
        self.wait(24)

    def teardown(self) -> None:
        self.patch.undo()

    def new(self) -> Replica:
        self.number += 1
        return Replica(f"r{self.number}", self.clock)

    @property
    def server(self) -> fakeredis.FakeRedis | None:
        return self.redis if self.up else None

    @rule(number=st.integers(0, 2))
    def begin(self, number: int) -> None:
        self.replicas[number].begin(self.server)

    @rule(number=st.integers(0, 2))
    def crowd(self, number: int) -> None:
        while len(self.replicas[number].calls) < LIMIT and self.replicas[number].begin(self.server):
            pass

    @rule(number=st.integers(0, 2))
    def answer_is_late(self, number: int) -> None:
        self.replicas[number].begin(self.server, late=True)

    @rule(number=st.integers(0, 2), which=st.integers(0, 9))
    def end(self, number: int, which: int) -> None:
        calls = sorted(self.replicas[number].calls)
        if calls:
            self.replicas[number].end(calls[which % len(calls)], self.server)

    @rule(steps=st.sampled_from([1, 2, 5, 9, 19, 21, 30, 120]))
    def wait(self, steps: int) -> None:
        for _ in range(steps):
            self.clock.now_s += STEP_S
            for replica in self.replicas:
                for place, began_s in list(replica.calls.items()):
                    if self.clock.now_s > began_s + DRAIN_S - 2 * STEP_S:  # no request lasts longer
                        replica.end(place, self.server)
                if self.clock.now_s >= replica.due_s:
                    replica.meet(self.server)
            self.no_more_than_the_limit_run()

    @rule(number=st.integers(0, 2), steps=st.sampled_from([9, 16, 21, 30]))
    def replica_is_slow(self, number: int, steps: int) -> None:
        """Its thread does nothing for a while, and its requests get no answer in time."""
        slow = self.replicas[number]
        while slow.calls:
            self.end(number, 0)
        slow.due_s = self.clock() + (steps + 1) * STEP_S
        self.wait(steps)
        slow.begin(None)
        slow.due_s = 0.0

    @rule()
    def server_dies(self) -> None:
        self.redis.flushall()
        self.up = False

    @rule()
    def server_is_frozen(self) -> None:
        self.up = False

    @rule()
    def server_is_back(self) -> None:
        self.up = True
        for replica in self.replicas:
            replica.due_s = 0.0

    @rule(steps=st.sampled_from([5, 11, 21, 30]), empty=st.booleans(), number=st.integers(0, 2))
    def server_is_away_for_a_while(self, steps: int, empty: bool, number: int) -> None:
        if empty:
            self.redis.flushall()
        self.up = False
        self.wait(steps)
        self.server_is_back()
        self.crowd(number)

    @rule(number=st.integers(0, 2))
    def replica_dies(self, number: int) -> None:
        if self.up:  # one that starts while the server is away has never met it: see below
            self.replicas[number] = self.new()
            self.replicas[number].meet(self.server)

    @invariant()
    def no_more_than_the_limit_run(self) -> None:
        assert sum(len(replica.calls) for replica in getattr(self, "replicas", ())) <= LIMIT


Replicas.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestReplicas = Replicas.TestCase


def away(replica: Replica, clock: Clock, seconds: float) -> None:
    """Let a time pass in which the replica looks for the server in vain."""
    clock.now_s += seconds
    for _ in range(3):
        replica.meet(None)


def test_without_the_server_for_long_every_replica_serves() -> None:
    clock = Clock()
    first, second = Replica("a", clock), Replica("b", clock)
    for replica in (first, second):
        replica.places.replicas = 2
        replica.places.met(clock())
    away(first, clock, LEASE_S + DRAIN_S + 1)
    away(second, clock, 0.0)
    assert first.begin(None)
    assert second.begin(None)
    assert not first.begin(None)  # half of three, rounded down


def test_a_replica_goes_on_with_what_it_holds_and_no_more() -> None:
    clock = Clock()
    replica = Replica("a", clock)
    replica.places.replicas = 3
    replica.places.shared = True
    for _ in range(2):
        place, _ = replica.places.reserve(BACKEND)
        replica.places.granted(BACKEND, place, clock())
        replica.calls[place] = clock()
    replica.places.shared = False
    assert not replica.begin(None)
    for place in list(replica.calls):
        replica.end(place, None)
    assert replica.begin(None)
    assert replica.begin(None)
    for place in list(replica.calls):
        replica.end(place, None)
    clock.now_s += LEASE_S
    assert not replica.begin(None)  # the places may be others' by now, if it is this replica that is slow
    away(replica, clock, 1.0)
    assert replica.begin(None)
    assert not replica.begin(None)  # its equal share from here on


def test_a_replica_that_never_met_the_server_takes_one_place_after_a_lease() -> None:
    clock = Clock()
    replica = Replica("a", clock)
    assert not replica.begin(None)
    away(replica, clock, LEASE_S + 1)
    assert replica.begin(None)
    assert not replica.begin(None)


@pytest.fixture
def two() -> Iterator[tuple[Clock, fakeredis.FakeRedis, Replica, Replica]]:
    """Two replicas that met a server."""
    clock, redis = Clock(), fakeredis.FakeRedis()
    patch = pytest.MonkeyPatch()
    patch.setattr(time, "time", clock)
    first, second = Replica("a", clock), Replica("b", clock)
    for _ in range(6):
        first.meet(redis)
        second.meet(redis)
        clock.now_s += 1.0
    yield clock, redis, first, second
    patch.undo()


def test_a_replica_keeps_its_share_until_others_want_it(
    two: tuple[Clock, fakeredis.FakeRedis, Replica, Replica],
) -> None:
    _, redis, first, second = two
    for _ in range(3):
        assert first.begin(redis)
    for place in list(first.calls):
        first.end(place, redis)
    assert redis.zcard(PLACES) == 1  # of three, for two replicas
    for _ in range(2):
        assert second.begin(redis)
    assert not second.begin(redis)
    first.meet(redis)
    assert second.begin(redis)


def test_after_hours_without_a_call_a_replica_serves_at_once_when_the_server_goes_away(
    two: tuple[Clock, fakeredis.FakeRedis, Replica, Replica],
) -> None:
    clock, redis, first, second = two
    for replica in (first, second):
        assert replica.begin(redis)
        replica.end(next(iter(replica.calls)), redis)
    for _ in range(3 * 60):
        clock.now_s += 1.0
        first.meet(redis)
        second.meet(redis)
    for replica in (first, second):
        assert replica.begin(None)
        assert not replica.begin(None)  # three places for two replicas: one each


def test_a_replica_that_gave_its_last_place_back_gets_one_once_nobody_waits(
    two: tuple[Clock, fakeredis.FakeRedis, Replica, Replica],
) -> None:
    clock, redis, first, second = two
    assert first.begin(redis)
    first.end(next(iter(first.calls)), redis)
    while second.begin(redis):
        pass
    first.meet(redis)  # the other one was refused
    assert second.begin(redis)
    assert redis.zcard(PLACES) == LIMIT
    first.meet(redis)
    assert not first.places.held()
    for place in list(second.calls):
        second.end(place, redis)
    for _ in range(9):
        clock.now_s += 1.0
        first.meet(redis)
        second.meet(redis)
    assert first.places.held()
    assert first.begin(None)


def test_where_others_wait_nothing_is_kept(two: tuple[Clock, fakeredis.FakeRedis, Replica, Replica]) -> None:
    clock, redis, first, second = two
    for _ in range(3):
        assert first.begin(redis)
    assert not second.begin(redis)
    first.meet(redis)
    for place in list(first.calls):
        assert first.places.end(BACKEND, place, LIMIT, waiting=True)
        redis.zrem(PLACES, place)
        del first.calls[place]
    for _ in range(8):
        clock.now_s += 1.0
        first.meet(redis)
    assert first.begin(redis)
    first.end(next(iter(first.calls)), redis)
    assert redis.zcard(PLACES) == 1


def test_a_place_beyond_the_share_is_kept_for_a_call_that_waits(
    two: tuple[Clock, fakeredis.FakeRedis, Replica, Replica],
) -> None:
    _, redis, first, _ = two
    for _ in range(3):
        assert first.begin(redis)
    assert not first.begin(redis)  # its own refusal is no reason to give back
    place = next(iter(first.calls))
    assert not first.places.end(BACKEND, place, LIMIT, waiting=True)
