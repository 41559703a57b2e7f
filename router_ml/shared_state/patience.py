"""How long one request may wait for shared state: 5 ms in all, however often it asks."""

from __future__ import annotations

import contextvars

PATIENCE_S = 0.004  # 5 ms, less what a timer of the event loop may be late

_left: contextvars.ContextVar[list[float] | None] = contextvars.ContextVar("router_ml_patience", default=None)


def begin() -> None:
    """Give a request its whole patience; a request that has some keeps what is left."""
    if _left.get() is None:
        _left.set([PATIENCE_S])


def renew() -> None:
    """Give it back to a request that waited for something else meanwhile, such as a place."""
    if (left := _left.get()) is not None:
        left[0] = PATIENCE_S


def left_s(otherwise_s: float = PATIENCE_S) -> float:
    """Return what is left, in seconds; `otherwise_s` outside of a request."""
    left = _left.get()
    return otherwise_s if left is None else left[0]


def spend(seconds: float) -> None:
    """Take off what was waited."""
    if (left := _left.get()) is not None:
        left[0] = max(0.0, left[0] - seconds)
