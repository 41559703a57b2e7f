"""Asking back instead of answering: when a gateway does so, and what the caller gets then."""

from __future__ import annotations

from datetime import UTC, datetime

from router_ml.hosts.reply import Reply
from router_ml.serve.answer import Answer, Timings
from router_ml.serve.request import part
from router_ml.serve.request_state import RequestState


def asks_back(job: RequestState, question: str | None) -> bool:
    """Whether the user is to be asked, once a decision was made.

    Never twice in a row, never in the middle of a tool's use, and not where the caller insists on a model."""
    if question is None or job.chosen.action != "clarify" or job.model is not None:
        return False
    if part(job.request.messages[-1], "role") != "user":
        return False
    said = (part(m, "content") for m in reversed(job.request.history) if part(m, "role") == "assistant")
    return next(said, None) != question


def asked_back(job: RequestState, question: str, now_s: float) -> Answer:
    """The question as an answer; `now_s` is a point on the gateway's clock."""
    message = {"role": "assistant", "content": question}
    wire = {"model": "", "created_at": datetime.now(UTC).isoformat(), "message": message}
    reply = Reply.from_wire({**wire, "done": True, "done_reason": "stop"})
    timings = Timings(total_s=now_s - job.began_s, decide_s=job.decide_s)
    return Answer(reply, job.chosen, "", timings, clarify=True)
