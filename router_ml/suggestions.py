"""Keys that look like a slip of the pen: unknown, and nearly a known one."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Iterable

log = logging.getLogger(__name__)

_ALIKE = 0.8  # ratio of matching characters (Ratcliff and Obershelp 1988), as `difflib` computes it
_MAX_CHARS = 64  # longer keys are no slips; comparing takes quadratic time


def warn_of_slips(given: Iterable[object], known: frozenset[str], where: str) -> None:
    """Logs a warning, once a process, for each unknown key that is nearly a known one. Unknown keys are no error."""
    for key in given:
        if isinstance(key, str) and key not in known and len(key) <= _MAX_CHARS:
            _warn(key, known, where)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is alike, else nothing."""
    alike = difflib.get_close_matches(name[:_MAX_CHARS], list(known), n=1, cutoff=0.6)
    return f"; did you mean {alike[0]!r}?" if alike else ""


@functools.lru_cache(maxsize=256)
def _warn(key: str, known: frozenset[str], where: str) -> None:
    alike = difflib.get_close_matches(key, sorted(known), n=1, cutoff=_ALIKE)
    if alike:
        log.warning("%s: the unknown key %r is ignored; did you mean %r?", where, key, alike[0])
