"""How many requests share one load."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from router_ml.hosts.stay import DEFAULT_KEEP_ALIVE_S, Stays, keep_alive_s


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, 300.0), (60, 60.0), ("10m", 600.0), ("1h30m", 5400.0), ("45", 45.0), (0, 0.0), ("500ms", 0.5),
     (-1, math.inf), ("-1m", math.inf), ("soon", DEFAULT_KEEP_ALIVE_S), ("10 parsecs", DEFAULT_KEEP_ALIVE_S)],
)  # fmt: skip
def test_a_keep_alive_is_read_as_the_server_reads_it(given: float | str | None, seconds: float) -> None:
    assert keep_alive_s(given) == seconds


@pytest.mark.parametrize("gap_s", [100.0, 150.0, 300.0])
def test_the_forecast_is_what_random_requests_give(gap_s: float) -> None:
    """Poisson arrivals: requests before the first gap longer than the keep-alive, counted and forecast."""
    rng, clock = random.Random(3), _Clock()
    stays, forecasts, runs, run = Stays(clock, 300.0), [], [], 1
    for _ in range(20_000):
        gap = rng.expovariate(1 / gap_s)
        run = run + 1 if gap <= 300.0 else (runs.append(run) or 1)  # type: ignore[func-returns-value]
        clock.now_s += gap
        forecasts.append(math.log(stays.requests("m")))
        stays.wanted("m")
    assert statistics.fmean(forecasts) == pytest.approx(math.log(statistics.fmean(runs)), abs=0.1)


def test_a_load_is_paid_by_one_request_where_no_other_is_expected() -> None:
    clock = _Clock()
    stays = Stays(clock)
    assert stays.requests("m") == 1.0
    for _ in range(5):
        stays.wanted("m")
    assert stays.requests("m") == pytest.approx(math.exp(5))
    clock.now_s = 3000.0
    assert stays.requests("m") == pytest.approx(1.0, abs=0.01)
    gone = Stays(clock, 0.0)
    gone.wanted("m")
    assert gone.requests("m") == 1.0


def test_where_models_drive_each_other_out_a_load_serves_until_the_other_is_wanted() -> None:
    clock = _Clock()
    stays = Stays(clock)
    for _ in range(10):
        stays.wanted("a")
        stays.wanted("b")
    assert stays.requests("a") > 100
    stays.served("a", cold=True)
    stays.served("b", cold=True)
    stays.served("a", cold=True)  # it left within its keep-alive
    assert stays.requests("a") == stays.requests("b") == pytest.approx(1.0)
    assert stays.requests("a", in_memory=2) > 100  # both fit
    for _ in range(30):
        stays.wanted("a")
    assert stays.requests("a") == pytest.approx(4.0)
    clock.now_s = 2 * 3600.0
    for _ in range(10):
        stays.wanted("a")
        stays.wanted("b")
    assert stays.requests("a") > 100
