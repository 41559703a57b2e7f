"""Read what is to be decided: a query or the messages of a conversation, in its context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from router_ml.context import conversation_context, parse_context
from router_ml.decide.features.composition import visible_text
from router_ml.errors import QueryError
from router_ml.harness import user_text
from router_ml.messages import clean_text, estimate_tokens, read_messages
from router_ml.types import Context

ContextLike = Context | Mapping[str, Any] | None
LONG_PROMPT_TOKENS = 4_000  # shorter prompts fit the window of every model in use
EDGE_CHARS = 4_000  # only the beginning and the end of a text are read
# Characters that are stripped from a query: white space, NUL, the byte order mark, zero-width marks.
_BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\x00\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"


def read_query(query: object, context: ContextLike) -> tuple[str, Context]:
    """Return the text to classify and its context.

    `query` is a string, or the messages of a conversation in any form that `read_messages` takes; the text is then the
    last message of the user, and the rest completes the context. Raises `QueryError` or `ContextError`."""
    if isinstance(query, str):
        parsed = parse_context(context)
        text = query
    elif _holds_messages(query):
        conversation = read_messages(query)
        parsed = conversation_context(conversation, context)
        text = conversation.query
    else:
        raise QueryError(f"a query must be a string, or a list of messages with a role and content; {_advice(query)}")
    own_text = readable(text)
    if len(text) - len(own_text) > LONG_PROMPT_TOKENS // 4:  # text that a program added counts, too
        around = int(estimate_tokens(text) - estimate_tokens(own_text))
        parsed = replace(parsed, unread_tokens=parsed.unread_tokens + max(around, 0))
    return own_text, parsed


def readable(text: str) -> str:
    """Return the text to classify: the user's own text in composed letters, without invisible characters."""
    if not text.isascii():
        if len(text) <= 2 * EDGE_CHARS:
            text = visible_text(text)
        else:  # composing many marks takes quadratic time, and the rest is not read
            between = clean_text(text[EDGE_CHARS:-EDGE_CHARS])
            text = visible_text(text[:EDGE_CHARS]) + between + visible_text(text[-EDGE_CHARS:])
    return (user_text(text) or text).strip(_BLANK)


def sized(text: str, context: Context) -> Context:
    """Return the context with an estimate of its tokens where the prompt could exceed a context window."""
    if context.prompt_tokens is not None:
        return context
    most = len(text) + context.unread_tokens
    if context.history:
        most += sum(len(turn.content) for turn in context.history)
    schemas = sum(tool.schema_chars for tool in context.tools) // 4 if context.tools else 0
    if most + schemas < LONG_PROMPT_TOKENS:  # no script takes more than a token a character
        return context
    spoken = estimate_tokens(text) + sum(estimate_tokens(turn.content) for turn in context.history)
    tokens = int(spoken + context.unread_tokens + schemas)
    return context if tokens < LONG_PROMPT_TOKENS else replace(context, prompt_tokens=tokens)


def _holds_messages(query: object) -> bool:
    if isinstance(query, list | tuple):
        return bool(query) and not isinstance(query[0], str) and not _is_scalar(query[0])
    return hasattr(query, "to_messages")


def _advice(query: object) -> str:
    if isinstance(query, list | tuple):
        found = f"of {type(query[0]).__name__}" if query else "that is empty"
        return (
            f"found a {type(query).__name__} {found}: give each message a role, "
            "or use select_models (decide_many of a Router) for several queries"
        )
    return f"found {type(query).__name__}: decode or convert it first"


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | bytes)
