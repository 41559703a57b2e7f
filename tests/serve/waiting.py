"""Waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(happened: Callable[[], object], patience_s: float = 5.0) -> None:
    """Returns once it has happened; fails where it does not."""
    limit = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)
