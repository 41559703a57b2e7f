"""Check a text: exact, contains, regular expression, JSON schema, or whether it asks a clarifying question."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jsonschema.validators import validator_for

from training.measuring.argument_values import plain_text

_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_ASKS = re.compile(
    r"[?？؟]|please (tell|let me know|specify|provide|clarify|confirm|share|give)"
    r"|let me know (which|what|who|when|where)|i('ll| will)? need (to know|more|the|your)",
    re.IGNORECASE,
)


def score_text(checks: Mapping[str, Any], answer: str) -> list[str]:
    """Return a line for each check that fails; the judge's check is not made here."""
    text = without_thoughts(answer)
    return [problem for name, check in _CHECKS.items() if name in checks and (problem := check(checks[name], text))]


def without_thoughts(text: str) -> str:
    """Return the answer without the thinking that some models write into it."""
    return _THOUGHTS.sub("", text).strip()


def is_question(text: str) -> bool:
    """Return whether a text asks the user something: a question mark, or an English phrase that asks for more."""
    return _ASKS.search(text) is not None


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _exact(wanted: Any, text: str) -> str:
    return "" if plain_text(wanted) == plain_text(text) else f"says {text[:60]!r}, expected exactly {wanted!r}"


def _contains(wanted: Any, text: str) -> str:
    missing = [part for part in _texts(wanted) if plain_text(part) not in plain_text(text)]
    return f"does not say {missing[0]!r}" if missing else ""


def _contains_any(wanted: Any, text: str) -> str:
    found = any(plain_text(part) in plain_text(text) for part in _texts(wanted))
    return "" if found else f"says none of {_texts(wanted)}"


def _regex(wanted: Any, text: str) -> str:
    return "" if re.search(wanted, text) else f"does not match {wanted!r}"


def _json_schema(schema: Any, text: str) -> str:
    fenced = _FENCE.search(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except ValueError:
        return "is not JSON"
    error = next(validator_for(schema)(schema).iter_errors(value), None)
    return "" if error is None else f"does not fit the JSON schema: {error.message[:120]}"


def _asks(wanted: Any, text: str) -> str:
    if is_question(text) is wanted:
        return ""
    return "does not ask a question" if wanted else "asks a question"


_CHECKS: dict[str, Callable[[Any, str], str]] = {
    "exact": _exact,
    "contains": _contains,
    "contains_any": _contains_any,
    "regex": _regex,
    "json_schema": _json_schema,
    "asks": _asks,
}
