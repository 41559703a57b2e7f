"""One turn of a user may be many calls: each result of a tool goes to the model that asked for the tool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from router_ml.serve.answer_cache.key import digest, user_scope
from router_ml.serve.request_state import RequestState

_TOOL_LOOPS = 10_000  # tool loops under way at once
_TTL_S = 3600.0  # a tool may take long


@dataclass(frozen=True, slots=True)
class ToolLoop:
    """Which model asked for a tool, and the unit of assignment it did so under (None outside an experiment)."""

    model: str
    unit: str | None


class ToolLoops:
    """The tool loops under way, recognised by session where there is one and by content. Lives in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._tool_loops: TTLCache[str, ToolLoop] = TTLCache(_TOOL_LOOPS, _TTL_S, clock)

    def find(self, state: RequestState) -> ToolLoop | None:
        """Return the tool loop whose result this request holds, or None."""
        if not state.request.conversation.in_tool_loop:
            return None
        calls = next((m["tool_calls"] for m in reversed(state.request.messages) if "tool_calls" in m), ())
        found = (self._tool_loops.get(key) for key in _keys(state, calls))
        return next((turn for turn in found if turn is not None), None)

    def asked(self, state: RequestState, model: str, calls: Sequence[Mapping[str, Any]]) -> None:
        """Note which model asked for tools."""
        if calls:
            turn = ToolLoop(model, state.assignment.unit if state.assignment else None)
            self._tool_loops.update(dict.fromkeys(_keys(state, calls), turn))


def _keys(state: RequestState, calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the keys that identify a tool loop, those with calls first, since users may begin with equal messages."""
    conversation, session = state.request.conversation, state.context.session_id
    begin = digest([
        user_scope(state.context.extra.get("user_id"), session),
        conversation.query if session else conversation.turn_key,
    ])  # fmt: skip
    yield digest([begin, [(call["function"]["name"], call["function"].get("arguments") or {}) for call in calls]])
    yield begin
