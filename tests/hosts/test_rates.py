"""Live speeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.hosts.average import Average
from router_ml.hosts.rates import LiveRates, was_cold


def _rates(now: list[float] | None = None) -> LiveRates:
    times = now or [0.0]
    return LiveRates(lambda: times[0], window_s=600.0)


def test_speeds_of_the_recorded_answer() -> None:
    # recordings/chat_tools.json: load 263 ms, 194 prompt tokens in 23.645 ms, 6 tokens in 1.973 ms
    rates = _rates()
    rates.succeeded(0.293464, 0.263453778, 194, 0.023645, 6, 0.001973)
    assert rates.prompt_tokens_per_s == pytest.approx(8204.7, rel=1e-3)
    assert rates.decode_tokens_per_s == pytest.approx(3041.1, rel=1e-3)
    assert rates.load_s == pytest.approx(0.263453778)
    assert rates.service_s == pytest.approx(0.293464 - 0.263454, abs=1e-6)


def test_a_warm_answer_teaches_no_load_time() -> None:
    rates = _rates()
    rates.succeeded(1.0, 0.001, 100, 0.1, 50, 0.9)
    assert rates.load_s is None
    assert was_cold(0.001) is False
    assert was_cold(None) is None


def test_a_busy_host_takes_its_time_with_a_model_that_is_in_memory() -> None:
    assert was_cold(0.3) is True
    assert was_cold(0.3, resident=True) is False
    assert was_cold(3.0, resident=True) is True  # it had left in between


def test_the_first_answers_are_averaged_evenly() -> None:
    average = Average(weight=0.1)
    for value in (1.0, 4.0):
        average.add(value)
    assert average.value == pytest.approx(2.0)  # geometric mean


def test_a_slower_machine_is_noticed() -> None:
    average = Average(weight=0.2)
    for value in [100.0] * 20 + [50.0] * 20:
        average.add(value)
    assert average.value == pytest.approx(50.0, rel=0.02)


def test_a_cached_prompt_hardly_moves_the_prompt_rate() -> None:
    rates = _rates()
    for _ in range(20):
        rates.succeeded(1.0, 0.0, 1000, 1.0, 50, 0.5)
    rates.succeeded(1.0, 0.0, 1000, 0.001, 50, 0.5)  # cached: a thousand times as quick
    assert rates.prompt_tokens_per_s == pytest.approx(1000.0 * 1000**0.05)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_nonsense_is_ignored(values: list[float]) -> None:
    average = Average()
    for value in values:
        average.add(value)
    good = [v for v in values if 0 < v < float("inf")]
    assert (average.value is None) == (not good)
    if good:
        assert min(good) * 0.999 <= average.value <= max(good) * 1.001


def test_recent_success_forgets() -> None:
    now = [0.0]
    rates = _rates(now)
    rates.failed()
    now[0] = 300.0
    rates.succeeded(1.0)
    assert rates.recent() == (0.5, 2)
    now[0] = 700.0
    assert rates.recent() == (1.0, 1)
    now[0] = 5000.0
    assert rates.recent() == (None, 0)
