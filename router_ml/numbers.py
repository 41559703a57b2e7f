"""Read numbers of a context; numpy's are numbers, too."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from reprlib import Repr
from typing import Any

from router_ml.errors import ContextError

MAX_COUNT = 10**12  # more tools or tokens than this is a mistake
MAX_SECONDS = 1e9
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxtuple, _SHORT.maxset = 2, 3, 3, 3, 3


def short_repr(value: object) -> str:
    """Return what an error may show of any value, in bounded time: at most 60 characters."""
    try:
        return _SHORT.repr(value)[:60]
    except Exception:  # an integer of too many digits, or an object of another library
        return type(value).__name__


def is_number(value: object) -> bool:
    """Return whether a value is a real number (numpy's included) and no truth value."""
    return isinstance(value, int | float | numbers.Real) and not isinstance(value, bool)


def count(raw: Mapping[str, Any], key: str) -> int | None:
    """Return a count, or None if there is none. Raises `ContextError` for any other value."""
    value = raw.get(key)
    if value is None:
        return None
    if not is_number(value) or not 0 <= value <= MAX_COUNT:
        raise ContextError(f"{key} must be a number, 0 or more, found {short_repr(value)}", key)
    return int(value)


def seconds(raw: Mapping[str, Any], key: str) -> float | None:
    """Return a number of seconds above 0, or None if there is none. Raises `ContextError` for any other value."""
    value = raw.get(key)
    if value is None:
        return None
    if not is_number(value) or not 0 < value <= MAX_SECONDS:
        raise ContextError(f"{key} must be a number of seconds above 0, found {short_repr(value)}", key)
    return float(value)
