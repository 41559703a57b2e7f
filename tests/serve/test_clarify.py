"""A policy that asks a clarifying question gets it in place of an answer, never twice in a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router_ml.events.connect import open_store
from router_ml.events.event import AttemptEvent, DecisionEvent, OutcomeEvent
from router_ml.events.export import export_outcomes
from router_ml.monitor.alerts import Alerts
from router_ml.monitor.metrics import LiveMetrics
from tests.serve.conftest import MODELS
from tests.serve.deciders import Unsure

QUESTION = "What exactly do you mean? Please say a little more."
IT = {"role": "user", "content": "do it"}


@pytest.fixture
def gateway(gateway_of: Any) -> Any:
    return gateway_of(decider=Unsure(*MODELS))


def test_the_answer_is_a_question_and_no_model_is_called(gateway: Any, double: Any, recording: Any) -> None:
    answer = gateway.chat([IT])
    assert answer.clarify
    assert answer.content == answer["message"]["content"] == QUESTION
    assert answer.message.role == "assistant"
    assert (answer.model, answer.attempts, answer.fallback, answer.done) == ("", (), False, True)
    assert double.generations == []
    (decision,) = recording.of(DecisionEvent)
    (outcome,) = recording.of(OutcomeEvent)
    assert decision.action == "clarify"
    assert (outcome.clarified, outcome.ok, outcome.success, outcome.attempts) == (True, True, None, 0)
    assert recording.of(AttemptEvent) == []


async def test_streams_and_coroutines_get_it_as_one_part(gateway: Any) -> None:
    assert [part.message.content for part in gateway.chat([IT], stream=True)] == [QUESTION]
    assert (await gateway.achat([IT])).clarify


def test_nobody_is_asked_twice_in_a_row(gateway: Any) -> None:
    asked = [IT, {"role": "assistant", "content": QUESTION}, {"role": "user", "content": "that thing"}]
    assert not gateway.chat(asked).clarify
    later = [*asked, {"role": "assistant", "content": "Done."}, IT]
    assert gateway.chat(later).clarify


def test_a_tools_result_and_a_named_model_are_answered(gateway: Any) -> None:
    assert not gateway.chat([IT, {"role": "tool", "content": "22 degrees", "tool_name": "get_weather"}]).clarify
    assert gateway.chat([IT], model="qwen3:8b").model == "qwen3:8b"


def test_callers_may_put_the_question_in_their_own_words_or_none(gateway_of: Any) -> None:
    assert gateway_of(decider=Unsure(*MODELS), o_clarifying_question="Was genau?").chat([IT]).content == "Was genau?"
    answer = gateway_of(decider=Unsure(*MODELS), o_clarifying_question=None).chat([IT])
    assert (answer.clarify, answer.decision.action, answer.content) == (False, "clarify", "The llama says hello.")


def test_a_question_is_no_models_outcome(tmp_path: Path) -> None:
    asked = OutcomeEvent("d1", "m", None, 0.004, clarified=True, at_s=1.0)
    metrics, alerts = LiveMetrics(clock=lambda: 2.0), Alerts(channels=())
    for recorder in (metrics, alerts):
        recorder.record(asked)
    assert metrics.snapshot(60.0).total.requests == 0
    assert metrics.counters.events == {"clarification": 1}
    assert alerts.check() == []
    store = open_store(tmp_path)
    store.append([asked])
    assert export_outcomes(store, tmp_path / "out.jsonl") == 0
    store.close()
