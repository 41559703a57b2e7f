"""Features of a request and the tools offered: their declarations, shared words, and the values it names.

Whether a small model calls the right tool depends on these more than on the subject: does any tool fit at all, is
one call enough or are there values for several, must a list or an object be filled in, are the types those of JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from math import log1p
from typing import NamedTuple

from router_ml.types import Parameter, Tool

_KINDS = ("number", "text", "flag", "list", "object", "other")
TOOLBOX_NAMES: tuple[str, ...] = (
    *(f"tool_share_{kind}" for kind in _KINDS),
    *(f"tool_log_{kind}" for kind in _KINDS),
    "tool_depth", "tool_optional", "tool_log_choices", "tool_log_defaults", "tool_log_parameter_description",
    "tool_share_dotted", "tool_share_camel", "tool_share_camel_parameters",
    "tool_name_cover", "tool_name_cover_min", "tool_description_cover", "tool_description_cover_min",
    "tool_parameter_cover", "request_cover", "request_cover_all", "tool_match_gap", "tool_matches",
    "tool_values_required", "tool_lists_required", "request_numbers_over", "request_values_over", "request_quotes",
    "request_names", "request_joiners", "request_repeats", "request_lists", "request_questions", "request_code",
    "request_brackets",
)  # fmt: skip

MAX_CHARS = 4000  # a longer request is compared by its beginning
_TYPE_KINDS: dict[str, str] = {
    "integer": "number", "number": "number", "float": "number", "int": "number", "double": "number", "long": "number",
    "string": "text", "str": "text", "boolean": "flag", "bool": "flag", "array": "list", "list": "list",
    "tuple": "list", "object": "object", "dict": "object",
}  # fmt: skip
_WORD = re.compile(r"[^\W\d_]{2,}")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_QUOTED = re.compile(r"'[^']+'|\"[^\"]+\"|`[^`]+`|“[^”]+”|«[^»]+»")
_NAME = re.compile(r"(?<![.?!] )(?<!^)\b[A-Z][a-z]+")
_JOINER = re.compile(r"\b(?:and|also|then|und|auch|dann|y|también|luego|et|aussi|puis)\b|;", re.IGNORECASE)
_REPEAT = re.compile(
    r"\b(?:respectively|each|both|repeat|same|for (?:two|three|four)|jeweils|cada|chaque)\b", re.IGNORECASE
)
_LIST = re.compile(r", (?:and |or )")
_CODE = re.compile(r"[a-z][A-Z]|_|`|\(\)")
_COMMON_WORDS = """the an of in on for to and or with by is are be as at from that this it its get find calculate using
given which not if default optional me my you your can what how could please need"""
_COMMON = frozenset(_COMMON_WORDS.split())
_ENDINGS = ("ing", "ies", "es", "ed", "s")
_STEM = 6


class _Declared(NamedTuple):
    """The declaration of a tool, parsed."""

    name: frozenset[str]
    description: frozenset[str]
    parameters: frozenset[str]
    everything: frozenset[str]  # with the descriptions of its parameters
    kinds: tuple[int, ...]  # parameters of each of `_KINDS`
    n_numbers: int  # required ones at the top, by kind
    n_lists: int
    n_required: int


def toolbox_features(text: str, tools: Sequence[Tool]) -> list[float]:
    """Return one number per name of `TOOLBOX_NAMES` for a request and the tools offered with it (at least one)."""
    read = [_declared(tool) for tool in tools]
    return [*_declarations(tools, read), *_match(text[:MAX_CHARS], read)]


def _declarations(tools: Sequence[Tool], read: list[_Declared]) -> list[float]:
    flat = [parameter for tool in tools for parameter in tool.parameters]
    n, total = len(tools), max(len(flat), 1)
    kinds = [sum(counts) for counts in zip(*(declared.kinds for declared in read), strict=True)]
    described = sum(len(parameter.description) for parameter in flat)
    return [
        *(count / total for count in kinds),
        *(log1p(count / n) for count in kinds),
        float(max((parameter.depth for parameter in flat), default=0)),
        min(sum(not parameter.required for parameter in flat) / n, 16.0),
        log1p(sum(parameter.has_choices for parameter in flat)),
        log1p(sum(p.has_default or "efault" in p.description for p in flat) / n),  # "Default", "default", "Defaults to"
        log1p(described / total),
        sum("." in tool.name for tool in tools) / n,
        sum(bool(_CAMEL.search(tool.name)) for tool in tools) / n,
        sum(bool(_CAMEL.search(parameter.name)) for parameter in flat) / total,
    ]


def _match(text: str, read: list[_Declared]) -> list[float]:
    asked = _words(text)
    n_asked = max(len(asked), 1)
    name = [_cover(declared.name, asked) for declared in read]
    description = [_cover(declared.description, asked) for declared in read]
    shared = [len(asked & declared.everything) / n_asked for declared in read]
    score = [sum(parts) for parts in zip(name, description, shared, strict=True)]
    best = max(range(len(score)), key=score.__getitem__)
    top, second = score[best], max((s for i, s in enumerate(score) if i != best), default=score[best])
    fits = read[best]
    everything = frozenset[str]().union(*(declared.everything for declared in read))
    return [
        max(name), min(name), max(description), min(description), _cover(fits.parameters, asked), max(shared),
        len(asked & everything) / n_asked, top - second, min(float(sum(s > 0.6 * top for s in score)), 16.0),
        *_values(text, fits),
    ]  # fmt: skip


def _values(text: str, fits: _Declared) -> list[float]:
    """Count the values that the request names, and those that the best matching tool requires."""
    numbers, quoted, names = len(_NUMBER.findall(text)), len(_QUOTED.findall(text)), len(_NAME.findall(text))
    return [
        min(float(fits.n_required), 16.0),
        min(float(fits.n_lists), 8.0),
        log1p(numbers) - log1p(fits.n_numbers),
        log1p(numbers + quoted + names) - log1p(fits.n_required),
        log1p(quoted),
        log1p(names),
        min(float(len(_JOINER.findall(text))), 6.0),
        1.0 if _REPEAT.search(text) else 0.0,
        min(float(len(_LIST.findall(text))), 8.0),
        min(float(text.count("?")), 8.0),
        min(len(_CODE.findall(text)) ** 0.5, 8.0),
        min(float(text.count("[") + text.count("{")), 5.0),
    ]


@lru_cache(maxsize=4096)
def _declared(tool: Tool) -> _Declared:
    named, described = _words_of_name(tool.name), _words(tool.description[:MAX_CHARS])
    parameters = frozenset[str]().union(*(_words_of_name(parameter.name) for parameter in tool.parameters))
    details = _words(" ".join(parameter.description for parameter in tool.parameters)[:MAX_CHARS])
    kinds = [_kind(parameter) for parameter in tool.parameters]
    wanted = [
        kind
        for kind, parameter in zip(kinds, tool.parameters, strict=True)
        if parameter.required and parameter.depth == 1
    ]
    return _Declared(
        named,
        described,
        parameters,
        named | described | parameters | details,
        tuple(kinds.count(kind) for kind in _KINDS),
        wanted.count("number"),
        wanted.count("list"),
        len(wanted),
    )


def _kind(parameter: Parameter) -> str:
    return _TYPE_KINDS.get(parameter.type, "other")


def _words(text: str) -> frozenset[str]:
    """Return the stems of the content words of a text."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _COMMON)


def _words_of_name(name: str) -> frozenset[str]:
    """Return the stems of an identifier: `getStockPrice`, `stock_price` and `stocks.price` share words."""
    return _words(_CAMEL.sub(" ", name).replace("_", " "))


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)][:_STEM]
    return word[:_STEM]


def _cover(wanted: frozenset[str], asked: frozenset[str]) -> float:
    """Return the share of the given words that occur in the request."""
    return len(wanted & asked) / len(wanted) if wanted else 0.0
