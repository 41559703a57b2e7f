"""What a query row expects of an answer: tool calls, text, or both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from router_ml.errors import InputError
from router_ml.types import Query
from training.measuring.argument_values import check_pattern, check_regex

TEXT_CHECKS = ("exact", "contains", "contains_any", "regex", "json_schema", "asks", "judge")
_CALL_KEYS = {"name", "arguments", "optional"}


@dataclass(frozen=True, slots=True)
class ExpectedCall:
    """One call that must be made."""

    name: str
    arguments: Mapping[str, Any]  # values or patterns
    optional: frozenset[str] = frozenset()  # may be left out; one without a value in `arguments` may be anything


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back where it is called with these arguments (none: any)."""

    name: str
    arguments: Mapping[str, Any]
    result: Any


@dataclass(frozen=True, slots=True)
class ExpectedAnswer:
    """What counts as success; where nothing is expected, the row is timed and not scored."""

    calls: tuple[ExpectedCall, ...] | None = None  # (): no call may be made
    allowed: frozenset[str] = frozenset()  # further tools that may be called, such as a contact look-up
    text: Mapping[str, Any] | None = None  # checks of TEXT_CHECKS, all of which must pass
    results: tuple[ToolResult, ...] | None = None  # not None: the conversation continues while tools are called

    @property
    def judged(self) -> str | None:
        """The criterion for a judge model, or None."""
        return None if self.text is None else self.text.get("judge")

    @property
    def scored(self) -> bool:
        """Whether an answer can be scored."""
        return self.calls is not None or self.text is not None


def expected_answer(query: Query) -> ExpectedAnswer:
    """Return what a query's extra keys expect. Raises `InputError` naming the query and the key."""
    extra = query.extra
    try:
        return ExpectedAnswer(
            calls=_calls(extra.get("expected_calls")),
            allowed=frozenset(map(str, _listed(extra.get("allowed_calls"), "allowed_calls"))),
            text=_text(extra.get("expected")),
            results=_results(extra.get("tool_results")),
        )
    except InputError as error:
        raise InputError(f"query {query.id!r}: {error}") from error


def _listed(value: Any, key: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InputError(f"{key!r} must be a list, got {type(value).__name__}")
    return value


def _calls(value: Any) -> tuple[ExpectedCall, ...] | None:
    return None if value is None else tuple(_call(item) for item in _listed(value, "expected_calls"))


def _call(item: Any) -> ExpectedCall:
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        raise InputError("each of 'expected_calls' must be an object with a 'name'")
    unknown = set(item) - _CALL_KEYS
    if unknown:
        raise InputError(
            f"expected call {item['name']!r}: unknown keys {', '.join(sorted(unknown))}; "
            f"use {', '.join(sorted(_CALL_KEYS))}"
        )
    arguments = item.get("arguments") or {}
    if not isinstance(arguments, Mapping):
        raise InputError(f"'arguments' of the expected call {item['name']!r} must be an object")
    for wanted in arguments.values():
        check_pattern(wanted)
    return ExpectedCall(item["name"], dict(arguments), frozenset(map(str, _listed(item.get("optional"), "optional"))))


def _results(value: Any) -> tuple[ToolResult, ...] | None:
    if value is None:
        return None
    results = []
    for item in _listed(value, "tool_results"):
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or "result" not in item:
            raise InputError("each of 'tool_results' must be an object with a 'name' and a 'result'")
        check_pattern(item.get("arguments"))
        results.append(ToolResult(item["name"], dict(item.get("arguments") or {}), item["result"]))
    return tuple(results)


def _text(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"'expected' must be an object with some of {', '.join(TEXT_CHECKS)}")
    unknown = set(value) - set(TEXT_CHECKS)
    if unknown:
        raise InputError(f"'expected' has unknown checks {', '.join(sorted(unknown))}; use {', '.join(TEXT_CHECKS)}")
    if "regex" in value:
        check_regex(value["regex"])
    if "json_schema" in value:
        _check_schema(value["json_schema"])
    for key in ("contains", "contains_any"):
        _check_texts(key, value.get(key, ""))
    if not isinstance(value.get("judge", ""), str):
        raise InputError("'expected.judge' must be a text: the criterion a good answer meets")
    if not isinstance(value.get("asks", True), bool):
        raise InputError("'expected.asks' must be true or false")
    return dict(value)


def _check_texts(key: str, value: Any) -> None:
    if not (isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))):
        raise InputError(f"'expected.{key}' must be a text or a list of texts")


def _check_schema(schema: Any) -> None:
    try:
        validator_for(schema).check_schema(schema)
    except (SchemaError, TypeError, AttributeError) as error:
        reason = getattr(error, "message", str(error))
        raise InputError(f"'expected.json_schema' is not a JSON schema ({reason:.200})") from error
