"""Replicas that share their state in a real Redis server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from router_ml.hosts.gate import CircuitOpen, Gate, Shed
from router_ml.hosts.options import BreakerOptions
from router_ml.hosts.shared_gate import shared_pair
from router_ml.shared_state.redis import RedisState
from tests.servers import RedisServer

BACKEND = "m@http://host"


def until(holds: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.fixture
def replica_of(redis_server: RedisServer) -> Iterator[Callable[..., RedisState]]:
    opened: list[RedisState] = []

    def open_replica(
        lease_s: float = 2.0, settle_s: float = 0.0, patience_s: float = 2.0, drain_s: float = 9.0
    ) -> RedisState:
        state = RedisState(redis_server.url, lease_s=lease_s, settle_s=settle_s, patience_s=patience_s, drain_s=drain_s)
        state.start()
        opened.append(state)
        assert until(lambda: not state.problem)
        return state

    yield open_replica
    for state in opened:
        state.close()


async def test_places_are_bounded_over_all_replicas(replica_of: Callable[..., RedisState]) -> None:
    replicas = [replica_of() for _ in range(3)]
    assert await asyncio.to_thread(until, lambda: all(replica.replicas == 3 for replica in replicas))
    gates = [shared_pair(BACKEND, 3, 100, BreakerOptions(), replica)[0] for replica in replicas]
    running = most = 0

    async def call(gate: Gate) -> None:
        nonlocal running, most
        await gate.enter(20.0, 0.01)
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
    assert (await dead.enter(BACKEND, 1)).granted
    dead._places.clear()  # its thread renews nothing from now on, as after kill -9
    assert not (await living.enter(BACKEND, 1)).granted
    began = time.monotonic()
    while not (await living.enter(BACKEND, 1)).granted:
        assert time.monotonic() - began < 3.0
        await asyncio.sleep(0.05)


async def test_a_call_longer_than_its_lease_keeps_its_place(replica_of: Callable[..., RedisState]) -> None:
    first, second = replica_of(lease_s=1.5), replica_of(lease_s=1.5)
    await first.enter(BACKEND, 1)
    await asyncio.sleep(2.5)
    assert not (await second.enter(BACKEND, 1)).granted


async def test_one_replica_probes_a_half_open_circuit(replica_of: Callable[..., RedisState]) -> None:
    options = BreakerOptions(consecutive_failures=1, open_s=0.3)
    pairs = [shared_pair(BACKEND, 4, 10, options, replica_of()) for _ in range(3)]
    gate, breaker = pairs[0]
    await gate.enter(1.0, 0.1)
    permit = breaker.acquire()
    assert permit is not None
    permit.failed()
    gate.leave()
    await asyncio.sleep(0.1)
    with pytest.raises(CircuitOpen):
        await pairs[1][0].enter(1.0, 0.1)
    assert pairs[1][1].state == "open"
    await asyncio.sleep(0.4)
    probes = []
    for gate, breaker in pairs:
        try:
            await gate.enter(1.0, 0.1)
        except CircuitOpen:
            continue
        probes.append((gate, breaker.acquire()))
    assert len(probes) == 1
    gate, probe = probes[0]
    assert probe is not None
    assert probe.probe
    probe.succeeded()
    gate.leave()
    await asyncio.sleep(0.1)
    for gate, breaker in pairs:
        await gate.enter(1.0, 0.1)
        assert breaker.state == "closed"


async def test_rates_of_keys_hold_over_all_replicas(replica_of: Callable[..., RedisState]) -> None:
    first, second = replica_of(), replica_of()
    waits = [await (first, second)[number % 2].wait_s("ann", 10) for number in range(11)]
    assert waits[:10] == [0.0] * 10
    assert 4.0 < waits[10] <= 6.0
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
    await asyncio.sleep(0.1)
    assert await second.model_of("s1") == "qwen3:8b"
    assert await asyncio.to_thread(until, lambda: len(listener.heard) > 0)
    assert listener.heard == [(BACKEND, (1.5, None, 100, 0.1, 50, 0.9, True))]


async def test_a_frozen_server_adds_at_most_five_milliseconds_once(
    redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    state = replica_of(patience_s=0.005)
    while not (warm := await state.enter(BACKEND, 4)).granted:  # an answer may be late on a busy machine
        await asyncio.sleep(0.05)
    redis_server.freeze()
    try:
        began = time.perf_counter()
        assert not (await state.enter(BACKEND, 4)).granted
        assert time.perf_counter() - began < 0.05  # 5 ms, and what a busy machine adds
        began = time.perf_counter()
        for _ in range(100):
            assert not (await state.enter(BACKEND, 4)).granted
        assert time.perf_counter() - began < 0.1
        assert "no answer in time" in state.problem
        state.leave(BACKEND, warm.place, 4)
        again = await state.enter(BACKEND, 4)  # on the place that it holds
        assert (again.granted, again.place, again.held) == (True, warm.place, None)
    finally:
        redis_server.thaw()
    assert await asyncio.to_thread(until, lambda: not state.problem)
    assert (await state.enter(BACKEND, 400)).held is not None


async def test_without_the_server_replicas_go_on_with_their_places_and_then_with_equal_shares(
    redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    states = [replica_of(patience_s=0.005, drain_s=1.0), replica_of(patience_s=0.005, drain_s=1.0)]
    assert await asyncio.to_thread(until, lambda: [s.replicas for s in states] == [2, 2])
    busy, idle = (shared_pair(BACKEND, 4, 10, BreakerOptions(), state)[0] for state in states)
    for _ in range(3):
        await busy.enter(2.0, 0.01)
    redis_server.kill()
    with pytest.raises(Shed, match="taken"):
        await busy.enter(0.3, 0.01)
    with pytest.raises(Shed, match="taken"):
        await idle.enter(0.3, 0.01)  # it holds none
    assert states[0].problem
    for _ in range(3):
        busy.leave()
    for _ in range(3):
        await busy.enter(2.0, 0.01)  # nobody else can have got these
    for _ in range(3):
        busy.leave()
    await asyncio.sleep(3.5)  # 2 s of lease, and 1 s until the calls of then have ended
    for gate in (busy, idle):
        for _ in range(2):
            await gate.enter(2.0, 0.01)
        with pytest.raises(Shed, match="taken"):
            await gate.enter(0.3, 0.01)
    redis_server.start()
    assert await asyncio.to_thread(until, lambda: not any(state.problem for state in states))
    with pytest.raises(Shed, match="taken"):
        await idle.enter(1.5, 0.01)


async def test_a_new_server_gives_no_place_until_all_had_time_to_tell_theirs(
    redis_server: RedisServer, replica_of: Callable[..., RedisState]
) -> None:
    states = [replica_of(settle_s=2.0), replica_of(settle_s=2.0)]
    await asyncio.sleep(2.2)
    busy, idle = (shared_pair(BACKEND, 4, 10, BreakerOptions(), state)[0] for state in states)
    for _ in range(2):
        await busy.enter(2.0, 0.01)
    redis_server.kill()
    redis_server.start()
    began_s = time.monotonic()
    await idle.enter(10.0, 0.01)
    assert time.monotonic() - began_s > 1.5
    await idle.enter(2.0, 0.01)
    with pytest.raises(Shed, match="taken"):
        await idle.enter(0.3, 0.01)
