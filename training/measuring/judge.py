"""A judge model decides whether a text meets a criterion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from router_ml.events.blind_question import OPTIONS, SCHEMA, question
from router_ml.hosts.failure import classify
from router_ml.types import Query
from training.measuring.conversation import ChatClient
from training.measuring.measured_answer import MeasuredAnswer
from training.measuring.text_checks import without_thoughts


class JudgeDecision(NamedTuple):
    """The decision of a judge model."""

    passed: bool | None  # None: it gave no usable decision
    reason: str


class Judge:
    """A judge model, asked at temperature 0 for a decision in JSON."""

    def __init__(self, client: ChatClient, model: str, options: Mapping[str, Any] | None = None) -> None:
        self._client, self.model = client, model
        self._options = {**OPTIONS, **(options or {})}

    def decide(self, query: Query, answer: MeasuredAnswer, criterion: str) -> JudgeDecision:
        """Return the decision on one answer.

        Raises what the client raises if the host cannot be reached."""
        text = without_thoughts(answer.content)
        messages = question(query.text, text, criterion)
        try:
            reply = self._client.chat(self.model, messages, format=SCHEMA, options=self._options, think=False)
            decision = json.loads(without_thoughts(reply.message.content or ""))
            return JudgeDecision(bool(decision["pass"]), str(decision.get("reason", ""))[:300])
        except Exception as error:
            failure = classify(error)
            if failure.kind in ("refused", "connection", "busy"):
                raise
            return JudgeDecision(None, str(failure))
