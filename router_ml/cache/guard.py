"""Why two texts that look alike must not share an answer.

Sentence embeddings put "2+2" and "2+3" at a cosine of 0.96, and hardly see a "not": so nearness alone never
suffices. The guard refuses on any changed number, name, negation, contrary, quoted text or order of words."""

from __future__ import annotations

import re
from collections import Counter

_TOKEN = re.compile(r"\d+(?:[.,:/-]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)?|[^\w\s]")
_QUOTED = re.compile(r"[\"“«`]([^\"”»`]+)[\"”»`]")
_ADDRESS = re.compile(r"\S+@\S+|https?://\S+|\S*[/\\]\S+|\w+\.\w{1,5}\b")
_SIGNS = frozenset("+-*/=<>%^$€£&|!")

_NEGATIONS = frozenset(
    "no not never none nobody nothing neither nor without except unless cannot cant dont doesnt isnt arent wasnt "
    "wont wouldnt shouldnt couldnt didnt hasnt havent aint non avoid exclude excluding stop false refuse deny".split()
)
_CONTRARIES = frozenset(
    "on off up down in out before after above below over under more less most least max min maximum minimum first "
    "last next previous start end begin open close enable disable add remove delete create buy sell send receive "
    "increase decrease left right north south east west all any some only every today tomorrow yesterday now later "
    "am pm morning afternoon evening night monday tuesday wednesday thursday friday saturday sunday january february "
    "march april may june july august september october november december my your his her their our i you he she "
    "they who what when where why how which from to with against true yes and or old new hot cold high low long short "
    "big small cheap expensive fast slow best worst good bad true allow forbid accept decline lock unlock push pull "
    "import export encode decode encrypt decrypt upload download accept reject increase raise lower one two three four "
    "five six seven eight nine ten eleven twelve hundred thousand million half double twice once second third".split()
)
_MOST_DIFFERENT = 0.34  # share of the words that may differ at all


def near_miss(one: str, other: str) -> str | None:
    """The reason why an answer to one text must not serve the other, or None where it may."""
    if one == other:
        return None
    for reason, parts in (
        ("quoted text", _quoted),
        ("an address or file", _addresses),
        ("a number", _numbers),
        ("a sign", _signs),
        ("a negation", _negations),
        ("a name", _names),
        ("a word that turns the meaning", _contraries),
    ):
        if parts(one) != parts(other):
            return f"{reason} differs"
    return _words_differ(_words(one), _words(other))


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


def _words(text: str) -> list[str]:
    return [token.lower().replace("’", "'").replace("'", "") for token in _tokens(text) if token[0].isalpha()]


def _quoted(text: str) -> list[str]:
    return _QUOTED.findall(text)


def _addresses(text: str) -> list[str]:
    return sorted(_ADDRESS.findall(text.rstrip(".?!")))


def _numbers(text: str) -> list[str]:
    return [token for token in _tokens(text) if token[0].isdigit()]


def _signs(text: str) -> list[str]:
    return [token for token in _tokens(text.rstrip("!")) if token in _SIGNS]


def _negations(text: str) -> Counter[str]:
    words = _words(text)
    negated = [w for w in words if w in _NEGATIONS or w.startswith(("un", "dis", "anti")) or w.endswith(("less", "nt"))]
    return Counter(negated)


def _contraries(text: str) -> list[str]:
    return [word for word in _words(text) if word in _CONTRARIES]


def _names(text: str) -> list[str]:
    """Capitalised words that do not begin a sentence, and words in capitals; compared in lower case."""
    names, begins = [], True
    for token in _tokens(text):
        if token[0].isupper() and (not begins or (token.isupper() and len(token) > 1)):
            names.append(token.lower())
        begins = token in ".!?"
    return names


def _words_differ(one: list[str], other: list[str]) -> str | None:
    shared = Counter(one) & Counter(other)
    most = max(len(one), len(other), 1)
    if sum(shared.values()) < (1 - _MOST_DIFFERENT) * most:
        return "too many words differ"
    left, right = dict(shared), dict(shared)
    if _kept(one, left) != _kept(other, right):
        return "the order of the words differs"
    return None


def _kept(words: list[str], budget: dict[str, int]) -> list[str]:
    kept = []
    for word in words:
        if budget.get(word, 0) > 0:
            budget[word] -= 1
            kept.append(word)
    return kept
