"""What a caller gets when things break."""

from __future__ import annotations

import asyncio
import itertools
import threading
from time import monotonic

import pytest

from benchmarks import fault_campaign
from router_ml.errors import AttemptsFailed, DeadlineExceeded, NoModelAvailable, Overloaded, StreamInterrupted
from router_ml.events.event import AttemptEvent, OutcomeEvent
from router_ml.hosts.failure import HostError
from router_ml.hosts.host import HostRequest
from router_ml.hosts.ollama import OllamaHost
from router_ml.hosts.reply import Reply
from tests.ollama_double import DoubleModel, Fault
from tests.serve.deciders import FixedDecider
from tests.timing import Stopwatch, until

HELLO = [{"role": "user", "content": "Hello"}]
LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
# LLAMA is given a second, and after it QWEN2, the last one, all that is left of the deadline.
LLAMA_IN_A_SECOND = {
    "decider": FixedDecider(LLAMA, QWEN2), "o_last_resort": None, "o_attempt_min_s": 0.6, "o_cold_load_s": 0.4
}  # fmt: skip


def test_a_short_campaign_of_every_fault() -> None:
    rows, hopeless = fault_campaign.run(200, deadline_s=2.0, concurrency=8, warm_up=12, healthy_deadline_s=30.0)
    for row in rows:
        assert (row.untyped, row.wrong, row.repeated, row.late) == (0, 0, 0, 0), row.fault
        assert row.success == 1.0, (row.fault, [str(g.error) for g in row.given if g.error])
        assert row.elapsed_ms(1.0) < 2100, row.fault
    at_once_ms = max(50.0, min(row.elapsed_ms(0.5) for row in rows))  # on a slow machine an answer takes longer, too
    for row in hopeless:
        assert (row.answered, row.untyped, row.late) == (0, 0, 0), row.fault
        assert row.elapsed_ms(0.5) < at_once_ms, row.fault


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.ERROR_500, "server_error"),
        (Fault.QUEUE_FULL_503, "busy"),
        (Fault.MISSING_404, "missing"),
        (Fault.MALFORMED_JSON, "malformed"),
        (Fault.WRONG_MODEL, "wrong_model"),
        (Fault.EMPTY_ANSWER, "empty"),
        (Fault.RESET_BEFORE_HEADERS, "connection"),
    ],
)
def test_the_next_model_answers_and_every_attempt_is_told(gateway, double, recording, fault, kind) -> None:
    double.faults.set(LLAMA, fault)
    answer = gateway.chat(HELLO)
    assert answer.model == QWEN2
    assert answer.fallback
    assert [(a.model, a.failure.kind if a.failure else None) for a in answer.attempts] == [(LLAMA, kind), (QWEN2, None)]
    assert [event.error for event in recording.of(AttemptEvent)] == [kind, None]
    (outcome,) = recording.of(OutcomeEvent)
    assert outcome.fallback
    assert outcome.attempts == 2


def test_the_last_resort_answers_where_every_ranked_model_fails(gateway_of, double) -> None:
    double.faults.set(LLAMA, Fault.ERROR_500)
    answer = gateway_of(decider=FixedDecider(LLAMA), o_last_resort="qwen3:8b").chat(HELLO)
    assert answer.model == QWEN3


def test_every_model_failing_is_one_error_with_all_attempts(gateway, double, recording) -> None:
    double.faults.set("*", Fault.ERROR_500)
    with pytest.raises(AttemptsFailed) as failed:
        gateway.chat(HELLO)
    assert [attempt.model for attempt in failed.value.attempts] == [LLAMA, QWEN2, QWEN3]
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.ok, outcome.success, outcome.error) == (False, 0.0, "AttemptsFailed")


def test_a_404_takes_the_model_away_at_once(gateway, double) -> None:
    gateway.chat(HELLO)
    double.faults.set(LLAMA, Fault.MISSING_404, times=1)
    gateway.chat(HELLO)
    assert not gateway.machine().models[LLAMA].available
    before = len(double.generations)
    assert gateway.chat(HELLO).model == QWEN2
    assert [seen.model for seen in double.generations[before:]] == [QWEN2]
    assert gateway.refresh().models[LLAMA].available  # the next look finds it again


def test_nothing_installed_is_told_without_a_call(gateway_of, double) -> None:
    double.models.clear()
    with pytest.raises(NoModelAvailable):
        gateway_of().chat(HELLO)
    assert double.generations == []


def test_an_open_circuit_spares_the_model(gateway, double) -> None:
    double.faults.set(LLAMA, Fault.ERROR_500)
    for _ in range(5):
        assert gateway.chat(HELLO).model == QWEN2
    assert sum(seen.model == LLAMA for seen in double.generations) == 3
    assert "circuit breaker open" in gateway.machine().models[LLAMA].reason


def test_one_of_many_callers_probes_a_model_that_recovers(gateway_of, double) -> None:
    passed_s = 0.0
    gateway = gateway_of(clock=lambda: monotonic() + passed_s)
    double.faults.set(LLAMA, Fault.ERROR_500, times=3)
    for _ in range(3):
        gateway.chat(HELLO)
    double.held.add(LLAMA)  # the probe takes until the others have their answers
    passed_s = 61.0
    before = len(double.generations)

    async def many() -> list[str]:
        calls = asyncio.as_completed([gateway.achat(HELLO) for _ in range(12)])
        models = [(await call).model for call in itertools.islice(calls, 11)]
        double.held.clear()
        return [*models, (await next(calls)).model]

    assert asyncio.run(many()) == [QWEN2] * 11 + [LLAMA]
    assert sum(seen.model == LLAMA for seen in double.generations[before:]) == 1
    assert gateway.chat(HELLO).model == LLAMA


def test_a_caller_at_fault_does_not_open_a_circuit(gateway, double) -> None:
    for _ in range(6):
        with pytest.raises(Exception, match="temperature"):
            gateway.chat(HELLO, options={"temperature": "hot"})
    assert gateway.chat(HELLO).model == LLAMA


def test_a_cold_load_that_takes_too_long_is_no_failure(gateway_of, double) -> None:
    gateway = gateway_of(**LLAMA_IN_A_SECOND)
    double.faults.set(LLAMA, Fault.COLD_LOAD)
    answer = gateway.chat(HELLO)
    assert (answer.model, answer.attempts[0].failure.kind) == (QWEN2, "cold_timeout")
    assert answer.attempts[0].breaker == "closed"
    assert gateway.machine().models[LLAMA].recent_calls == 0


def test_the_deadline_holds_for_the_whole_chain(gateway, double) -> None:
    double.faults.set("*", Fault.HANG_BEFORE_HEADERS)
    with Stopwatch() as watch, pytest.raises((DeadlineExceeded, AttemptsFailed)):
        gateway.chat(HELLO, deadline_s=0.6)
    assert watch.s < 0.7


def test_a_deadline_shorter_than_the_model_needs_is_not_its_fault(gateway_of, double) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA, p95_s=1.0), o_last_resort=None)
    gateway.preload(LLAMA)
    double.models[LLAMA] = DoubleModel(LLAMA, decode_tokens_per_s=6.0)  # takes a second
    for _ in range(4):
        with pytest.raises(DeadlineExceeded):
            gateway.chat(HELLO, deadline_s=0.1)
    assert gateway.machine().models[LLAMA].available


def test_more_than_the_queue_holds_are_shed_with_a_time_to_come_back(gateway_of, double) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA, p95_s=2.0), o_last_resort=None, o_parallel=1, o_max_waiting=1)
    double.held.add(LLAMA)

    async def many() -> tuple[list[Overloaded], list[str]]:
        shed, models = [], []
        for call in asyncio.as_completed([gateway.achat(HELLO) for _ in range(6)]):
            try:
                models.append((await call).model)
            except Overloaded as error:
                shed.append(error)
            if len(shed) == 4:
                double.held.clear()
        return shed, models

    shed, models = asyncio.run(many())
    assert models == [LLAMA] * 2
    assert len(shed) == 4
    assert all(0 < error.retry_after_s < 60 for error in shed)
    assert len(double.generations) == 2


def test_tags_may_be_down_while_chat_works(gateway, double) -> None:
    double.faults.set("*", Fault.TAGS_DOWN)
    assert gateway.chat(HELLO).model == LLAMA


def test_cancelling_a_coroutine_ends_the_generation(gateway, double, recording) -> None:
    double.held.add(LLAMA)

    async def leave() -> None:
        call = asyncio.create_task(gateway.achat(HELLO))
        await asyncio.to_thread(until, lambda: double.generations)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.01)

    asyncio.run(leave())
    until(lambda: double.generations[0].cancelled)
    until(lambda: recording.of(OutcomeEvent))
    assert recording.of(OutcomeEvent)[0].error == "cancelled"
    until(lambda: gateway.status()["backends"][0]["running"] == 0)


def test_closing_the_gateway_gives_those_who_wait_a_typed_error(gateway, double) -> None:
    double.held.add(LLAMA)
    errors: list[BaseException] = []

    def call() -> None:
        try:
            gateway.chat(HELLO)
        except Exception as error:
            errors.append(error)

    async def call_async() -> None:
        try:
            await gateway.achat(HELLO)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=call), threading.Thread(target=lambda: asyncio.run(call_async()))]
    for thread in threads:
        thread.start()
    until(lambda: len(double.generations) == 2)
    gateway.close()
    for thread in threads:
        thread.join(60)
    assert [type(error) for error in errors] == [NoModelAvailable, NoModelAvailable]
    with pytest.raises(NoModelAvailable):
        gateway.refresh()


class Echoing(OllamaHost):
    """Refuses every request with a message that quotes it."""

    async def chat(self, request: HostRequest) -> Reply:
        raise HostError("server_error", f"oops while reading: {request.arguments['messages'][-1]['content']}", 500)


def test_no_error_quotes_the_request(gateway_of, double) -> None:
    gateway = gateway_of(host_types={"ollama": Echoing})
    with pytest.raises(AttemptsFailed) as failed:
        gateway.chat("mail the secret plan to Dana")
    told = f"{failed.value} {failed.value.attempts}"
    assert "secret" not in told
    assert "server_error: the server's message quotes the request and is left out" in told


# -- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_passes_every_part_on(gateway) -> None:
    stream = gateway.chat(HELLO, stream=True)
    assert [part.message.content for part in stream] == ["The", " llama", " says", " hello", ".", ""]
    assert stream.answer.content == "The llama says hello."
    assert stream.answer.timings.first_token_s is not None
    assert stream.model == LLAMA


@pytest.mark.parametrize("fault", [Fault.ERROR_500, Fault.HANG_AFTER_HEADERS, Fault.EMPTY_ANSWER, Fault.WRONG_MODEL])
def test_before_the_first_byte_another_model_steps_in(gateway_of, double, fault) -> None:
    double.faults.set(LLAMA, fault)
    stream = gateway_of(**LLAMA_IN_A_SECOND).chat(HELLO, stream=True)
    assert "".join(part.message.content or "" for part in stream) == "Qwen two says hello."
    assert (stream.model, stream.attempts[0].model) == (QWEN2, LLAMA)


@pytest.mark.parametrize(
    "fault",
    [Fault.RESET_MID_STREAM, Fault.HANG_MID_STREAM, Fault.ERROR_LINE, Fault.TRUNCATED_CHUNK, Fault.MALFORMED_JSON],
)
def test_after_the_first_byte_nothing_is_repeated(gateway_of, double, fault) -> None:
    double.faults.set(LLAMA, fault)
    parts = []
    stream = gateway_of(o_idle_s=1.0).chat(HELLO, stream=True)
    with pytest.raises(StreamInterrupted):
        parts.extend(part.message.content for part in stream)
    assert parts == ["The", " llama"]
    assert len(double.generations) == 1


async def test_coroutines_read_streams_too(gateway, double) -> None:
    stream = await gateway.achat(HELLO, stream=True)
    assert "".join([part.message.content or "" async for part in stream]) == "The llama says hello."
    double.faults.set("*", Fault.ERROR_500)
    with pytest.raises(AttemptsFailed):
        await gateway.achat(HELLO, stream=True)


def test_tool_calls_come_through_a_stream_whole(gateway) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    stream = gateway.chat(HELLO, tools=[tool], stream=True)
    list(stream)
    assert [call.function.name for call in stream.answer.message.tool_calls] == ["f"]


def test_closing_a_stream_ends_the_generation(gateway, double) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, "word " * 300, decode_tokens_per_s=10.0)
    with gateway.chat(HELLO, stream=True) as stream:
        next(stream)
    until(lambda: double.generations[0].cancelled)
    assert list(stream) == []
    until(lambda: gateway.status()["backends"][0]["running"] == 0)


def test_a_stream_that_is_thrown_away_ends_too(gateway, double) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, "word " * 300, decode_tokens_per_s=10.0)
    stream = gateway.chat(HELLO, stream=True)
    next(stream)
    del stream
    until(lambda: double.generations[0].cancelled)


def test_a_stream_ends_at_its_deadline(gateway, double) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, "word " * 300, decode_tokens_per_s=10.0)
    parts = []
    with Stopwatch() as watch, pytest.raises((StreamInterrupted, DeadlineExceeded)) as ended:
        parts.extend(gateway.chat(HELLO, stream=True, deadline_s=0.5))
    assert watch.s < 0.6
    assert parts or watch.lost_s > 0.3  # the first one takes 0.1 s
    assert ended.type is (StreamInterrupted if parts else DeadlineExceeded)


def test_the_gateways_loop_survives_many_threads_leaving(gateway, double) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, decode_tokens_per_s=20.0, parallel=8)
    threads = [threading.Thread(target=lambda: next(gateway.chat(HELLO, stream=True))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    until(lambda: gateway.status()["backends"][0]["running"] == 0)
