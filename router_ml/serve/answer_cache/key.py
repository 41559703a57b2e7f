"""What makes two requests the same one."""

from __future__ import annotations

import hashlib
import json
import numbers
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A request's identity: `whole` with its text, `setting` with everything but the last message of the user."""

    whole: str
    setting: str
    text: str


def cache_key(
    scope: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    form: Mapping[str, Any] | None = None,
    policy: str = "",
) -> CacheKey:
    """Return the key of a request.

    Two requests share it only where `scope` (kind and id of a user or session), every message with its images, tools,
    options, `form` (format, think, ...) and the values of the policy are equal."""
    turns = [dict(message) for message in messages]
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=-1)
    text = str(turns[last].get("content") or "") if last >= 0 else ""
    if last >= 0:
        turns[last] = {**turns[last], "content": None}
    setting = digest([scope, turns, list(tools), options or {}, form or {}, policy])
    return CacheKey(digest([setting, text]), setting, text)


def user_scope(user_id: Any, session_id: str | None) -> tuple[str, str, str] | None:
    """Return whose answers may be shared: those of one user, else of one session; None if neither is known.

    The kind and the type of the id count, so the user 7, the user "7" and the session "7" are three. An id of another
    type than text, whole number or UUID is not known: its text may change, or be another's."""
    if user_id is None or user_id == "":
        return ("session", "str", session_id) if session_id else None
    if isinstance(user_id, numbers.Integral) and not isinstance(user_id, bool):  # of numpy, too
        return ("user", "int", str(int(user_id)))
    return ("user", type(user_id).__name__, str(user_id)) if isinstance(user_id, str | bool | uuid.UUID) else None


def deterministic(options: Mapping[str, Any] | None) -> bool:
    """Return whether the same request must give the same answer: temperature 0, or a fixed seed."""
    options = options or {}
    return options.get("temperature") == 0 or options.get("seed") is not None


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, as 64 hexadecimal characters."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
