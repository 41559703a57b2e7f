"""The judge model: it sees request and answer alone, judges a share, and costs no request anything."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

from router_ml.events.event import FeedbackEvent
from router_ml.messages import Message
from router_ml.serve.judge import BlindJudge, settings_judge
from router_ml.settings import Settings
from tests.ollama_double import DoubleModel
from tests.serve.deciders import Recording
from tests.timing import until

ASKED = (Message("system", "secret rules"), Message("user", "capital of France?"))


def test_its_word_is_feedback_of_its_own_kind(recording: Recording) -> None:
    seen: list[Any] = []

    def ask(messages: Any) -> str:
        seen.append(messages)
        return json.dumps({"reason": "wrong", "pass": False})

    BlindJudge(ask, recording, 1.0).consider("d1", ASKED, "Lyon")
    until(lambda: recording.events)
    [event] = recording.of(FeedbackEvent)
    assert (event.decision_id, event.kind, event.score, event.explicit) == ("d1", "judge", 0.0, False)
    text = json.dumps(seen)
    assert "capital of France?" in text
    assert "Lyon" in text
    assert "secret rules" not in text


def test_it_judges_the_share_it_was_told(recording: Recording) -> None:
    draws = iter([0.01, 0.5, 0.019, 0.02])
    judge = BlindJudge(lambda _: '{"pass": true}', recording, 0.02, draw=lambda: next(draws))
    for i in range(4):
        judge.consider(f"d{i}", ASKED, "Paris")
    until(lambda: len(recording.events) == 2)
    assert [event.decision_id for event in recording.events] == ["d0", "d2"]


def test_a_slow_or_senseless_judge_holds_nobody_up(recording: Recording) -> None:
    hold, answers = threading.Event(), iter(["no JSON", '{"pass": "maybe"}', *['{"pass": true}'] * 50])

    def ask(_: Any) -> str:
        hold.wait(10)
        return next(answers)

    judge = BlindJudge(ask, recording, 1.0)
    for i in range(50):  # more than the queue holds
        judge.consider(f"d{i}", ASKED, "Paris")
    hold.set()
    until(lambda: len(recording.events) >= 5)
    assert len(recording.events) <= 9
    assert all(event.score == 1.0 for event in recording.events)


def test_the_gateway_has_its_answers_judged_by_the_model_of_the_settings(
    gateway_of: Any, double: Any, recording: Recording
) -> None:
    double.models["judge:1b"] = DoubleModel("judge:1b", reply=lambda body: '{"reason": "right", "pass": true}')
    settings = dataclasses.replace(Settings(), judge="judge:1b", judge_share=1.0, ollama_host=double.url)
    gateway = gateway_of(judge=settings_judge(settings, recording))
    answer = gateway.chat("hello")
    until(lambda: recording.of(FeedbackEvent))
    [event] = recording.of(FeedbackEvent)
    assert (event.decision_id, event.kind, event.score) == (answer.decision.decision_id, "judge", 1.0)
    assert settings_judge(Settings(), recording) is None
