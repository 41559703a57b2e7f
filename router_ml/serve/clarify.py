"""Clarifying questions: when the user is asked one instead of getting an answer, and what the caller gets then."""

from __future__ import annotations

from datetime import UTC, datetime

from router_ml.hosts.reply import Reply
from router_ml.messages import Conversation
from router_ml.serve.answer import Answer, Timings
from router_ml.serve.request_state import RequestState


def asks_clarifying_question(state: RequestState, question: str | None) -> bool:
    """Return whether to ask the user `question` after a decision; never if the caller named a model."""
    if question is None or state.chosen.action != "clarify" or state.model is not None:
        return False
    return may_ask(state.request.conversation, question)


def may_ask(conversation: Conversation, question: str | None) -> bool:
    """Return whether a conversation may be answered by a question: never twice in a row, never in a tool loop."""
    messages = conversation.messages
    if not messages or messages[-1].role != "user" or conversation.in_tool_loop:
        return False
    return next((message.text for message in reversed(messages) if message.role == "assistant"), None) != question


def clarifying_answer(state: RequestState, question: str, now_s: float) -> Answer:
    """Return the question as an answer; `now_s` is a point on the gateway's clock."""
    message = {"role": "assistant", "content": question}
    wire = {"model": "", "created_at": datetime.now(UTC).isoformat(), "message": message}
    reply = Reply.from_wire({**wire, "done": True, "done_reason": "stop"})
    timings = Timings(total_s=now_s - state.began_s, decide_s=state.decide_s)
    return Answer(reply, state.chosen, "", timings, clarify=True)
