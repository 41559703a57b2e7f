"""Near misses: texts that look alike and must not share an answer.

Sentence embeddings put "2+2" and "2+3" at a cosine of 0.96, and hardly see a "not": so similarity alone never
suffices. The guard lets two texts differ only in words that carry no meaning of their own (articles, politeness,
forms of asking), in case and in punctuation. A changed number, sign, name, negation, address, quotation, or order of
the words is a refusal."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[^\w\s]")
_QUOTED = re.compile(r"[\"“«`]([^\"”»`]+)[\"”»`]")
_ADDRESS = re.compile(r"\S+@\S+|https?://\S+|\S*[/\\]\S+|\w+\.\w{1,5}\b")
_SIGNS = frozenset("+-*/=<>%^$€£&|!")
_NEGATION_WORDS = """no not never none nobody nothing neither nor without except unless cannot cant dont doesnt isnt
arent wasnt wont wouldnt shouldnt couldnt didnt hasnt havent aint"""
_FILLER_WORDS = """a an the please kindly can could would will you tell give show me let know is are s whats what it
of do does just hey hi hello thanks thank quickly exactly actually also now to us i want need like id be for so then"""
_NEGATIONS = frozenset(_NEGATION_WORDS.split())
_FILLERS = frozenset(_FILLER_WORDS.split())


def near_miss(one: str, other: str) -> str | None:
    """Return the reason why an answer to one text must not serve the other, or None if it may."""
    if one == other:
        return None
    for reason, parts in (
        ("quoted text", _quoted),
        ("an address or file", _addresses),
        ("a number", _numbers),
        ("a sign", _signs),
        ("a negation", _negations),
        ("a name", _names),
        ("a word that matters, or the order of words,", _meaning),
    ):
        if parts(one) != parts(other):
            return f"{reason} differs"
    return None


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _words(text: str) -> list[str]:
    return [token.lower().replace("’", "").replace("'", "") for token in _tokens(text) if token[0].isalpha()]


def _quoted(text: str) -> list[str]:
    return _QUOTED.findall(text)


def _addresses(text: str) -> list[str]:
    return _ADDRESS.findall(text.rstrip(".?!"))


def _numbers(text: str) -> list[str]:
    return [token for token in _tokens(text) if token[0].isdigit()]


def _signs(text: str) -> list[str]:
    return [token for token in _tokens(text.rstrip("!")) if token in _SIGNS]


def _negations(text: str) -> list[str]:
    return [word for word in _words(text) if word in _NEGATIONS]


def _names(text: str) -> list[str]:
    """Return the words in capitals: "US" is not "us"."""
    return [token for token in _tokens(text) if token.isupper() and len(token) > 1]


def _meaning(text: str) -> list[str]:
    return [word for word in _words(text) if word not in _FILLERS]
