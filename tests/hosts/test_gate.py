"""Bounded concurrency, a bounded queue, and early refusals."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.hosts.gate import Gate, Shed


async def test_no_more_than_the_limit_are_inside() -> None:
    gate = Gate(2, 10)
    most = inside = 0

    async def work() -> None:
        nonlocal most, inside
        await gate.enter(60.0, 0.001)
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1
        gate.leave()

    await asyncio.gather(*(work() for _ in range(12)))
    assert most == 2
    assert gate.inside == gate.waiting == 0


async def test_those_who_wait_are_served_in_the_order_they_came() -> None:
    gate = Gate(1, 10)
    await gate.enter(1.0, 0.001)
    order: list[int] = []

    async def work(number: int) -> None:
        await gate.enter(60.0, 0.001)
        order.append(number)
        gate.leave()

    tasks = [asyncio.create_task(work(i)) for i in range(5)]
    await asyncio.sleep(0)
    gate.leave()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_a_full_queue_sheds_at_once_and_says_when_to_come_back() -> None:
    gate = Gate(1, 1)
    await gate.enter(9.0, 2.0)
    waiting = asyncio.create_task(gate.enter(9.0, 2.0))
    await asyncio.sleep(0)
    with pytest.raises(Shed) as shed:
        await gate.enter(9.0, 2.0)
    assert shed.value.retry_after_s == pytest.approx(3.0)  # 2.0 s each: half of one left, and one before us
    waiting.cancel()


async def test_who_could_not_be_served_in_time_is_not_queued() -> None:
    gate = Gate(1, 10)
    await gate.enter(1.0, 10.0)
    with pytest.raises(Shed):
        await gate.enter(patience_s=1.0, service_s=10.0)  # a slot is expected in 5 s
    assert gate.waiting == 0


async def test_patience_ends() -> None:
    gate = Gate(1, 10)
    await gate.enter(1.0, 0.001)
    with pytest.raises(Shed):
        await gate.enter(0.01, 0.001)
    assert gate.waiting == 0


async def test_a_place_given_to_somebody_who_left_goes_to_the_next() -> None:
    gate = Gate(1, 10)
    await gate.enter(1.0, 0.001)
    leaver = asyncio.create_task(gate.enter(60.0, 0.001))
    stayer = asyncio.create_task(gate.enter(60.0, 0.001))
    await asyncio.sleep(0)
    gate.leave()  # the place is the leaver's now ...
    leaver.cancel()  # ... who leaves in the same moment
    await asyncio.wait_for(stayer, 60.0)
    assert gate.inside == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=40))
def test_places_are_neither_lost_nor_invented(steps: list[str]) -> None:
    async def play() -> None:
        gate = Gate(2, 5)
        inside = 0
        waiting: list[asyncio.Task[float]] = []
        for step in steps:
            if step == "enter":
                waiting.append(asyncio.create_task(gate.enter(60.0, 0.001)))
            elif step == "cancel" and waiting:
                waiting[-1].cancel()
            elif step == "leave" and inside:
                gate.leave()
                inside -= 1
            for _ in range(3):
                await asyncio.sleep(0)
            for task in [t for t in waiting if t.done()]:
                waiting.remove(task)
                inside += not task.cancelled() and task.exception() is None
            assert gate.inside == inside <= 2
            assert not waiting or inside == 2  # nobody waits while a place is free
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(play())
