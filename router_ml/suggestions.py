"""Suggest the known key that a mistyped one probably means."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Iterable
from itertools import islice

log = logging.getLogger(__name__)

_ALIKE = 0.8  # ratio of matching characters (Ratcliff and Obershelp 1988), as `difflib` computes it
_MAX_CHARS = 64  # longer keys are not compared; comparing takes quadratic time
_MAX_KEYS = 32  # of one mapping that are compared


def warn_of_typos(given: Iterable[object], known: frozenset[str], where: str) -> None:
    """Log a warning, once a process, for each unknown key that is nearly a known one. Unknown keys are not an error."""
    for key in islice(given, _MAX_KEYS):
        if isinstance(key, str) and key not in known and len(key) <= _MAX_CHARS:
            _warn(key, known, where)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known name is similar, else nothing."""
    similar = difflib.get_close_matches(name[:_MAX_CHARS], list(known), n=1, cutoff=0.6)
    return f"; did you mean {similar[0]!r}?" if similar else ""


@functools.lru_cache(maxsize=256)
def _warn(key: str, known: frozenset[str], where: str) -> None:
    similar = difflib.get_close_matches(key, sorted(known), n=1, cutoff=_ALIKE)
    if similar:
        log.warning("%s: the unknown key %r is ignored; did you mean %r?", where, key, similar[0])
