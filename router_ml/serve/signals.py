"""Signs that an answer was not right, read from requests and answers as they pass; nothing of them is stored.

Of the answer itself: a tool call that cannot be carried out, or no JSON where JSON was asked for. Of what follows in
the same conversation: the same query again, the query again in other words, a tool that answers with an error, a user
who leaves while the answer is written. `router_ml.events.judgement` says how much each weighs.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cachetools import TTLCache

from router_ml.events.event import FeedbackEvent
from router_ml.serve.answer import Answer, may_be_empty
from router_ml.serve.answer_cache.key import digest, user_scope
from router_ml.serve.request_state import RequestState

WINDOW_S = 180.0  # how long after an answer the next query may say something of it
_CONVERSATIONS = 10_000
_MAX_WORDS = 400  # of a query that is compared
_FEWEST_WORDS = 3
_WORD = re.compile(r"\w+")
# The beginnings of corrections. A plain "no" is none: "no thanks".
_CORRECTION = re.compile(
    r"(?i)\W*(?:no[,.! ]+(?:i |not |that|the )|nope\b|wrong\b|that(?:'s|’s| is) (?:wrong|not)|not what i|i meant|i said"
    r"|i asked|try again|once more|nein[,. ]+(?:ich|nicht|das)|falsch\b|ich meinte|nochmal\b"
    r"|das (?:ist|war) (?:falsch|nicht)|non[,. ]+(?:je|pas|ce)|je voulais dire|c(?:'|’)est faux"
    r"|no[,. ]+quer[ií]a|me refer[ií]a|eso no)"
)
_TOOL_ERROR = re.compile(
    r'(?i)\W{0,4}(?:error|exception|traceback|failed|failure|invalid argument|status"?\W{1,3}error)\b'
)


@dataclass(frozen=True, slots=True)
class _Answered:
    """The last answer of a conversation: enough to see what the next request says of it."""

    decision_id: str
    turn: str  # digest of every message up to the query
    words: tuple[str, ...]
    called_tools: bool


class Signals:
    """Reads signs from the requests of one process. Lives in one event loop, as the gateway does."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._last: TTLCache[str, _Answered] = TTLCache(_CONVERSATIONS, WINDOW_S, clock)

    def of_earlier(self, state: RequestState) -> FeedbackEvent | None:
        """Return what a request says of the answer before it in its conversation, if anything."""
        key = _conversation(state)
        last = self._last.pop(key, None) if key else None
        if last is None or last.decision_id == state.chosen.decision_id:
            return None
        kind = _sign(state, last)
        return None if kind is None else FeedbackEvent(last.decision_id, kind, 0.0)

    def answered(self, state: RequestState, answer: Answer) -> None:
        """Remember an answer until the next request of its conversation."""
        key = _conversation(state)
        if key is not None and not answer.clarify and not answer.cached:
            words = tuple(_WORD.findall(state.request.text.lower()[: 10 * _MAX_WORDS]))[:_MAX_WORDS]
            turn = state.request.conversation.turn_key
            self._last[key] = _Answered(state.chosen.decision_id, turn, words, bool(answer.reply.tool_calls))


def left(state: RequestState) -> FeedbackEvent | None:
    """Return the sign of a user who left a stream that had begun; None if nothing was passed on yet."""
    if state.first_token_s is None or state.decision is None:
        return None
    return FeedbackEvent(state.decision.decision_id, "left", 0.0)


def invalid(state: RequestState, answer: Answer) -> str | None:
    """Return why an answer cannot be used, "tool_invalid" or "format_invalid", or None.

    What the caller's own limit on tokens has cut off is no fault."""
    if answer.clarify or answer.empty or answer.reply.done_reason == "length" or may_be_empty(state.request.options):
        return None
    if answer.reply.tool_calls:
        return None if all(_callable(call, state.request.tools) for call in answer.reply.tool_calls) else "tool_invalid"
    return None if _has_format(answer.reply.content, state.request.format) else "format_invalid"


def _conversation(state: RequestState) -> str | None:
    """Return a key that the requests of one conversation share; None where users cannot be told apart."""
    conversation, session = state.request.conversation, state.context.session_id
    user = state.context.extra.get("user_id")
    if session is None and user is None and not conversation.history:
        return None
    begin = [] if session else [message.text for message in conversation.messages if message.role != "system"][:2]
    return digest([user_scope(user, session), begin if conversation.history else []])


def _sign(state: RequestState, last: _Answered) -> str | None:
    conversation = state.request.conversation
    if conversation.in_tool_loop:
        failed = last.called_tools and _TOOL_ERROR.match(conversation.messages[-1].text[:200])
        return "tool_failed" if failed else None
    if conversation.turn_key == last.turn:
        return "retry"
    again = _CORRECTION.match(state.request.text) or (
        conversation.history and _says_again(state.request.text, last.words)  # else it may be another task on the text
    )
    return "rephrased" if again else None


def _says_again(text: str, before: tuple[str, ...]) -> bool:
    """Return whether a query has all the words of the one before, in another order or with a few more.

    "kitchen lights" after "bedroom lights" is another query, so likeness alone does not count."""
    now = set(_WORD.findall(text.lower()[: 10 * _MAX_WORDS]))
    return len(set(before)) >= _FEWEST_WORDS and set(before) <= now and len(now) <= 3 * len(set(before))


def _callable(call: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...]) -> bool:
    """Return whether a tool was offered and gets what it requires, within its choices."""
    function = call["function"]
    offered = (tool.get("function") for tool in tools)
    named = next((one for one in offered if isinstance(one, Mapping) and one.get("name") == function["name"]), None)
    if named is None:
        return False
    schema = named.get("parameters")
    if not isinstance(schema, Mapping):
        return True
    required, properties = schema.get("required") or (), schema.get("properties")
    given = function.get("arguments") or {}
    if not all(given.get(name) is not None for name in required if isinstance(name, str)):
        return False
    for name, value in given.items():
        declared = properties.get(name) if isinstance(properties, Mapping) else None
        choices = declared.get("enum") if isinstance(declared, Mapping) else None
        if isinstance(choices, list) and value is not None and value not in choices:
            return False
    return True


def _has_format(content: str, wanted: Any) -> bool:
    """Return whether a text is JSON where JSON was asked for, with the keys that the schema requires at the top."""
    if not wanted:
        return True
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    required = wanted.get("required") if isinstance(wanted, Mapping) else None
    if not isinstance(required, list) or wanted.get("type", "object") != "object":
        return True
    return isinstance(value, dict) and all(name in value for name in required if isinstance(name, str))
