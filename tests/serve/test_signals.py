"""Signs that an answer was not right, seen by a gateway: which answer they speak of, and what is no sign."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from router_ml.events.event import FeedbackEvent, OutcomeEvent
from tests.ollama_double import DoubleModel, Reply
from tests.timing import until

LLAMA = "llama3.2:3b-instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
            "required": ["city"],
        },
    },
}


def turn(*texts: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(itertools.cycle(("user", "assistant")), texts)]


def signs(recording: Any) -> list[tuple[str, str]]:
    return [(event.decision_id, event.kind) for event in recording.of(FeedbackEvent)]


def ask(gateway: Any, *texts: str, session: str | None = "s", **more: Any) -> Any:
    return gateway.chat(turn(*texts), context={"session_id": session} if session else None, **more)


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        (("turn on the kitchen lights",), "retry"),
        (("turn on the kitchen lights", "Done.", "please turn on the lights in the kitchen"), "rephrased"),
        (("turn on the kitchen lights", "Done.", "No, I meant the bedroom"), "rephrased"),
        (("turn on the kitchen lights", "Done.", "Nein, ich meinte die Küche"), "rephrased"),
        (("turn on the kitchen lights", "Done.", "turn on the bedroom lights"), None),  # the next task
        (("turn on the kitchen lights", "Done.", "no thanks"), None),
        (("give this a title: turn on the kitchen lights",), None),  # an application's own request
        (("what time is it",), None),
    ],
)
def test_what_the_next_request_says_of_the_answer_before_it(
    gateway: Any, recording: Any, second: tuple[str, ...], kind: str | None
) -> None:
    first = ask(gateway, "turn on the kitchen lights")
    ask(gateway, *second)
    assert signs(recording) == ([] if kind is None else [(first.decision.decision_id, kind)])


def test_another_session_or_no_session_says_nothing(gateway: Any, recording: Any) -> None:
    for session in ("a", "b", None, None):
        ask(gateway, "turn on the kitchen lights", session=session)
    assert signs(recording) == []


def test_without_a_session_the_same_conversation_is_recognised(gateway: Any, recording: Any) -> None:
    begun = ("hello", "Hi there, how can I help?", "turn on the kitchen lights")
    first = ask(gateway, *begun, session=None)
    ask(gateway, *begun, session=None)
    assert signs(recording) == [(first.decision.decision_id, "retry")]


def test_what_comes_late_says_nothing(gateway_of: Any, recording: Any) -> None:
    from time import monotonic

    shift = [0.0]
    gateway = gateway_of(clock=lambda: monotonic() + shift[0])
    ask(gateway, "turn on the kitchen lights")
    shift[0] = 200.0
    ask(gateway, "turn on the kitchen lights")
    assert signs(recording) == []


def test_a_tool_that_answers_with_an_error_speaks_of_its_caller(gateway: Any, recording: Any) -> None:
    question = {"role": "user", "content": "weather in Paris?"}
    first = gateway.chat([question], tools=[WEATHER], context={"session_id": "s"})
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": first.reply.tool_calls[0]["function"]}]}
    for text in ('{"error": "no such city"}', "22 degrees, no error"):
        result = {"role": "tool", "tool_name": "get_weather", "content": text}
        gateway.chat([question, call, result], context={"session_id": "s"})
    assert signs(recording) == [(first.decision.decision_id, "tool_failed")]


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("get_weather", {"city": "Paris", "unit": "C"}, None),
        ("get_weather", {"unit": "C"}, "tool_invalid"),
        ("get_weather", {"city": None}, "tool_invalid"),
        ("get_weather", {"city": "Paris", "unit": "K"}, "tool_invalid"),
        ("get_time", {"city": "Paris"}, "tool_invalid"),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_no_success(
    gateway: Any, double: Any, recording: Any, name: str, arguments: Any, why: str | None
) -> None:
    double.models[LLAMA] = DoubleModel(
        LLAMA, reply=lambda body: Reply(tool_calls=({"name": name, "arguments": arguments},))
    )
    gateway.chat("weather in Paris?", tools=[WEATHER])
    outcome = recording.of(OutcomeEvent)[0]
    assert (outcome.ok, outcome.invalid, outcome.success) == (True, why, None if why is None else 0.0)


@pytest.mark.parametrize(
    ("content", "wanted", "why"),
    [
        ('{"city": "Paris"}', "json", None),
        ("Paris", "json", "format_invalid"),
        ('{"town": "Paris"}', {"type": "object", "required": ["city"]}, "format_invalid"),
        ("[1]", {"type": "array"}, None),
        ("Paris", None, None),
    ],
)
def test_an_answer_without_the_format_asked_for_is_no_success(
    gateway: Any, double: Any, recording: Any, content: str, wanted: Any, why: str | None
) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, text=content)
    gateway.chat("where?", format=wanted)
    outcome = recording.of(OutcomeEvent)[0]
    assert (outcome.invalid, outcome.success) == (why, None if why is None else 0.0)


def test_what_the_callers_limit_cut_off_is_no_fault(gateway: Any, double: Any, recording: Any) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, text='{"city": "a very long name that ends here"}')
    gateway.chat("where?", format="json", options={"num_predict": 3})
    assert recording.of(OutcomeEvent)[0].invalid is None


def test_a_user_who_leaves_a_stream_gives_a_weak_sign_and_no_judgement(
    gateway: Any, double: Any, recording: Any
) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, text="word " * 1000, decode_tokens_per_s=20.0)

    async def leave() -> str:
        stream = await gateway.achat("tell me a story", stream=True)
        await stream.__anext__()
        await stream.aclose()
        return str(stream.decision.decision_id)

    decision_id = asyncio.run(leave())
    until(lambda: recording.of(OutcomeEvent) and recording.of(FeedbackEvent))
    assert signs(recording) == [(decision_id, "left")]
    outcome = recording.of(OutcomeEvent)[0]
    assert (outcome.error, outcome.success) == ("cancelled", None)
