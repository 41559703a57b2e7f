"""Old events go in small steps, and only by a clock that can be trusted."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router_ml.events.retention import Pruning, Retention

DAY_S, HOUR_S = 86_400.0, 3600.0


class Store:
    """Remembers what it was asked to prune."""

    def __init__(self, old: int, every: int) -> None:
        self.counts = (old, every)
        self.pruned: list[tuple[Mapping[str, float], float]] = []

    def expired(self, before_s: Mapping[str, float]) -> tuple[int, int]:
        return self.counts

    def prune(self, before_s: Mapping[str, float], *, share: float = 1.0) -> int:
        self.pruned.append((before_s, share))
        return 1


class World:
    def __init__(self, old: int = 10, every: int = 1000) -> None:
        self.wall, self.steady = 1e9, 0.0
        self.store = Store(old, every)
        self.pruning = Pruning(Retention(), lambda: self.wall, lambda: self.steady)

    def after(self, hours: float, jump_days: float = 0.0) -> int:
        self.steady += hours * HOUR_S
        self.wall += hours * HOUR_S + jump_days * DAY_S
        return self.pruning.run(self.store)  # type: ignore[arg-type]


def test_a_steady_clock_prunes_hourly_by_a_tenth() -> None:
    world = World()
    assert world.after(0.01) == 0
    assert [world.after(0.5) for _ in range(6)] == [1, 0, 1, 0, 1, 0]
    before, share = world.store.pruned[0]
    assert share == 0.1
    assert before["outcome"] == pytest.approx(1e9 + 0.51 * HOUR_S - 180 * DAY_S)


@pytest.mark.parametrize("days", [400.0, -400.0, 30.0])
def test_after_a_jump_of_the_clock_nothing_goes_for_six_hours(days: float) -> None:
    world = World()
    assert world.after(1) == 1
    assert [world.after(1, days if hour == 0 else 0) for hour in range(8)] == [0, 0, 0, 0, 0, 0, 1, 1]


def test_where_most_of_a_store_would_go_a_process_waits_six_hours() -> None:
    world = World(old=900)
    assert [world.after(1) for _ in range(7)] == [0, 0, 0, 0, 0, 1, 1]


def test_a_night_of_sleep_is_no_jump() -> None:
    world = World()
    assert world.after(1) == 1
    assert world.after(1, jump_days=1.0) == 1
