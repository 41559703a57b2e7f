"""A first answer that is probably wrong is replaced by another model's (`policy.cascade`)."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router_ml.decide.selection.cascade import AnswerCheck, Cascade
from router_ml.decide.selection.policy import PRESETS, Policy
from router_ml.events.connect import open_store
from router_ml.events.event import AttemptEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.export import bandit_rows, outcomes
from router_ml.experiments.assignment import Assignment
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import request_of
from router_ml.serve import Gateway
from router_ml.serve.answer_cache.exact import ExactCache
from router_ml.types import Decision, Quantiles
from tests.ollama_double import DoubleModel, Fault, OllamaDouble, Reply
from tests.serve.conftest import PATIENT
from tests.serve.deciders import FixedDecider, Recording, catalogue_of
from tests.serve.test_answers import TOOL
from tests.timing import until

SMALL, MIDDLE, LARGE = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
# logit P(right) = z, z = (mean log-probability + 1) / .5: -1 a token is even, 0 a token is right with .88
CHECK = AnswerCheck(-1.0, 0.5, 0.0, 0.0, 1.0, (0.0, 0.0), (-4.0, 0.0, 4.0), 0.0, 100)
CASCADE = Policy("cascade", cascade=True, latency_budget_s=None)
SECOND_MAY_TAKE = 1000.0  # times its p95
UNSURE = -1.0 + 0.5 * math.log(0.85 / 0.15)  # below it the large model's answer, worth .85, is worth more


class CascadeDecider(FixedDecider):
    """Ranks a small and a large model; the large one is right with .9, and its answer is worth .85."""

    def __init__(self, cascade: Any = None, p95_s: float = 1.0) -> None:
        super().__init__(SMALL, LARGE, p95_s=p95_s, utilities=(0.7, 0.85))
        self.cascade = Cascade({SMALL: CHECK}) if cascade is None else cascade

    def decide(self, *given: Any, **more: Any) -> Decision:
        return dataclasses.replace(super().decide(*given, **more), cascade=self.cascade)


def says(double: OllamaDouble, model: str, text: str, logprob: float, **more: Any) -> None:
    """Let a model of the double say a text, every token with one log-probability."""
    known = double.models[model]
    double.models[model] = dataclasses.replace(known, reply=lambda body: Reply(text, logprob=logprob), **more)


@pytest.fixture
def ask(double: OllamaDouble, gateway_of: Callable[..., Gateway]) -> Callable[..., Any]:
    says(double, SMALL, "Perhaps Lyon.", -2.0)
    says(double, LARGE, "Paris.", -0.1)

    def make(message: str = "Capital of France?", policy: Policy = CASCADE, **more: Any) -> Any:
        decider = more.pop("decider", None) or CascadeDecider()
        options = {"o_attempt_factor": SECOND_MAY_TAKE, **more.pop("gateway", {})}
        gateway = gateway_of(decider=decider, **options)
        return gateway.chat(message, policy=policy, **more)

    return make


def asked(double: OllamaDouble) -> list[str]:
    return [seen.model for seen in double.generations]


def test_an_improbable_answer_is_replaced_by_that_of_the_larger_model(
    ask: Any, double: OllamaDouble, recording: Recording
) -> None:
    answer = ask()
    assert (answer.content, answer.model, answer.decision.model) == ("Paris.", LARGE, SMALL)
    assert (answer.escalated_from, answer.fallback) == (SMALL, False)
    assert answer.p_right == pytest.approx(1 / (1 + 2.718281828**2))  # z = -2
    assert "escalated to qwen3:8b" in answer.decision.reason
    first, second = recording.of(AttemptEvent)
    assert (first.model, first.ok, first.unused, first.logprob_mean) == (SMALL, True, True, -2.0)
    assert (second.model, second.ok, second.unused, second.logprob_mean) == (LARGE, True, False, -0.1)
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.model, outcome.escalated_from, outcome.fallback, outcome.attempts) == (LARGE, SMALL, False, 2)
    assert outcome.cascade in answer.decision.reason


def test_a_probable_answer_is_kept(ask: Any, double: OllamaDouble, recording: Recording) -> None:
    says(double, SMALL, "Paris.", 0.0)
    answer = ask()
    assert (answer.model, answer.escalated_from, asked(double)) == (SMALL, None, [SMALL])
    assert answer.p_right == pytest.approx(0.8808, abs=1e-4)
    assert "kept" in answer.decision.reason
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.logprob_mean, outcome.p_success, outcome.unused_s) == (0.0, answer.p_right, None)


def test_the_seconds_of_an_escalated_request_are_all_of_it_and_training_gets_the_models_own(
    ask: Any, double: OllamaDouble, recording: Recording, tmp_path: Path
) -> None:
    says(double, SMALL, "Perhaps Lyon.", -2.0, load_s=0.3)
    answer = ask()
    (outcome,) = recording.of(OutcomeEvent)
    assert outcome.unused_s >= 0.3
    assert outcome.latency_s == answer.timings.total_s >= outcome.unused_s
    store = open_store(tmp_path)
    store.append([*recording.events, FeedbackEvent(outcome.decision_id, "thumb", 1.0)])
    large, small = outcomes(store)
    assert (large.model, large.success, large.logprob_mean) == (LARGE, 1.0, -0.1)
    assert large.latency_s == pytest.approx(outcome.latency_s - outcome.unused_s)
    assert (small.model, small.success, small.judged_by) == (SMALL, answer.p_right, "unserved")
    (row,) = bandit_rows(store)
    assert (row["chosen"], row["answered_by"], row["escalated"], row["fallback"]) == (SMALL, LARGE, True, False)
    assert row["latency_s"] == outcome.latency_s


def test_an_unjudged_request_teaches_nothing_of_the_answer_that_was_not_served(
    ask: Any, recording: Recording, tmp_path: Path
) -> None:
    ask()
    store = open_store(tmp_path)
    store.append(recording.events)
    assert [row.model for row in outcomes(store)] == [LARGE]


def test_an_escalated_request_counts_as_answered_by_its_variant(ask: Any, recording: Recording) -> None:
    def assign(unit: str, context: Any) -> Assignment:
        return Assignment("exp", "control", Variant("control"), unit)

    ask(gateway={"assigner": assign})
    (outcome,) = recording.of(OutcomeEvent)
    experiment = Experiment("exp", Variant("control"), Variant("challenger"), 0.0)
    request = request_of(outcome, experiment, None)
    assert request is not None
    assert (request.arm, request.no_answer, request.latency_s) == ("control", False, outcome.latency_s)


@pytest.mark.parametrize(
    "fault", [Fault.ERROR_500, Fault.EMPTY_ANSWER, Fault.HANG_AFTER_HEADERS, Fault.RESET_MID_STREAM]
)
def test_where_the_larger_model_fails_the_first_answer_is_served(
    ask: Any, double: OllamaDouble, recording: Recording, fault: Fault
) -> None:
    double.faults.set(LARGE, fault)
    hangs = fault is Fault.HANG_AFTER_HEADERS
    answer = ask(decider=CascadeDecider(p95_s=0.3), gateway={"o_attempt_factor": 1.0 if hangs else SECOND_MAY_TAKE})
    assert (answer.content, answer.model, answer.escalated_from) == ("Perhaps Lyon.", SMALL, None)
    assert "gave no answer" in answer.cascade
    assert answer.served_attempt.model == SMALL
    first, second = recording.of(AttemptEvent)
    assert (first.ok, first.unused, second.ok) == (True, False, False)
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.ok, outcome.model, outcome.escalated_from) == (True, SMALL, None)
    assert outcome.unused_s == second.latency_s
    assert outcome.latency_s == answer.timings.total_s


def test_nobody_is_asked_who_would_not_answer_in_time(ask: Any, double: OllamaDouble) -> None:
    answer = ask(decider=CascadeDecider(p95_s=30.0), deadline_s=20.0)
    assert (answer.model, asked(double)) == (SMALL, [SMALL])
    assert "no other model would answer in the time left" in answer.cascade


def test_the_latency_budget_of_the_request_holds_for_both_calls(ask: Any, double: OllamaDouble) -> None:
    says(double, SMALL, "Perhaps Lyon.", -2.0, decode_tokens_per_s=20.0)  # three pieces and the end: .2 s
    answer = ask(decider=CascadeDecider(p95_s=0.5), context={"latency_budget_s": 0.6})
    assert (answer.model, asked(double)) == (SMALL, [SMALL])


def test_a_stream_passes_on_as_it_comes(ask: Any, double: OllamaDouble, recording: Recording) -> None:
    stream = ask(stream=True)
    assert "".join(part.message.content for part in stream) == "Perhaps Lyon."
    assert "no cascade: a stream passes on as it comes" in stream.decision.reason
    assert asked(double) == [SMALL]
    (outcome,) = recording.of(OutcomeEvent)
    assert outcome.logprob_mean == -2.0  # recorded all the same: a later fit learns from it


def test_a_buffered_stream_is_judged_before_its_first_part(ask: Any, double: OllamaDouble) -> None:
    stream = ask(policy=dataclasses.replace(CASCADE, cascade_buffer=True), stream=True)
    assert "".join(part.message.content for part in stream) == "Paris."
    assert (stream.model, stream.answer.escalated_from) == (LARGE, SMALL)
    assert [attempt.model for attempt in stream.attempts] == [SMALL]


def test_the_larger_model_failing_a_buffered_stream_leaves_the_first_answer(ask: Any, double: OllamaDouble) -> None:
    double.faults.set(LARGE, Fault.RESET_MID_STREAM)
    stream = ask(policy=dataclasses.replace(CASCADE, cascade_buffer=True), stream=True)
    assert "".join(part.message.content for part in stream) == "Perhaps Lyon."


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_passed_on_to_those_alone_who_asked(ask: Any, stream: bool) -> None:
    for wanted in (None, True):
        got = ask(stream=stream, logprobs=wanted, policy=dataclasses.replace(CASCADE, cascade_buffer=False))
        parts = list(got) if stream else [got.response]
        assert any(part.logprobs for part in parts) is bool(wanted)


def test_a_policy_without_a_cascade_asks_for_no_log_probabilities(ask: Any, double: OllamaDouble) -> None:
    answer = ask(policy=PRESETS["balanced"])
    assert (answer.model, answer.cascade, answer.p_right) == (SMALL, "", None)
    assert "logprobs" not in double.generations[0].body


def test_a_host_without_log_probabilities_leaves_the_answer(ask: Any, double: OllamaDouble) -> None:
    says(double, SMALL, "Perhaps Lyon.", -2.0, gives_logprobs=False)
    answer = ask()
    assert (answer.model, answer.cascade) == (SMALL, "no cascade: the host gave no log-probabilities")


@pytest.mark.parametrize(
    ("cascade", "why"),
    [
        (Cascade(), "the bundle has no map of log-probabilities"),
        (Cascade({}, {SMALL: "12 outcomes with a log-probability, 50 are needed"}), "12 outcomes"),
        ("odd", "the router does not judge answers"),
    ],
)
def test_without_a_map_the_answer_is_served_and_says_why(ask: Any, cascade: Any, why: str) -> None:
    answer = ask(decider=CascadeDecider(cascade))
    assert answer.model == SMALL
    assert why in answer.decision.reason


def test_a_judge_that_fails_costs_no_answer(ask: Any, double: OllamaDouble, recording: Recording) -> None:
    class Broken(Cascade):
        def rule(self, *_: Any, **__: Any) -> Any:
            raise ArithmeticError

    answer = ask(decider=CascadeDecider(Broken({SMALL: CHECK})))
    assert (answer.content, answer.cascade) == ("Perhaps Lyon.", "no cascade: the answer could not be judged")
    assert [event.ok for event in recording.of(OutcomeEvent)] == [True]


def test_a_cached_answer_was_no_fallback_and_escalates_nothing_again(
    double: OllamaDouble, gateway_of: Callable[..., Gateway], recording: Recording
) -> None:
    says(double, SMALL, "Perhaps Lyon.", -2.0)
    says(double, LARGE, "Paris.", -0.1)
    gateway = gateway_of(decider=CascadeDecider(), cache=ExactCache(), o_attempt_factor=SECOND_MAY_TAKE)
    asking = {"policy": CASCADE, "options": {"temperature": 0, "seed": 0}, "context": {"user_id": "u"}}
    first, second = (gateway.chat("Capital?", **asking) for _ in range(2))
    assert (first.cached, second.cached, second.content, second.fallback) == (False, True, "Paris.", False)
    fresh, cached = recording.of(OutcomeEvent)
    assert (fresh.escalated_from, cached.escalated_from, cached.fallback) == (SMALL, None, False)


def test_a_named_model_is_not_left(ask: Any, double: OllamaDouble) -> None:
    answer = ask(model=SMALL)
    assert (answer.model, answer.cascade, asked(double)) == (SMALL, "no cascade: the model was named", [SMALL])


def test_a_fallback_is_not_judged(ask: Any, double: OllamaDouble) -> None:
    double.faults.set(SMALL, Fault.ERROR_500)
    answer = ask()
    assert (answer.model, answer.fallback, answer.cascade) == (LARGE, True, "no cascade: a fallback answered")


def test_a_model_that_cannot_use_the_tools_is_not_asked(ask: Any, double: OllamaDouble) -> None:
    says(double, LARGE, "Paris.", -0.1, capabilities=frozenset({"completion"}))
    answer = ask(tools=[TOOL])
    assert (answer.model, asked(double)) == (SMALL, [SMALL])


def test_an_improbable_tool_call_is_replaced_and_its_result_goes_to_the_model_that_called(
    ask: Any, double: OllamaDouble, gateway_of: Callable[..., Gateway]
) -> None:
    def call(city: str, logprob: float) -> DoubleModel:
        calls = ({"name": "get_weather", "arguments": {"city": city}},)
        return dataclasses.replace(double.models[LARGE], reply=lambda _: Reply(tool_calls=calls, logprob=logprob))

    double.models[SMALL] = dataclasses.replace(call("Lyon", -2.0), name=SMALL)
    double.models[LARGE] = call("Paris", 0.0)
    gateway = gateway_of(decider=CascadeDecider(), o_attempt_factor=SECOND_MAY_TAKE)
    question = [{"role": "user", "content": "Weather in the capital?"}]
    answer = gateway.chat(question, tools=[TOOL], policy=CASCADE)
    assert answer.message.tool_calls[0].function.arguments == {"city": "Paris"}
    says(double, LARGE, "Sunny.", 0.0)
    result = [*question, answer.message, {"role": "tool", "tool_name": "get_weather", "content": "sunny"}]
    assert gateway.chat(result, tools=[TOOL], policy=CASCADE).decision.model == LARGE


def test_a_session_stays_with_the_model_that_was_chosen_for_it(
    ask: Any, double: OllamaDouble, gateway_of: Callable[..., Gateway]
) -> None:
    gateway = gateway_of(decider=CascadeDecider(), o_stick_margin=1.0, o_attempt_factor=SECOND_MAY_TAKE)
    for _ in range(2):
        answer = gateway.chat("Capital?", policy=CASCADE, context={"session_id": "s"})
        assert (answer.decision.model, answer.model) == (SMALL, LARGE)


async def test_a_caller_who_leaves_ends_the_second_call(
    double: OllamaDouble, gateway_of: Callable[..., Gateway], recording: Recording
) -> None:
    says(double, SMALL, "Perhaps Lyon.", -2.0)
    says(double, LARGE, "Paris.", -0.1, decode_tokens_per_s=0.05)
    gateway = gateway_of(decider=CascadeDecider(), o_attempt_factor=SECOND_MAY_TAKE)
    task = asyncio.create_task(gateway.achat("Capital?", policy=CASCADE))
    await asyncio.to_thread(until, lambda: asked(double) == [SMALL, LARGE])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: recording.of(OutcomeEvent))
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.error, outcome.success, outcome.model) == ("cancelled", None, SMALL)
    assert [(a.model, a.ok, a.unused) for a in recording.of(AttemptEvent)] == [(SMALL, True, False)]


def test_a_model_out_of_reach_of_the_policy_is_not_asked(ask: Any, double: OllamaDouble) -> None:
    assert ask(policy=dataclasses.replace(CASCADE, models=(SMALL,))).model == SMALL
    assert asked(double) == [SMALL]


def test_the_slowest_quantile_counts_not_the_median(ask: Any, double: OllamaDouble) -> None:
    class LongTail(CascadeDecider):
        def decide(self, *given: Any, **more: Any) -> Decision:
            made = super().decide(*given, **more)
            tail = made.ranked[1]._replace(latency_s=Quantiles(0.1, 1.0, 300.0))
            return dataclasses.replace(made, ranked=(made.ranked[0], tail))

    assert ask(decider=LongTail()).model == SMALL


_FAULTS = [
    None,
    Fault.ERROR_500,
    Fault.EMPTY_ANSWER,
    Fault.RESET_MID_STREAM,
    Fault.MALFORMED_JSON,
    Fault.QUEUE_FULL_503,
]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(-3.0, 0.0),
    st.booleans(),
    st.booleans(),
    st.sampled_from(_FAULTS),
    st.sampled_from([0.05, 0.5, 300.0]),
)
def test_whatever_happens_one_whole_answer_is_served_and_counted_once(
    double: OllamaDouble, logprob: float, stream: bool, buffer: bool, fault: Fault | None, p95_s: float
) -> None:
    says(double, SMALL, "Perhaps Lyon.", logprob)
    says(double, LARGE, "Paris.", -0.1)
    double.faults.clear()
    if fault is not None:
        double.faults.set(LARGE, fault)
    recording, before = Recording(), len(double.generations)
    policy = dataclasses.replace(CASCADE, cascade_buffer=buffer)
    with Gateway(
        CascadeDecider(p95_s=p95_s), catalogue_of(SMALL, LARGE), default_host=double.url, recorder=recording,
        options=dataclasses.replace(PATIENT, last_resort=None, attempt_factor=SECOND_MAY_TAKE),
    ) as gateway:  # fmt: skip
        got = gateway.chat("Capital?", policy=policy, stream=stream)
        text = "".join(part.message.content for part in got) if stream else got.content
    answered = [event for event in recording.of(AttemptEvent) if event.ok]
    (outcome,) = recording.of(OutcomeEvent)
    escalated = outcome.escalated_from is not None
    assert text == ("Paris." if escalated else "Perhaps Lyon.")
    assert [event.model for event in answered if not event.unused] == [outcome.model]
    assert [event.model for event in answered if event.unused] == [SMALL] * escalated
    assert len(double.generations) - before <= 2
    assert outcome.ok
    assert not outcome.fallback
    assert escalated == (logprob < UNSURE and (buffer or not stream) and fault is None and p95_s <= 0.5)
    assert outcome.latency_s >= (outcome.unused_s or 0.0)
