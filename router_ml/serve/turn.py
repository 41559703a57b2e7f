"""One turn of a user may be many calls: each result of a tool goes to the model that asked for the tool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from router_ml.serve.answer import Answer
from router_ml.serve.answer_cache.key import digest, user_scope
from router_ml.serve.request_state import RequestState
from router_ml.serve.wire import part

_TURNS = 10_000  # tool loops under way at once
_TTL_S = 3600.0  # a tool may take long


@dataclass(frozen=True, slots=True)
class Turn:
    """Which model asked for a tool, and the unit of assignment it did so under (None outside an experiment)."""

    model: str
    unit: str | None


class Turns:
    """The tool loops under way, recognised by session where there is one and by content. Lives in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._turns: TTLCache[str, Turn] = TTLCache(_TURNS, _TTL_S, clock)

    def find(self, job: RequestState) -> Turn | None:
        """Return the turn whose tool result this request brings, or None."""
        after = _after_last_user(job.request.messages)
        if not in_tool_loop(after):
            return None
        calls = next((part(m, "tool_calls") for m in reversed(after) if part(m, "tool_calls")), ())
        found = (self._turns.get(key) for key in _keys(job, [_call(call) for call in calls]))
        return next((turn for turn in found if turn is not None), None)

    def answered(self, job: RequestState, answer: Answer) -> None:
        """Note which model asked for a tool."""
        calls = answer.reply.tool_calls
        if calls:
            turn = Turn(answer.model, job.assignment.unit if job.assignment else None)
            self._turns.update(dict.fromkeys(_keys(job, [_call(call) for call in calls]), turn))


def in_tool_loop(messages: Sequence[Any]) -> bool:
    """Whether the latest words of the user led to the use of a tool that is not answered yet."""
    return any(part(m, "role") == "tool" or part(m, "tool_calls") for m in _after_last_user(messages))


def _after_last_user(messages: Sequence[Any]) -> Sequence[Any]:
    last = max((i for i, message in enumerate(messages) if part(message, "role") == "user"), default=-1)
    return messages[last + 1 :]


def _keys(job: RequestState, calls: Sequence[Any]) -> Iterator[str]:
    """Yield what a turn is recognised by: with the calls first, for users may begin alike."""
    messages = job.request.messages
    before = messages[: len(messages) - len(_after_last_user(messages))]
    session = job.context.session_id
    scope = user_scope(job.context.extra.get("user_id"), session)
    begin = digest([scope, before[-1:] if session else before])
    yield digest([begin, calls])
    yield begin


def _call(call: Mapping[str, Any]) -> tuple[Any, Any]:
    function = call.get("function") or {}
    return function.get("name"), function.get("arguments")
