"""A turn of a session is explored once: retries and results of tools keep the model, with propensity 1."""

from __future__ import annotations

import dataclasses
from typing import Any

from router_ml.events.event import DecisionEvent
from router_ml.types import Decision
from tests.serve.deciders import FixedDecider
from tests.serve.test_answers import HELLO, LLAMA, QWEN2, QWEN3, TOOL

MORE = [*HELLO, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]


class Exploring(FixedDecider):
    """Draws its models in turn, as exploration might."""

    def decide(self, *args: Any, **kwargs: Any) -> Decision:
        made = super().decide(*args, **kwargs)
        pick = len(self.seen) % len(made.ranked)
        ranked = (made.ranked[pick], *made.ranked[:pick], *made.ranked[pick + 1 :])
        return dataclasses.replace(made, model=ranked[0].model, ranked=ranked, propensity=0.2 if pick else 0.6)


def test_a_retry_goes_where_the_turn_went_and_logs_propensity_one(gateway_of, recording) -> None:
    gateway = gateway_of(decider=Exploring(LLAMA, QWEN2, QWEN3))
    for messages in (HELLO, HELLO, HELLO, MORE, MORE):
        gateway.chat(messages, context={"session_id": "s"})
    logged = [(event.model, event.propensity) for event in recording.of(DecisionEvent)]
    assert logged == [(QWEN2, 0.2), (QWEN2, 1.0), (QWEN2, 1.0), (QWEN2, 0.2), (QWEN2, 1.0)]


def test_the_same_words_in_another_session_are_another_turn(gateway_of, recording) -> None:
    gateway = gateway_of(decider=Exploring(LLAMA, QWEN2, QWEN3))
    for session in "ab":
        gateway.chat(HELLO, context={"session_id": session})
    assert [(event.model, event.propensity) for event in recording.of(DecisionEvent)] == [(QWEN2, 0.2), (QWEN3, 0.2)]


def test_the_result_of_a_tool_is_not_explored(gateway_of, recording) -> None:
    gateway = gateway_of(decider=Exploring(LLAMA, QWEN2, QWEN3))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]}
    gateway.chat([*HELLO, call, {"role": "tool", "content": "sun"}], tools=[TOOL], context={"session_id": "s"})
    gateway.chat([*HELLO, call, {"role": "tool", "content": "sun"}], tools=[TOOL], context={"session_id": "s"})
    assert [event.propensity for event in recording.of(DecisionEvent)] == [0.2, 1.0]
