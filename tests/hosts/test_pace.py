"""One answer of any model tells how fast its host is; what a model showed itself counts more, while it is fresh."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.hosts.average import Average, Estimate, combined
from router_ml.hosts.backend import Backend
from router_ml.hosts.breaker import Breaker
from router_ml.hosts.fleet import Fleet
from router_ml.hosts.host import Installed
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.pace import Pace, active_share, robust_mean
from router_ml.hosts.rates import LiveRates
from tests.serve.deciders import catalogue_of

SIZES_GB = {"small": 2.0, "large": 5.0, "other": 4.0}


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _fleet(clock: _Clock) -> dict[str, Backend]:
    fleet = Fleet(catalogue_of(*SIZES_GB), "http://127.0.0.1:1", GatewayOptions(), clock)
    (host,) = fleet.hosts
    host.tags._value = {name: Installed(name, None, size_gb) for name, size_gb in SIZES_GB.items()}
    return {name: fleet.backends(name)[0] for name in SIZES_GB}


def _answer(backend: Backend, decode_tokens_per_s: float, prompt_tokens_per_s: float, load_s: float = 0.0) -> None:
    eval_s, prompt_s = 100 / decode_tokens_per_s, 500 / prompt_tokens_per_s
    backend.rates.succeeded(load_s + prompt_s + eval_s, load_s, 500, prompt_s, 100, eval_s)
    backend.answered(cold=load_s > 0)


def test_one_answer_tells_what_to_expect_of_every_other_model() -> None:
    backends = _fleet(_Clock())
    assert backends["large"].state().decode_tokens_per_s is None
    # 50 tokens/s of 2 GB are 100 GB/s: 20 tokens/s of 5 GB; a load of 3 s is 1.5 s a GB.
    _answer(backends["small"], 50.0, 500.0, load_s=3.0)
    state = backends["large"].state()
    assert state.decode_tokens_per_s == pytest.approx(20.0)
    assert state.prompt_tokens_per_s == pytest.approx(200.0)
    assert state.load_s == pytest.approx(7.5)
    assert backends["small"].state().decode_tokens_per_s == pytest.approx(50.0)


def test_a_few_answers_of_its_own_count_more_than_the_hosts_pace() -> None:
    backends = _fleet(_Clock())
    _answer(backends["small"], 50.0, 500.0)
    for _ in range(5):
        _answer(backends["large"], 5.0, 50.0)
    assert backends["large"].state().decode_tokens_per_s == pytest.approx(5.0, rel=0.15)


@given(st.floats(1.5, 100.0), st.integers(1, 40), st.floats(0.0, 40_000.0))
def test_a_model_that_was_slow_drifts_back_to_the_pace_of_its_host(factor: float, answers: int, idle_s: float) -> None:
    clock = _Clock()
    backends = _fleet(clock)
    for _ in range(answers):
        _answer(backends["large"], 20.0 / factor, 200.0)
    expected = []
    for wait_s in (0.0, idle_s, 10_000.0):
        clock.now_s += wait_s
        _answer(backends["small"], 50.0, 500.0)
        expected.append(backends["large"].state().decode_tokens_per_s or 0.0)
    assert 20.0 / factor <= expected[0] * 1.001
    assert expected[0] <= expected[1] * (1 + 1e-9) <= expected[2] * (1 + 1e-8)
    assert expected[2] == pytest.approx(20.0, rel=0.01 * max(1.0, math.log(factor)))


def test_a_model_that_was_quick_is_not_forgotten_while_another_is_slow() -> None:
    clock = _Clock()
    backends = _fleet(clock)
    for _ in range(5):
        _answer(backends["small"], 50.0, 500.0)
    for _ in range(6):
        clock.now_s += 600.0
        _answer(backends["large"], 0.2, 2.0)  # it does not fit in the accelerator, say
    assert (backends["small"].state().decode_tokens_per_s or 0.0) > 10.0


def test_after_a_day_without_an_answer_the_catalogues_priors_stand_again() -> None:
    clock = _Clock()
    backends = _fleet(clock)
    _answer(backends["small"], 50.0, 500.0)
    clock.now_s += 48 * 3600.0
    assert [backend.state().decode_tokens_per_s for backend in backends.values()] == [None] * 3


def test_one_model_that_is_off_its_size_does_not_speak_for_the_host() -> None:
    def said(gb_per_s: float) -> Estimate:
        return Estimate(math.log(gb_per_s), 0.01)

    mean = robust_mean([said(100.0), said(110.0), said(90.0), said(1000.0)])
    assert mean is not None
    assert 90.0 < mean.value < 130.0
    assert robust_mean([]) is None


def test_of_a_mixture_of_experts_the_active_share_is_read() -> None:
    assert active_share("qwen3:30b-a3b") == pytest.approx(3.3 / 30.5)  # model card: 30.5 B, 3.3 B activated
    assert active_share("gpt-oss:20b") == pytest.approx(3.6 / 20.9, abs=0.001)  # arXiv 2508.10925, table 1
    assert active_share("nobody/mystery-100b-a5b") == pytest.approx(0.05)
    assert active_share("qwen3:8b") == active_share("llama3.2:3b-a-b") == 1.0


def test_the_size_of_a_model_without_one_follows_from_its_parameters() -> None:
    pace = Pace(_Clock())
    rates = LiveRates(lambda: 0.0)
    backend = Backend("m", _fleet(_Clock())["small"].host, Breaker(GatewayOptions().breaker), None, rates, 10.0)  # type: ignore[arg-type]
    assert backend._size_gb == pytest.approx(6.0)
    assert pace.decode_tokens_per_s("m", 6.0) is None


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(1e-3, 1e3)), min_size=1, max_size=6))
def test_a_combination_is_surer_than_its_parts_and_lies_among_them(parts: list[tuple[float, float]]) -> None:
    estimates = [Estimate(*part) for part in parts]
    both = combined(estimates)
    assert both is not None
    assert min(e.log for e in estimates) - 1e-9 <= both.log <= max(e.log for e in estimates) + 1e-9
    assert both.variance <= min(e.variance for e in estimates) * (1 + 1e-9)
    assert combined([None]) is None


def test_an_average_is_worth_half_after_each_half_life() -> None:
    clock = _Clock()
    average = Average(clock=clock, half_life_s=100.0)
    for _ in range(4):
        average.add(10.0)
    fresh = average.estimate()
    clock.now_s = 100.0
    aged = average.estimate()
    assert fresh is not None
    assert aged is not None
    assert aged.variance == pytest.approx(2 * fresh.variance)
    clock.now_s = 1000.0
    average.add(100.0)  # 4 / 2**10 of a value against one
    assert average.value == pytest.approx(100.0, rel=0.02)
