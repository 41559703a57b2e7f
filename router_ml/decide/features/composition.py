"""Puts a query and its context into the one text the sentence encoder reads.

One encoder pass must see what resolves a query: the last turns, the attachment. The tools on offer are left out: they
say what an assistant can do, not what was asked, and stand in the table of features instead. The query stands
first and each part has its own share of the length, so that a long history never crowds out the query itself.
"""

from __future__ import annotations

from router_ml.types import Context

SEPARATOR = " [SEP] "  # BERT-style encoders read it as their own segment mark
MAX_QUERY_CHARS = 800
MAX_TURNS = 4
MAX_TURN_CHARS = 240
MAX_ATTACHMENT_CHARS = 80
_MARK = {"user": "u: ", "assistant": "a: "}


def shorten(text: str, limit: int) -> str:
    """Keep the first two thirds and the last third of a text that is too long."""
    if len(text) <= limit:
        return text
    head = 2 * limit // 3
    return f"{text[:head]} … {text[-(limit - head) :]}"


def compose(text: str, context: Context) -> str:
    """The encoder's input for a query in its context; the bare query where there is no context."""
    parts = [shorten(text.strip(), MAX_QUERY_CHARS)]
    if context.history:
        turns = context.history[-MAX_TURNS:]
        parts.append(" ".join(_MARK.get(turn.role, "") + shorten(turn.content, MAX_TURN_CHARS) for turn in turns))
    if context.attachment:
        parts.append("file: " + context.attachment[:MAX_ATTACHMENT_CHARS])
    return SEPARATOR.join(parts) if len(parts) > 1 else parts[0]
