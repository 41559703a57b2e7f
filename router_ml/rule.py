"""A rule: what a user decrees about some queries, in `[[rule]]` tables of a catalogue or a policy file.

    [[rule]]
    name = "code"
    utterances = ["write a python function", "why does this stack trace appear", "refactor this class"]
    prefer = ["qwen2.5-coder:7b"]

Conditions of different kinds must all hold; of several values of one kind, one must. The first rule that matches
speaks.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.numbers import is_number, short_repr
from router_ml.suggestions import suggestion
from router_ml.types import LABELS, TASK_FAMILIES

MAX_RULES, MAX_VALUES, MAX_CHARS = 100, 200, 2_000
SIMILARITY = 0.0  # as near to the examples as to any other query
ATTACHMENTS = ("image", "audio", "document", "any")
_CONDITIONS = ("utterances", "label", "family", "language", "attachment", "tool", "pattern")
_ACTIONS = ("prefer", "require", "forbid")
_KEYS = ("name", *_CONDITIONS, "similarity", *_ACTIONS)
_HEADER = re.compile(r"^\s*\[\[\s*[\"']?rule[\"']?\s*\]\]")


@dataclass(frozen=True, slots=True)
class Rule:
    """Which queries a rule is about, and which models it prefers, requires or forbids, by name or alias."""

    name: str
    utterances: tuple[str, ...] = ()  # examples: a query close to one of them matches
    label: tuple[str, ...] = ()  # complexity
    family: tuple[str, ...] = ()  # kind of task: knowledge, maths, code, tools, instructions
    language: tuple[str, ...] = ()  # codes of ISO 639-1, such as "de"
    attachment: tuple[str, ...] = ()  # image, audio, document or any; else a pattern of its name, such as "*.pdf"
    tool: tuple[str, ...] = ()  # a tool on offer, by name or pattern, such as "calendar.*"
    pattern: str = ""  # regular expression searched in the query, case-insensitive
    similarity: float = SIMILARITY  # to the utterances, from which a query matches: about -1 (any) to 1 (alike)
    prefer: tuple[str, ...] = ()  # the first of them that is within the limits is chosen
    require: tuple[str, ...] = ()  # no other model serves the query
    forbid: tuple[str, ...] = ()  # these do not

    def has_tool(self, names: Sequence[str]) -> bool:
        """Return whether one of the tools on offer matches."""
        return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self.tool)

    def has_attachment(self, name: str, kind: str) -> bool:
        """Return whether an attachment of that name and kind ("" for none) matches."""
        present = bool(name or kind)
        return any(
            present if wanted == "any" else kind == wanted or fnmatch.fnmatch(name.lower(), wanted.lower())
            for wanted in self.attachment
        )


def rules_from(entries: Any, text: str, source: str) -> tuple[Rule, ...]:
    """Return the rules of `[[rule]]` tables, whose file has that `text`.

    Raises ValueError naming source, line and field of what is wrong."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{source}: field 'rule' must be tables, each under a line [[rule]]")
    if len(entries) > MAX_RULES:
        raise ValueError(f"{source} has {len(entries)} rules; the limit is {MAX_RULES}: put several into one")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if _HEADER.match(line)]
    rules: list[Rule] = []
    for place, entry in enumerate(entries):
        line = f", line {lines[place]}" if len(lines) == len(entries) else ""
        where = f"{source}{line}: rule {place + 1}"
        rule = _rule(entry, where)
        if any(rule.name == other.name for other in rules):
            raise ValueError(f"{where}: field 'name': there are two rules {rule.name!r}; rename one")
        rules.append(rule)
    return tuple(rules)


def _rule(entry: Mapping[str, Any], where: str) -> Rule:
    name = entry.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CHARS or not name.isprintable():
        raise ValueError(f"{where}: field 'name' must be a text, found {short_repr(name)}")
    where = f"{where} ({name})"
    for key in entry:
        if key not in _KEYS:
            hint = suggestion(str(key), _KEYS) or f"; there are {', '.join(_KEYS)}"
            raise ValueError(f"{where}: unknown field {short_repr(key)}{hint}")
    values = {key: _texts(entry, key, where) for key in (*_CONDITIONS, *_ACTIONS) if key != "pattern"}
    for label in values["label"]:
        if label not in LABELS:
            raise ValueError(f"{where}: field 'label' must be of {', '.join(LABELS)}, found {label!r}")
    for family in values["family"]:
        if family not in TASK_FAMILIES:
            raise ValueError(f"{where}: field 'family' must be of {', '.join(TASK_FAMILIES)}, found {family!r}")
    for code in values["language"]:
        if not re.fullmatch("[a-z]{2,3}", code):
            raise ValueError(f"{where}: field 'language' must be a code such as \"de\", found {code!r}")
    similarity = entry.get("similarity", SIMILARITY)
    if not is_number(similarity) or not -1 <= similarity <= 1:
        raise ValueError(f"{where}: field 'similarity' must be a number from -1 to 1, found {short_repr(similarity)}")
    pattern = _pattern(entry.get("pattern", ""), where)
    if not pattern and not any(values[key] for key in _CONDITIONS if key != "pattern"):
        raise ValueError(f"{where} matches nothing; give one of {', '.join(_CONDITIONS)}")
    if not any(values[key] for key in _ACTIONS):
        raise ValueError(f"{where} does nothing; give one of {', '.join(_ACTIONS)}")
    return Rule(name=name, pattern=pattern, similarity=float(similarity), **values)


def _texts(entry: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, ())
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: field {key!r} must be a text or a list of texts, found {short_repr(value)}")
    if len(texts) > MAX_VALUES or any(len(text) > MAX_CHARS for text in texts):
        raise ValueError(f"{where}: field {key!r} takes {MAX_VALUES} texts of {MAX_CHARS} characters at most")
    return tuple(texts)


def _pattern(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_CHARS:
        raise ValueError(f"{where}: field 'pattern' must be a regular expression, found {short_repr(value)}")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{where}: field 'pattern' is no regular expression: {error}") from error
    return value
