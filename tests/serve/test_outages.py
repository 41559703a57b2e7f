"""Outages end when they end."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from router_ml.errors import AttemptsFailed, DeadlineExceeded, NoModelAvailable
from router_ml.events.event import AttemptEvent
from router_ml.hosts.options import BreakerOptions
from tests.ollama_double import DoubleModel, Fault, OllamaDouble
from tests.serve.deciders import FixedDecider, catalogue_of
from tests.timing import Stopwatch

HELLO = [{"role": "user", "content": "Hello"}]
LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"


async def _through_an_outage(gateway, double, down_s: float, deadline_s: float) -> tuple[list[object], float]:
    """Requests before, during and after an outage: what each gave, and when the first answer came after its end."""
    answered_at: list[float] = []

    async def one() -> object:
        answer = await gateway.achat(HELLO, deadline_s=deadline_s)
        answered_at.append(monotonic())
        return answer.model

    with Stopwatch() as watch:
        tasks = [asyncio.create_task(one()) for _ in range(4)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(double.refuse)
        end = monotonic() + down_s
        while monotonic() < end:
            tasks.append(asyncio.create_task(one()))
            await asyncio.sleep(0.05)
        await asyncio.to_thread(double.accept)
        back_at = monotonic()
        tasks.append(asyncio.create_task(one()))
        given = await asyncio.gather(*tasks, return_exceptions=True)
    return given, watch.between(back_at, min((at for at in answered_at if at > back_at), default=float("inf")))


@pytest.mark.parametrize("models", [(LLAMA, QWEN2, QWEN3), (LLAMA,)], ids=len)
async def test_no_request_fails_while_its_host_restarts(gateway_of, double, recording, models) -> None:
    for model in models:
        double.models[model] = DoubleModel(model, "a b c d", decode_tokens_per_s=25.0, parallel=4)
    gateway = gateway_of(decider=FixedDecider(*models), o_last_resort=None)
    await gateway.achat(HELLO)
    given, waited_s = await _through_an_outage(gateway, double, 0.7, 30.0)
    assert [answer for answer in given if not isinstance(answer, str)] == []
    assert waited_s < 1.0
    assert {event.breaker for event in recording.of(AttemptEvent)} == {"closed"}
    assert all(state.available for state in gateway.machine().models.values())


def test_a_host_that_is_down_is_passed_over_for_one_that_is_not(gateway_of, double) -> None:
    with OllamaDouble() as other:
        catalogue = catalogue_of(LLAMA, QWEN2, hosts={LLAMA: [double.url], QWEN2: [other.url]})
        gateway = gateway_of(decider=FixedDecider(LLAMA, QWEN2), catalogue=catalogue, o_last_resort=None)
        gateway.chat(HELLO)
        double.refuse()
        with Stopwatch() as watch:
            assert {gateway.chat(HELLO).model for _ in range(5)} == {QWEN2}
        assert watch.s < 2.0
        assert "takes no connections" in gateway.machine().models[LLAMA].reason


def test_a_host_that_was_never_there_is_told_soon(gateway_of, double) -> None:
    double.refuse()
    gateway = gateway_of()
    advice = "takes no connections; start the model host there, or set OLLAMA_HOST"
    with Stopwatch() as first, pytest.raises(NoModelAvailable, match=advice):
        gateway.chat(HELLO, deadline_s=30.0)
    assert first.s < 4.0
    with Stopwatch() as second, pytest.raises(NoModelAvailable):
        gateway.chat(HELLO, deadline_s=30.0)
    assert first.s + second.s < 5.0


def test_a_host_that_stays_away_costs_its_deadline_once(gateway, double) -> None:
    gateway.chat(HELLO)
    double.refuse()
    for longest_s in (1.3, 0.3, 0.3):
        with Stopwatch() as watch, pytest.raises((NoModelAvailable, DeadlineExceeded)):
            gateway.chat(HELLO, deadline_s=0.8)
        assert watch.s < longest_s


def test_with_every_circuit_open_one_call_is_let_through_at_once(gateway, double) -> None:
    double.faults.set("*", Fault.ERROR_500)
    for _ in range(3):
        with pytest.raises(AttemptsFailed):
            gateway.chat(HELLO)
    assert {row["breaker"] for row in gateway.status()["backends"]} == {"open"}
    double.faults.clear()
    assert gateway.chat(HELLO).model == LLAMA


def test_a_host_that_still_hangs_costs_the_call_let_through_no_more_than_a_probe(gateway_of, double) -> None:
    once = BreakerOptions(consecutive_failures=1, open_s=60.0, open_max_s=60.0)
    gateway = gateway_of(o_breaker=once, o_deadline_s=5.0, o_attempt_min_s=0.6, o_cold_load_s=0.4)
    for model in (LLAMA, QWEN2, QWEN3):
        gateway.preload(model)
    double.faults.set("*", Fault.HANG_BEFORE_HEADERS)
    with pytest.raises((AttemptsFailed, DeadlineExceeded)):
        gateway.chat(HELLO)
    with Stopwatch() as watch, pytest.raises((AttemptsFailed, NoModelAvailable, DeadlineExceeded)):
        gateway.chat(HELLO)
    assert watch.s < 3.0  # of a deadline of 5 s


def test_an_open_circuit_is_not_probed_where_another_model_can_serve(gateway, double) -> None:
    double.faults.set(LLAMA, Fault.ERROR_500, times=3)
    assert {gateway.chat(HELLO).model for _ in range(6)} == {QWEN2}
    assert sum(seen.model == LLAMA for seen in double.generations) == 3


def test_one_answer_lets_the_others_of_its_host_be_tried_again(gateway, double) -> None:
    double.faults.set("*", Fault.RESET_BEFORE_HEADERS)  # the host takes connections and breaks each of them off
    for _ in range(3):
        with pytest.raises(AttemptsFailed):
            gateway.chat(HELLO)
    double.faults.clear()
    gateway.chat(HELLO)
    gateway.chat(HELLO)
    assert gateway.chat(HELLO, model=QWEN3).model == QWEN3


def test_residency_is_looked_at_again_after_a_load(gateway_of) -> None:
    models = [DoubleModel(name, load_s=0.6) for name in (LLAMA, QWEN2)]
    with OllamaDouble(models, capacity_gb=2.5) as double:  # room for one
        catalogue = catalogue_of(LLAMA, QWEN2, hosts={name: [double.url] for name in (LLAMA, QWEN2)})
        gateway = gateway_of(decider=FixedDecider(LLAMA, QWEN2), catalogue=catalogue)
        gateway.chat(HELLO, model=LLAMA)
        gateway.chat(HELLO, model=QWEN2)  # LLAMA had to leave for it
        gateway.chat(HELLO, model=QWEN2)
        assert gateway.machine().models[LLAMA].resident is False


async def test_three_times_more_than_it_can_do_still_leaves_it_what_it_can_do(gateway_of, double) -> None:
    places, takes_s, sent_s = 2, 0.2, 3.0
    double.models[LLAMA] = DoubleModel(LLAMA, "a b c d e f g h i", decode_tokens_per_s=10 / takes_s, parallel=places)
    gateway = gateway_of(decider=FixedDecider(LLAMA, p95_s=0.3), o_last_resort=None, o_parallel=places)
    await gateway.achat(HELLO)
    capacity_per_s = places / takes_s

    async def one(number: int) -> bool:
        await asyncio.sleep(number / (3 * capacity_per_s))
        try:
            await gateway.achat(HELLO, deadline_s=1.0)
        except Exception:
            return False
        return True

    with Stopwatch() as watch:
        given = await asyncio.gather(*(one(number) for number in range(int(3 * capacity_per_s * sent_s))))
    wasted = len(double.generations) - 1 - sum(given)
    held_up = sum(lost_s > 0.1 for *_, lost_s in watch.stalls)  # then what was under way may end too late
    assert wasted <= 0.1 * sum(given) + places * held_up  # hardly a call was begun that could not end in time
    assert sum(given) >= 0.6 * capacity_per_s * watch.s  # 0.9 on a machine of its own
