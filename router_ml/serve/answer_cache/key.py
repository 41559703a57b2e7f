"""What makes two requests the same one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class CacheKey:
    """A request's identity: `whole` with its text, `setting` with everything but the last words of the user."""

    whole: str
    setting: str
    text: str


def cache_key(
    scope: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    form: Mapping[str, Any] | None = None,
    policy: str = "",
) -> CacheKey:
    """The key of a request. Two requests share it only where scope (a user or session), every message, the system
    prompt included, tools, options, `form` (format, think, ...) and model policy are equal."""
    turns = [dict(message) for message in messages]
    last = max((i for i, turn in enumerate(turns) if turn.get("role") == "user"), default=-1)
    text = str(turns[last].get("content") or "") if last >= 0 else ""
    if last >= 0:
        turns[last] = {**turns[last], "content": None}
    setting = _digest([scope, turns, list(tools), options or {}, form or {}, policy])
    return CacheKey(_digest([setting, text]), setting, text)


def deterministic(options: Mapping[str, Any] | None) -> bool:
    """Whether the same request must give the same answer: temperature 0, or a fixed seed."""
    options = options or {}
    temperature = options.get("temperature")
    return temperature == 0 or options.get("seed") is not None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
