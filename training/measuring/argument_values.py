"""Compare an argument that a model gave with the expected one, whatever its type or notation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Any

from router_ml.errors import InputError

ANY, CONTAINS, REGEX, PRESENT = "$any", "$contains", "$regex", "$present"
PATTERNS = (ANY, CONTAINS, REGEX, PRESENT)
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_DROPPED = re.compile(r"""^["'“”‘’\s]+|["'“”‘’\s.!]+$""")


def agrees(expected: Any, given: Any) -> bool:
    """Return whether a given value means the expected one.

    Types are coerced towards the expected value ("5", 5 and 5.0 agree; so do true and "true", "Dana" and ["Dana"]),
    texts are compared without regard to case, spacing, outer quotes and a final full stop, dates and times as such,
    lists in any order. A mapping with one key beginning with `$` is a pattern: `{"$any": [values]}`,
    `{"$contains": text or [texts]}`, `{"$regex": expression}`, `{"$present": true}`."""
    if pattern := pattern_of(expected):
        return _matches(pattern, expected[pattern], given)
    if isinstance(expected, bool):
        return _as_bool(given) is expected
    if isinstance(expected, int | float):
        return _same_number(float(expected), given)
    if isinstance(expected, str):
        return _same_text(expected, given)
    if isinstance(expected, Mapping):
        return _same_mapping(expected, given)
    if isinstance(expected, Sequence):
        return _same_list(expected, given)
    return absent(given)


def absent(value: Any) -> bool:
    """Return whether a value is empty: models fill optional parameters with null, "" or []."""
    return value is None or (isinstance(value, str | list | dict) and (not value or value in ("null", "None")))


def pattern_of(expected: Any) -> str | None:
    """Return the key of a pattern, or None for a plain value."""
    if isinstance(expected, Mapping) and len(expected) == 1:
        key = str(next(iter(expected)))
        return key if key.startswith("$") else None
    return None


def check_pattern(expected: Any) -> None:
    """Raise `InputError` for a pattern, at any depth, that could match nothing."""
    pattern = pattern_of(expected)
    if pattern is None:
        inner = expected.values() if isinstance(expected, Mapping) else expected if isinstance(expected, list) else ()
        for value in inner:
            check_pattern(value)
    elif pattern not in PATTERNS:
        raise InputError(f"unknown pattern {pattern!r}; use one of {', '.join(PATTERNS)}")
    elif pattern == REGEX:
        check_regex(expected[REGEX])
    elif pattern == ANY and not (isinstance(expected[ANY], list) and expected[ANY]):
        raise InputError('"$any" takes a list of acceptable values')


def check_regex(expression: Any) -> None:
    """Raise `InputError` for a text that is not a regular expression."""
    try:
        re.compile(expression)
    except (re.error, TypeError) as error:
        raise InputError(f"{expression!r} is not a regular expression ({error})") from error


def plain_text(value: Any) -> str:
    """Return a text in lower case, without extra spacing, outer quotes and a final full stop."""
    return _DROPPED.sub("", " ".join(str(value).split())).casefold()


def _matches(pattern: str, wanted: Any, given: Any) -> bool:
    if pattern == ANY:
        return any(agrees(value, given) for value in wanted)
    if pattern == PRESENT:
        return absent(given) is not bool(wanted)
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    if pattern == REGEX:
        return re.search(wanted, text, re.IGNORECASE) is not None
    return all(plain_text(part) in plain_text(text) for part in ([wanted] if isinstance(wanted, str) else wanted))


def _as_bool(given: Any) -> bool | None:
    text = plain_text(given)
    return True if text in _TRUE else False if text in _FALSE else None


def _same_number(expected: float, given: Any) -> bool:
    if isinstance(given, bool):
        return False
    try:
        number = float(given.replace(",", "") if isinstance(given, str) else given)
    except (TypeError, ValueError):
        return False
    return math.isclose(expected, number, rel_tol=1e-9, abs_tol=1e-12)


def _same_text(expected: str, given: Any) -> bool:
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if given is None or isinstance(given, list | dict):
        return False
    if plain_text(expected) == plain_text(given):
        return True
    moment = _moment(expected)
    return moment is not None and moment == _moment(str(given))


def _moment(text: str) -> datetime | time | None:
    """Parse a date, time or both in ISO 8601; a date without a time is its midnight."""
    text = text.strip()
    for read in (datetime.fromisoformat, time.fromisoformat):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _same_mapping(expected: Mapping[str, Any], given: Any) -> bool:
    given = _decoded(given)
    if not isinstance(given, Mapping):
        return False
    given_keys = {key for key, value in given.items() if not absent(value)}
    needed = {key for key, value in expected.items() if not absent(value)}
    return given_keys == needed and all(agrees(expected[key], given[key]) for key in needed)


def _same_list(expected: Sequence[Any], given: Any) -> bool:
    given = _decoded(given)
    if isinstance(given, str):
        given = [part for part in (piece.strip() for piece in given.split(",")) if part]
    elif not isinstance(given, list | tuple):
        given = [given]
    return len(expected) == len(given) and len(matching(expected, given, agrees)) == len(expected)


def _decoded(given: Any) -> Any:
    """Decode lists and objects that were given as JSON text."""
    if not isinstance(given, str) or not given.lstrip().startswith(("[", "{")):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return given


def matching(left: Sequence[Any], right: Sequence[Any], fits: Any) -> dict[int, int]:
    """Return, for each index on the right that is used, its partner on the left: a largest matching.

    Each item is used once (Kuhn's augmenting paths)."""
    partner: dict[int, int] = {}

    def place(i: int, tried: set[int]) -> bool:
        for j, item in enumerate(right):
            if j in tried or not fits(left[i], item):
                continue
            tried.add(j)
            if j not in partner or place(partner[j], tried):
                partner[j] = i
                return True
        return False

    for i in range(len(left)):
        place(i, set())
    return partner
