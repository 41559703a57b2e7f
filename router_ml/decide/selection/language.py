"""The language of a query, for rules that name one: by its script, else by py3langid, where that is installed."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

_SCRIPTS = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile("[\u4e00-\u9fff]")),
    ("th", re.compile("[\u0e00-\u0e7f]")),
    ("el", re.compile("[\u0370-\u03ff]")),
    ("he", re.compile("[\u0590-\u05ff]")),
)  # scripts of one language each; others, such as Cyrillic and Arabic, have several
_COMMON = tuple(
    "ar bg bn ca cs da de en es et fa fi fr hi hr hu id it lt lv mr ms nb nl pl pt ro ru sk sl sr sv sw ta te tr uk ur "  # noqa: SIM905
    "vi".split()
)  # a short text is easily taken for a rare language
_READ_CHARS = 2_000


def language_of(text: str) -> str | None:
    """Return the code (ISO 639-1) of the language a text is written in; None where it cannot be told."""
    text = text[:_READ_CHARS]
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None
    for code, script in _SCRIPTS:
        if len(script.findall(text)) * 3 >= letters:
            return code
    rank = _ranking()
    return next((code for code, _ in rank(text) if code in _COMMON), None) if rank is not None else None


@functools.cache
def _ranking() -> Callable[[str], Sequence[tuple[str, float]]] | None:
    try:
        from py3langid import rank
    except ImportError:
        log.warning("rules by language need py3langid; pip install 'router-ml[language]'")
        return None
    found: Callable[[str], Sequence[tuple[str, float]]] = rank
    return found
