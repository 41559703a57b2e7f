"""One fetch for a crowd, and the old value where a fetch fails."""

from __future__ import annotations

import asyncio

from router_ml.hosts.refresh import Fresh
from tests.timing import Stopwatch


class Source:
    """Gives 1, 2, 3, ..., or fails while `broken`; time stands still unless moved."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.fetches = 0
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    def clock(self) -> float:
        return self.now_s

    async def fetch(self) -> int:
        self.fetches += 1
        await self.gate.wait()
        if self.broken:
            raise ConnectionError("down")
        return self.fetches

    def fresh(self, ttl_s: float = 300.0) -> Fresh[int]:
        return Fresh(self.fetch, ttl_s, self.clock, retry_s=1.0)


async def test_a_hundred_concurrent_misses_make_one_fetch() -> None:
    source = Source()
    fresh = source.fresh()
    values = await asyncio.gather(*(fresh.get(1.0) for _ in range(100)))
    assert values == [1] * 100
    assert source.fetches == 1


async def test_it_is_fetched_again_after_five_minutes_and_not_before() -> None:
    source = Source()
    fresh = source.fresh()
    await fresh.get(1.0)
    source.now_s = 299.0
    assert await fresh.get(1.0) == 1
    source.now_s = 301.0
    assert await fresh.get(1.0) == 2


async def test_a_failing_source_leaves_the_old_value() -> None:
    source = Source()
    fresh = source.fresh()
    await fresh.get(1.0)
    source.now_s, source.broken = 301.0, True
    assert await fresh.get(1.0) == 1
    assert fresh.failing


async def test_a_failing_source_is_left_alone_for_longer_and_longer() -> None:
    source = Source()
    source.broken = True
    fresh = source.fresh()
    for at_s, fetches in ((0.0, 1), (0.9, 1), (1.0, 2), (2.9, 2), (3.0, 3), (6.9, 3), (7.0, 4)):
        source.now_s = at_s
        await fresh.get(1.0)
        assert source.fetches == fetches


async def test_nobody_waits_longer_than_they_want() -> None:
    source = Source()
    fresh = source.fresh()
    await fresh.get(1.0)
    source.now_s = 301.0
    source.gate.clear()
    with Stopwatch() as watch:
        assert await fresh.get(0.02) == 1  # the stale one
    assert watch.s < 0.5
    source.gate.set()
    assert await fresh.get(1.0) == 2  # the fetch went on


async def test_one_waiter_leaving_does_not_end_the_fetch_of_the_others() -> None:
    source = Source()
    source.gate.clear()
    fresh = source.fresh()
    one = asyncio.create_task(fresh.get(5.0))
    other = asyncio.create_task(fresh.get(5.0))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert await other == 1
    assert source.fetches == 1


async def test_a_value_told_to_look_again_soon_does() -> None:
    source = Source()
    fresh = source.fresh()
    await fresh.get(1.0)
    fresh.expire_in(10.0)
    source.now_s = 9.0
    assert await fresh.get(1.0) == 1
    source.now_s = 11.0
    assert await fresh.get(1.0) == 2
