"""The first model that answers does not keep all later queries, and one that was slow is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.lock_in import (
    LOADS_S_PER_GB,
    SPEEDS_GB_PER_S,
    LabelledDecider,
    SimulatedClock,
    SimulatedHost,
    run,
    simulated_gateway,
)
from router_ml.catalogue import load_catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.hosts.rates import COUNTED_ANSWERS

LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"


@pytest.mark.parametrize("policy", ["balanced", "fast", "accurate"])
@pytest.mark.parametrize("first", ["simple", "complex"])
@pytest.mark.parametrize("load_s_per_gb", LOADS_S_PER_GB)
@pytest.mark.parametrize("gb_per_s", SPEEDS_GB_PER_S)
def test_within_20_requests_the_policy_serves_what_it_serves_on_known_rates(
    gb_per_s: float, load_s_per_gb: float, first: Any, policy: str
) -> None:
    done = run(gb_per_s, load_s_per_gb, first, policy)
    assert done.settled_after <= 18  # both kinds of query, at least


@pytest.mark.parametrize("gb_per_s", [40.0, 300.0])
@pytest.mark.parametrize("pause_s", [5.0, 60.0, 600.0])
@pytest.mark.parametrize("slower", [3.0, 60.0])
def test_a_model_that_was_slow_for_a_while_is_asked_again(slower: float, pause_s: float, gb_per_s: float) -> None:
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, gb_per_s, 0.5)

    with simulated_gateway(LabelledDecider(catalogue), catalogue, host, clock) as gateway:

        def ask(count: int) -> list[str]:
            served = []
            for i in range(count):
                served.append(gateway.chat(f"simple {i}").model)
                clock.now_s += pause_s
            return served

        usual = ask(20)[-1]
        host.slowed[usual] = slower
        ask(10)
        host.slowed.clear()
        began_s = clock.now_s
        while ask(1) != [usual]:
            assert clock.now_s - began_s < 2 * 3600
        assert ask(5) == [usual] * 5  # it is known to be quick again


def test_a_model_that_stays_slow_is_asked_now_and_then_only() -> None:
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, 300.0, 0.5)
    host.slowed[QWEN2] = 20.0
    with simulated_gateway(LabelledDecider(catalogue), catalogue, host, clock) as gateway:
        served = []
        for i in range(600):
            served.append(gateway.chat(f"simple {i}").model)
            clock.now_s += 30.0
    assert 2 <= served.count(QWEN2) <= 20


def test_preloading_follows_what_would_be_chosen_if_all_were_in_memory() -> None:
    """The load of the model that complex queries ask for takes too long for any request to wait for it."""
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, 2000.0, 2.0)
    with simulated_gateway(
        LabelledDecider(catalogue), catalogue, host, clock, Policy("quick", load_wait_s=5.0), preload=True
    ) as gateway:
        served = [gateway.chat(f"complex {i}", model=LLAMA if i == 0 else None).model for i in range(20)]
    assert served[1] == LLAMA
    assert served[-1] == QWEN3


def test_a_host_that_counts_no_tokens_is_known_after_20_answers() -> None:
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, 10.0, 0.0, tokens=False)  # llama takes 8.4 s for a simple query
    with simulated_gateway(LabelledDecider(catalogue), catalogue, host, clock) as gateway:
        answers = [gateway.chat(f"simple {i}", model=LLAMA) for i in range(COUNTED_ANSWERS + 1)]
    sources = [
        (candidate.latency_source, candidate.latency_s.p50)
        for answer in answers
        for candidate in answer.decision.ranked
        if candidate.model == LLAMA
    ]
    assert {source for source, _ in sources[:COUNTED_ANSWERS]} == {"prior"}
    assert sources[-1] == ("measured", pytest.approx(8.8, rel=0.01))  # 40 tokens at 5 a second, the prompt 0.8 s


def test_the_wait_for_a_load_is_not_the_models_latency() -> None:
    catalogue, clock = load_catalogue(), SimulatedClock()
    host = SimulatedHost(clock, catalogue, 300.0, 8.0)
    with simulated_gateway(LabelledDecider(catalogue), catalogue, host, clock) as gateway:
        gateway.chat("simple 0")
        ranked = gateway.chat("simple 1").decision.ranked
    cold = next(c for c in ranked if c.model == QWEN2)
    assert cold.load_s == pytest.approx(8.0 * 1.9, rel=0.01)
    assert cold.latency_s.p95 - cold.load_s < 5.0
    assert cold.admissible
