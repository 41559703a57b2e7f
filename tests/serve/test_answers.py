"""What a caller gets from a gateway whose models work."""

from __future__ import annotations

import asyncio
import concurrent.futures

import ollama
import pytest

from router_ml.decide.selection.policy import PRESETS
from router_ml.errors import InputError, NoModelAvailable, QueryError
from router_ml.events.event import AttemptEvent, DecisionEvent, FeedbackEvent, OutcomeEvent
from router_ml.experiments.assignment import Assignment
from router_ml.experiments.experiment import Variant
from router_ml.serve import Gateway
from tests.ollama_double import DoubleModel, Fault, OllamaDouble, Reply
from tests.serve.deciders import BrokenDecider, FixedDecider, catalogue_of
from tests.timing import Stopwatch, until

HELLO = [{"role": "user", "content": "Hello"}]
LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "w",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_an_answer_reads_like_the_clients_own(gateway) -> None:
    answer = gateway.chat(HELLO)
    assert answer.message.content == answer["message"]["content"] == answer.content == "The llama says hello."
    assert answer.done_reason == "stop"
    assert answer.get("eval_count") == 6  # five pieces and the end token, as in recordings/chat.json
    assert "message" in answer
    assert isinstance(answer.response, ollama.ChatResponse)
    assert answer.model_dump()["model"] == LLAMA
    assert (answer.model, answer.decision.model, answer.fallback) == (LLAMA, LLAMA, False)


def test_feedback_finds_its_answer_and_a_stranger_is_told(gateway, recording, caplog) -> None:
    answer = gateway.chat(HELLO)
    assert gateway.feedback(answer.decision.decision_id, 0.5, "so so")
    assert not gateway.feedback("stranger", True)
    assert "'stranger'" in caplog.text
    given = [(event.decision_id, event.kind, event.score) for event in recording.of(FeedbackEvent)]
    assert given == [(answer.decision.decision_id, "score", 0.5), ("stranger", "thumb", 1.0)]
    for wrong in (2, -0.1, float("nan"), "up", None):
        with pytest.raises(InputError, match="between 0 and 1"):
            gateway.feedback(answer.decision.decision_id, wrong)


def test_timings_are_split_as_ollama_measures_them(double, gateway_of) -> None:
    double.models[LLAMA] = DoubleModel(
        LLAMA, "a b c d e f g", load_s=0.2, prompt_tokens_per_s=1000.0, decode_tokens_per_s=100.0
    )
    with Stopwatch() as watch:
        cold, warm = (gateway_of().chat(HELLO).timings for _ in range(2))
    assert 0.2 <= cold.load_s < 0.25 + watch.lost_s
    assert warm.load_s < 0.05 + watch.lost_s
    assert warm.prompt_eval_s == pytest.approx(0.016)  # 16 tokens at 1000 a second
    assert warm.eval_s == pytest.approx(0.08)  # 8 tokens at 100 a second
    assert warm.queue_s < 0.05 + watch.lost_s
    assert cold.total_s >= cold.load_s + cold.prompt_eval_s + cold.eval_s


def test_plain_text_is_a_conversation_of_one_turn(gateway) -> None:
    assert gateway.chat("Hello").content == "The llama says hello."


def test_the_decider_sees_text_history_tools_and_machine(gateway_of) -> None:
    decider = FixedDecider(LLAMA, QWEN2, QWEN3)
    gateway = gateway_of(decider=decider)
    turns = [{"role": "user", "content": "find Dana"}, {"role": "assistant", "content": "found"},
             {"role": "user", "content": "mail her"}]  # fmt: skip
    gateway.chat(turns, tools=[TOOL], context={"session_id": "s", "latency_budget_s": 2.0}, policy="fast")
    text, context, policy, machine, variant = decider.seen[0]
    assert (text, policy, variant) == ("mail her", "fast", None)
    assert [turn.content for turn in context.history] == ["find Dana", "found"]
    assert context.tools[0].name == "get_weather"
    assert (context.session_id, context.latency_budget_s) == ("s", 2.0)
    assert context.prompt_tokens > 0
    assert set(machine.models) == {LLAMA, QWEN2, QWEN3}
    assert machine.models[LLAMA].resident is False  # nothing was loaded yet, and the gateway looked


def test_the_machine_learns_from_answers(gateway, double) -> None:
    gateway.chat("Tell me more about it")
    state = gateway.refresh().models[LLAMA]
    assert state.resident is True
    assert state.decode_tokens_per_s == pytest.approx(1e5, rel=0.01)
    assert (state.recent_success, state.recent_calls) == (1.0, 1)


async def test_coroutines_get_the_same(gateway) -> None:
    answers = await asyncio.gather(*(gateway.achat(HELLO) for _ in range(5)))
    assert {answer.content for answer in answers} == {"The llama says hello."}


def test_threads_share_a_gateway(gateway_of) -> None:
    gateway = gateway_of()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: gateway.chat(HELLO).content, range(40)))
    assert answers == ["The llama says hello."] * 40


def test_a_named_model_is_tried_first(gateway, recording) -> None:
    answer = gateway.chat(HELLO, model="qwen3:8b", think=False)
    assert answer.model == QWEN3
    assert recording.of(DecisionEvent)[0].pinned


def test_tools_go_to_models_that_can_use_them(double, gateway_of) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, capabilities=frozenset({"completion"}))
    answer = gateway_of().chat(HELLO, tools=[TOOL])
    assert answer.model == QWEN2
    assert answer.message.tool_calls[0].function.name == "get_weather"
    assert [seen.model for seen in double.generations] == [QWEN2]  # nobody had to be refused first


def test_a_python_function_is_a_tool(gateway) -> None:
    def get_weather(city: str) -> str:
        """The weather.

        Args:
          city: where
        """
        return city

    assert gateway.chat(HELLO, tools=[get_weather]).message.tool_calls[0].function.arguments == {"city": "Paris"}


def test_a_refused_capability_is_learned_and_the_request_fitted(double, gateway_of) -> None:
    # the catalogue believes that everything thinks, and the host does not say what it can do
    double.faults.set("*", Fault.TAGS_DOWN)
    gateway = gateway_of()
    first, second = (gateway.chat(HELLO, think=True) for _ in range(2))
    assert [attempt.error is None for attempt in first.attempts] == [False, True]
    assert first.attempts[1].adapted == ("think",)
    assert first.model == second.model == LLAMA
    assert len(second.attempts) == 1


def test_changing_options_do_not_reload_a_model(double, gateway) -> None:
    for size in (4096, 2048, 1024, 4096):
        gateway.chat(HELLO, options={"num_ctx": size, "temperature": 0.0})
    assert double.scheduler.loads == [LLAMA]


def test_the_whole_request_is_recorded(gateway, recording) -> None:
    answer = gateway.chat(HELLO, context={"session_id": "s1"})
    (decision,), (attempt,), (outcome,) = (recording.of(k) for k in (DecisionEvent, AttemptEvent, OutcomeEvent))
    assert decision.decision_id == attempt.decision_id == outcome.decision_id == answer.decision.decision_id
    assert (attempt.model, attempt.ok, attempt.breaker, attempt.index) == (LLAMA, True, "closed", 0)
    assert (outcome.ok, outcome.success, outcome.output_tokens, outcome.prompt_tokens) == (True, None, 6, 16)
    assert outcome.unit == "s1"
    assert outcome.latency_s == answer.timings.total_s
    assert outcome.predicted_latency_s == 0.05
    assert not outcome.fallback
    assert outcome.attempts == 1


def test_a_broken_decider_costs_no_answer(gateway_of) -> None:
    answer = gateway_of(decider=BrokenDecider()).chat(HELLO)
    assert answer.content == "The llama says hello."
    assert answer.decision.degraded
    assert "the decider failed" in answer.decision.reason


def test_a_session_stays_with_its_model(gateway_of) -> None:
    decider = FixedDecider(LLAMA, QWEN2, utilities=[0.80, 0.78])
    gateway = gateway_of(decider=decider, o_stick_margin=0.05)
    assert gateway.chat(HELLO, model=QWEN2, context={"session_id": "s"}).model == QWEN2
    assert gateway.chat(HELLO, context={"session_id": "s"}).model == QWEN2
    assert gateway.chat(HELLO, context={"session_id": "other"}).model == LLAMA


def test_an_experiment_serves_its_variant(gateway_of, recording) -> None:
    def assigner(unit, context):
        return Assignment("e1", "challenger", Variant("big", policy="accurate", model=QWEN3), unit)

    decider = FixedDecider(LLAMA, QWEN2, QWEN3)
    answer = gateway_of(decider=decider, assigner=assigner).chat(HELLO, context={"session_id": "s9"})
    assert answer.model == QWEN3
    assert decider.seen[0][2:] == ("accurate", decider.seen[0][3], "big")
    event = recording.of(DecisionEvent)[0]
    assert (event.experiment, event.variant, event.unit) == ("e1", "big", "s9")


def test_a_shadow_decides_and_serves_nobody(gateway_of, recording) -> None:
    control, challenger = Variant("now"), Variant("new", policy="fast")

    def assigner(unit, context):
        return Assignment("e1", "control", control, unit, shadow=challenger)

    answer = gateway_of(assigner=assigner).chat(HELLO)
    until(lambda: any(event.shadow for event in recording.of(DecisionEvent)))
    (shadow,) = [event for event in recording.of(DecisionEvent) if event.shadow]
    assert (shadow.policy, shadow.experiment, answer.decision.policy) == ("fast", "e1", "balanced")
    assert len(recording.of(OutcomeEvent)) == 1


def test_a_broken_experiment_costs_no_answer(gateway_of) -> None:
    def assigner(unit, context):
        raise RuntimeError("broken")

    assert gateway_of(assigner=assigner).chat(HELLO).model == LLAMA


def test_a_policy_may_be_a_value(gateway) -> None:
    assert gateway.chat(HELLO, policy=PRESETS["fast"]).decision.policy == "fast"


@pytest.mark.parametrize(
    ("messages", "more"),
    [([], {}), ([{"content": "x"}], {}), (HELLO, {"deadline_s": 0}), (HELLO, {"surprise": 1}), (HELLO, {"context": 5})],
)
def test_what_no_model_could_take_is_an_input_error(gateway, messages, more) -> None:
    with pytest.raises(InputError):
        gateway.chat(messages, **more)


def test_an_option_of_the_wrong_type_is_the_callers_error_and_nobody_elses(gateway, double, recording) -> None:
    with pytest.raises(QueryError, match="temperature"):
        gateway.chat(HELLO, options={"temperature": "hot"})
    assert len(double.generations) == 1
    assert recording.events == []
    assert gateway.machine().models[LLAMA].available


def test_a_closed_gateway_says_so(gateway) -> None:
    gateway.close()
    with pytest.raises(NoModelAvailable):
        gateway.chat(HELLO)


def test_the_quicker_of_two_hosts_is_asked(gateway_of, double) -> None:
    with OllamaDouble() as other:
        other.load_now(LLAMA)
        catalogue = catalogue_of(LLAMA, hosts={LLAMA: [double.url, other.url]})
        gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue, o_last_resort=None)
        assert gateway.chat(HELLO).host == other.url  # in memory there, not here
        other.refuse()
        assert gateway.chat(HELLO).host == double.url


def test_status_is_plain_data(gateway) -> None:
    gateway.chat(HELLO)
    rows = gateway.status()["backends"]
    assert [row["model"] for row in rows] == [LLAMA, QWEN2, QWEN3]
    assert rows[0]["breaker"] == "closed"


def test_a_model_can_be_loaded_ahead(gateway, double) -> None:
    gateway.preload(QWEN3)
    assert double.scheduler.loads == [QWEN3]
    assert gateway.machine().models[QWEN3].resident is not False
    with pytest.raises(NoModelAvailable):
        gateway.preload("mistral")
    assert double.generations == []


def test_the_likely_next_model_is_loaded_while_the_host_is_idle(gateway_of, double) -> None:
    gateway = gateway_of(o_preload=True)
    for _ in range(8):
        gateway.chat(HELLO, model=QWEN3)
    double.scheduler.unload(QWEN3)
    gateway.refresh()
    gateway.chat(HELLO)
    task = gateway._preloader.running
    assert task is not None
    asyncio.run_coroutine_threadsafe(asyncio.wait({task}), gateway._loop.loop).result(60)
    assert double.scheduler.loads[-1] == QWEN3


@pytest.mark.parametrize("reply", [Reply(), Reply(thinking="hm"), Reply(" \n\n"), Reply("\u200b")], ids=repr)
def test_an_empty_answer_costs_one_fallback_and_blames_nobody(double, gateway, recording, reply) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, reply=lambda body: reply)
    for _ in range(4):
        answer = gateway.chat(HELLO)
        assert (answer.model, answer.empty, answer.content) == (QWEN2, False, "Qwen two says hello.")
        assert [attempt.failure and attempt.failure.kind for attempt in answer.attempts] == ["empty", None]
    state = gateway.machine().models[LLAMA]
    assert (state.available, state.recent_calls) == (True, 0)
    assert {event.breaker for event in recording.of(AttemptEvent)} == {"closed"}


def test_where_all_are_empty_the_last_empty_answer_is_returned(double, gateway, recording) -> None:
    for model in (LLAMA, QWEN2, QWEN3):
        double.models[model] = DoubleModel(model, reply=lambda body: Reply(thinking="hm"))
    answer = gateway.chat(HELLO)
    assert (answer.model, answer.empty, answer.message.thinking) == (QWEN2, True, "hm")
    assert [seen.model for seen in double.generations] == [LLAMA, QWEN2]
    (outcome,) = recording.of(OutcomeEvent)
    assert (outcome.ok, outcome.success, outcome.error) == (True, 0.0, None)


def test_an_empty_answer_is_better_than_an_error(double, gateway) -> None:
    double.faults.set(LLAMA, Fault.EMPTY_ANSWER)
    for model in (QWEN2, QWEN3):
        double.faults.set(model, Fault.ERROR_500)
    answer = gateway.chat(HELLO)
    assert (answer.model, answer.empty, len(answer.attempts)) == (LLAMA, True, 3)


def test_a_stream_holds_white_space_back_until_something_is_said(double, gateway) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, reply=lambda body: "\n\n")
    stream = gateway.chat(HELLO, stream=True)
    assert "".join(part.message.content or "" for part in stream) == "Qwen two says hello."
    double.models[QWEN2] = DoubleModel(QWEN2, reply=lambda body: "\n Hello")
    assert "".join(part.message.content or "" for part in gateway.chat(HELLO, stream=True)) == "\n Hello"


@pytest.mark.parametrize("after", [Reply("A real answer."), Reply(thinking="hm, hm")], ids=["answer", "thoughts"])
def test_after_thoughts_alone_another_model_goes_on_with_the_stream(double, gateway, after) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, reply=lambda body: Reply(thinking="let me see"))
    double.models[QWEN2] = DoubleModel(QWEN2, reply=lambda body: after)
    stream = gateway.chat(HELLO, stream=True)
    parts = list(stream)
    assert "".join(part.message.content or "" for part in parts) == after.content
    assert "".join(part.message.thinking or "" for part in parts) == "let me see" + after.thinking
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (stream.model, stream.answer.model, stream.answer.empty) == (QWEN2, QWEN2, not after.content)
    assert [seen.model for seen in double.generations] == [LLAMA, QWEN2]


def test_after_thoughts_alone_the_failure_of_another_model_leaves_the_empty_answer(double, gateway) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, reply=lambda body: Reply(thinking="let me see"))
    for model in (QWEN2, QWEN3):
        double.faults.set(model, Fault.ERROR_500)
    stream = gateway.chat(HELLO, stream=True)
    assert [part.done for part in stream][-1] is True
    assert (stream.answer.model, stream.answer.empty, stream.answer.message.thinking) == (LLAMA, True, "let me see")


def test_empty_streams_end_with_the_last_empty_answer(double, gateway) -> None:
    double.faults.set("*", Fault.EMPTY_ANSWER)
    stream = gateway.chat(HELLO, stream=True)
    assert [part.message.content for part in stream] == [""]
    assert (stream.answer.empty, stream.answer.model) == (True, QWEN2)


def test_no_output_that_was_asked_for_is_no_empty_answer(double, gateway) -> None:
    assert [attempt.ok for attempt in gateway.chat(HELLO, options={"num_predict": 0}).attempts] == [True]


def _loop(question: str, calls: int, city: str = "Paris") -> list[dict[str, object]]:
    """A conversation in which the tool was used so many times."""
    used = {"function": {"name": "get_weather", "arguments": {"city": city}}}
    step = [{"role": "assistant", "content": "", "tool_calls": [used]}, {"role": "tool", "content": "22 degrees"}]
    return [{"role": "user", "content": question}, *(step * calls)]


@pytest.mark.parametrize("context", [None, {"session_id": "s"}, {"user_id": "u"}])
def test_the_model_that_asked_for_a_tool_gets_its_result(gateway_of, double, context) -> None:
    double.faults.set(LLAMA, Fault.ERROR_500, times=1)
    gateway = gateway_of()
    models = [gateway.chat(_loop("rain?", n), tools=[TOOL], context=context).model for n in range(3)]
    assert models == [QWEN2] * 3  # the fallback asked for the tool
    assert gateway.chat([{"role": "user", "content": "rain?"}], tools=[TOOL], context=context).model == LLAMA


def test_a_stream_that_fails_after_it_asked_for_a_tool_is_remembered(gateway_of, double) -> None:
    asking = Reply(tool_calls=({"name": "get_weather", "arguments": {"city": "Paris"}},), content="one two three")
    double.models[QWEN3] = DoubleModel(QWEN3, reply=lambda body: asking, decode_tokens_per_s=20.0)
    gateway = gateway_of()
    with gateway.chat(_loop("rain?", 0), tools=[TOOL], model=QWEN3, stream=True) as stream:
        next(part for part in stream if part.message.tool_calls)
    until(lambda: gateway.status()["backends"][2]["running"] == 0)
    assert gateway.chat(_loop("rain?", 1), tools=[TOOL]).model == QWEN3


def test_tool_loops_that_begin_alike_are_told_apart(gateway_of, double) -> None:
    def ask(city: str):
        return lambda body: Reply(tool_calls=({"name": "get_weather", "arguments": {"city": city}},))

    double.models[LLAMA] = DoubleModel(LLAMA, reply=ask("Paris"))
    double.models[QWEN2] = DoubleModel(QWEN2, reply=ask("Rome"))
    gateway = gateway_of()
    for model in (LLAMA, QWEN2):
        gateway.chat(_loop("rain?", 0), tools=[TOOL], model=model)
    assert gateway.chat(_loop("rain?", 1, "Paris"), tools=[TOOL]).model == LLAMA
    assert gateway.chat(_loop("rain?", 1, "Rome"), tools=[TOOL]).model == QWEN2


def test_a_tool_loop_is_one_unit_of_an_experiment(gateway_of) -> None:
    units: list[str] = []

    def assigner(unit, context):
        units.append(unit)
        return Assignment("e1", "control", Variant("now"), unit)

    gateway = gateway_of(assigner=assigner)
    for n in range(3):
        gateway.chat(_loop("rain?", n), tools=[TOOL])
    gateway.chat(HELLO)
    assert units[0] == units[1] == units[2] != units[3]


def test_a_recorder_that_raises_costs_no_answer(double) -> None:
    class Raises:
        def record(self, event: object) -> None:
            raise KeyError("disk")

    with Gateway(FixedDecider(LLAMA), catalogue_of(LLAMA), default_host=double.url, recorder=Raises()) as gateway:
        assert gateway.chat(HELLO).content == "The llama says hello."
        assert gateway.feedback("d0", 1.0)


class Unreadable:
    def __getattr__(self, name: str) -> None:
        raise RuntimeError(name)


@pytest.mark.parametrize(
    "call",
    [{"messages": [Unreadable()]}, {"tools": [Unreadable()]}, {"tools": Unreadable()}, {"model": 5}, {"policy": 5},
     {"deadline_s": "5"}, {"context": Unreadable()}, {"options": {"temperature": float("nan")}}, {"format": "xml"}],
    ids=str,
)  # fmt: skip
def test_a_callers_mistake_is_found_before_any_call(gateway, double, recording, call) -> None:
    for _ in range(6):
        with pytest.raises(InputError):
            gateway.chat(**{"messages": HELLO, **call})
    assert double.generations == []
    assert recording.of(OutcomeEvent) == recording.of(AttemptEvent) == []
    assert gateway.chat(HELLO).model == LLAMA
