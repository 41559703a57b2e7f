"""Replicas that share their state in a real Redis server."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from router_ml.hosts.breaker import Permit
from router_ml.hosts.gate import CircuitOpen, Gate, Shed
from router_ml.hosts.options import BreakerOptions
from router_ml.hosts.shared_gate import shared_pair
from router_ml.shared_state import redis as redis_state
from router_ml.shared_state.places import Places
from router_ml.shared_state.redis import RedisState
from tests.servers import RedisServer
from tests.timing import PATIENCE_S, TRIES, until

BACKEND = "m@http://host"


class Clock:
    """Stands for the module `time`: its seconds pass as everywhere, and at once where a test says so."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the replicas that are opened later."""
    made = Clock()
    monkeypatch.setattr(redis_state, "time", made)
    monkeypatch.setattr(redis_state, "Places", functools.partial(Places, clock=made.monotonic))
    return made


@pytest.fixture
def replica_of(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RedisState]]:
    """Opens replicas. Nothing ends by itself, and no answer is too late, unless a test asks for less time."""
    monkeypatch.setattr(redis_state, "_THREAD_WAIT_S", PATIENCE_S)
    opened: list[RedisState] = []

    def open_replica(
        lease_s: float = PATIENCE_S, settle_s: float = 0.0, patience_s: float = PATIENCE_S, drain_s: float = 9.0
    ) -> RedisState:
        state = RedisState(redis_server.url, lease_s=lease_s, settle_s=settle_s, patience_s=patience_s, drain_s=drain_s)
        state.start()
        opened.append(state)
        until(lambda: not state.problem)
        return state

    yield open_replica
    for state in opened:
        state.close()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds."""
    end_s = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < end_s, "it never came to hold"
        await asyncio.sleep(0.02)


async def count(states: list[RedisState]) -> None:
    """Wait until each replica knows of all."""
    await asyncio.to_thread(until, lambda: all(state.replicas == len(states) for state in states))


async def test_places_are_bounded_over_all_replicas(replica_of: Callable[..., RedisState]) -> None:
    replicas = [replica_of() for _ in range(3)]
    await count(replicas)
    gates = [shared_pair(BACKEND, 3, 100, BreakerOptions(), replica)[0] for replica in replicas]
    running = most = 0

    async def call(gate: Gate) -> None:
        nonlocal running, most
        await gate.enter(PATIENCE_S, 0.01)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        gate.leave()

    await asyncio.gather(*(call(gates[number % 3]) for number in range(45)))
    assert most == 3
    assert running == 0


async def test_a_dead_replica_gives_its_places_back_within_its_lease(replica_of: Callable[..., RedisState]) -> None:
    dead, living = replica_of(lease_s=1.5), replica_of(lease_s=1.5)
    for number in range(TRIES):  # a machine that stands still makes it longer
        backend = f"m{number}@http://host"
        began_s = time.monotonic()
        assert (await dead.enter(backend, 1)).granted
        dead._places.clear()  # its thread renews nothing from now on, as after kill -9
        while not (await living.enter(backend, 1)).granted:
            await asyncio.sleep(0.05)
        took_s = time.monotonic() - began_s
        assert took_s > 1.45
        if took_s < 3.0:
            break
    assert took_s < 3.0


async def test_a_call_longer_than_its_lease_keeps_its_place(replica_of: Callable[..., RedisState]) -> None:
    first, second = replica_of(lease_s=1.5), replica_of(lease_s=1.5)
    for number in range(TRIES):  # a replica that stands still for a lease loses its place, as it must
        backend = f"m{number}@http://host"
        assert (await first.enter(backend, 1)).granted
        await asyncio.sleep(2.5)
        found = await second.enter(backend, 1)
        if not found.granted:
            break
    assert (found.granted, found.held) == (False, 1)


async def test_one_replica_probes_a_half_open_circuit(replica_of: Callable[..., RedisState]) -> None:
    options = BreakerOptions(consecutive_failures=1, open_s=PATIENCE_S)
    states = [replica_of() for _ in range(3)]
    pairs = [shared_pair(BACKEND, 4, 10, options, state) for state in states]

    async def enters(number: int) -> bool:
        try:
            await pairs[number][0].enter(PATIENCE_S, 0.1)
        except CircuitOpen:
            return False
        return True

    async def finds_it_open() -> bool:
        if not await enters(1):
            return True
        pairs[1][0].leave()
        return False

    gate, breaker = pairs[0]
    assert await enters(0)
    permit = breaker.acquire()
    assert permit is not None
    permit.failed()
    gate.leave()
    await eventually(finds_it_open)
    assert pairs[1][1].state == "open"
    states[0].opened(BACKEND, 0.2)  # from now on: its minute would be long
    probes: list[tuple[Gate, Permit]] = []

    async def probed() -> bool:
        for number, (gate, breaker) in enumerate(pairs):
            if await enters(number):
                permit = breaker.acquire()
                assert permit is not None
                probes.append((gate, permit))
        return bool(probes)

    await eventually(probed)
    assert len(probes) == 1
    assert [await enters(number) for number in range(3)] == [False, False, False]
    gate, probe = probes[0]
    assert probe.probe
    probe.succeeded()
    gate.leave()
    for number, (_, breaker) in enumerate(pairs):
        await eventually(functools.partial(enters, number))
        assert breaker.state == "closed"


async def test_rates_of_keys_hold_over_all_replicas(replica_of: Callable[..., RedisState]) -> None:
    first, second = replica_of(), replica_of()
    began_s = time.time()
    waits = [await (first, second)[number % 2].wait_s("ann", 10) for number in range(11)]
    refilled_s = time.time() - began_s  # meanwhile: a request takes six seconds
    assert waits[:10] == [0.0] * 10
    assert 6.0 - refilled_s - 0.01 < waits[10] <= 6.0
    assert await second.wait_s("bob", 10) == 0.0


async def test_a_session_and_what_answers_measured_reach_the_other_replicas(
    replica_of: Callable[..., RedisState],
) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def hear(self, backend: str, figures: tuple[object, ...]) -> None:
            self.heard.append((backend, figures))

    first, second, listener = replica_of(), replica_of(), Listener()
    second.listen(listener.hear)
    first.remember("s1", "qwen3:8b")
    first.tell(BACKEND, (1.5, None, 100, 0.1, 50, 0.9, True))

    async def known() -> bool:
        return await second.model_of("s1") == "qwen3:8b"

    await eventually(known)
    await asyncio.to_thread(until, lambda: len(listener.heard) > 0)
    assert listener.heard == [(BACKEND, (1.5, None, 100, 0.1, 50, 0.9, True))]


async def test_a_frozen_server_adds_at_most_five_milliseconds_once(
    redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    state = replica_of(patience_s=0.005)

    async def frozen_s() -> tuple[float, float]:
        """The seconds that the first request waits for a frozen server, and that a hundred further ones wait."""
        while not (warm := await state.enter(BACKEND, 4)).granted:  # an answer may be late on a busy machine
            await asyncio.sleep(0.05)
        redis_server.freeze()
        try:
            began_s = time.perf_counter()
            assert not (await state.enter(BACKEND, 4)).granted
            first_s = time.perf_counter() - began_s
            for _ in range(100):
                assert not (await state.enter(BACKEND, 4)).granted
            further_s = time.perf_counter() - began_s - first_s
            assert "no answer in time" in state.problem
            state.leave(BACKEND, warm.place, 4)
            again = await state.enter(BACKEND, 4)  # on the place that it holds
            assert (again.granted, again.place, again.held) == (True, warm.place, None)
        finally:
            redis_server.thaw()
        state.leave(BACKEND, again.place, 4)
        await asyncio.to_thread(until, lambda: not state.problem)
        return first_s, further_s

    for _ in range(TRIES):  # a busy machine makes them longer
        first_s, further_s = await frozen_s()
        if first_s < 0.05 and further_s < 0.1:
            break
    assert first_s < 0.05  # 5 ms, and what a busy machine adds
    assert further_s < 0.1

    async def answered() -> bool:
        return (await state.enter(BACKEND, 400)).held is not None

    await eventually(answered)


async def test_without_the_server_replicas_go_on_with_their_places_and_then_with_equal_shares(
    clock: Clock, redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    states = [replica_of(patience_s=0.005, drain_s=30.0), replica_of(patience_s=0.005, drain_s=30.0)]
    await count(states)
    busy, idle = (shared_pair(BACKEND, 4, 10, BreakerOptions(), state)[0] for state in states)
    for _ in range(3):
        await busy.enter(PATIENCE_S, 0.01)
    redis_server.kill()
    with pytest.raises(Shed, match="taken"):
        await busy.enter(0.3, 0.01)
    with pytest.raises(Shed, match="taken"):
        await idle.enter(0.3, 0.01)  # it holds none
    assert states[0].problem
    for _ in range(3):
        busy.leave()
    for _ in range(3):
        await busy.enter(PATIENCE_S, 0.01)  # nobody else can have got these
    for _ in range(3):
        busy.leave()
    clock.ahead_s = PATIENCE_S + 31.0  # the lease, and until the calls of then have ended
    for gate in (busy, idle):
        for _ in range(2):
            await gate.enter(PATIENCE_S, 0.01)
        with pytest.raises(Shed, match="taken"):
            await gate.enter(0.3, 0.01)
    redis_server.start()
    await asyncio.to_thread(until, lambda: not any(state.problem for state in states))
    with pytest.raises(Shed, match="taken"):
        await idle.enter(1.5, 0.01)


async def test_a_new_server_gives_no_place_until_all_had_time_to_tell_theirs(
    redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    states = [replica_of(settle_s=2.0), replica_of(settle_s=2.0)]
    busy, idle = (shared_pair(BACKEND, 4, 10, BreakerOptions(), state)[0] for state in states)
    for _ in range(2):
        await busy.enter(PATIENCE_S, 0.01)
    redis_server.kill()
    await asyncio.to_thread(until, lambda: all(state.problem for state in states))
    began_s = time.monotonic()
    redis_server.start()
    await asyncio.to_thread(until, lambda: not any(state.problem for state in states))
    await idle.enter(PATIENCE_S, 0.01)
    assert time.monotonic() - began_s > 1.9
    await idle.enter(PATIENCE_S, 0.01)
    with pytest.raises(Shed, match="taken"):
        await idle.enter(0.3, 0.01)
