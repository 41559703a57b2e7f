"""Reading and writing the project's JSON Lines files, and the checks every row must pass.

A bad row is a `RowError` that names file, line and field; an unknown extra key is kept and ignored.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from router_ml.arm import EFFORTS, arm_key, is_think
from router_ml.context import parse_context
from router_ml.errors import ContextError, InputError, RowError, shown
from router_ml.files import atomic_file, reason
from router_ml.types import LABELS, Outcome, Query

T = TypeVar("T")

_QUERY_KEYS = {"id", "text", "context", "label", "group", "slice"}
_OUTCOME_KEYS = {
    "query_id", "model", "success", "latency_s", "prompt_tokens", "output_tokens", "load_s",
    "prompt_eval_s", "eval_s", "cost_usd", "resident", "error", "weight", "judged_by", "think",
    "logprob_mean",
}  # fmt: skip
MAX_NUMBER = 1e15
STANDARD_OUTPUT = "-"
MAX_LINE_BYTES = 16_000_000
_SUSPICIOUS = re.compile(rb"\\[uU][dD]|NaN|Infinity|[eE]\+?[0-9]{3}")
MIN_LOGPROB = -1000.0  # of a token; no distribution of a model gives less to a token it has chosen
MAX_LATENCY_S = 86_400.0  # a day: longer is a unit mistake (milliseconds, nanoseconds)


class _Row:
    """One decoded row with typed access; every failure names the place."""

    def __init__(self, file: str, line: int, data: Mapping[str, Any]) -> None:
        self.file, self.line, self.data = file, line, data

    def fail(self, key: str | None, problem: str) -> RowError:
        return RowError(self.file, self.line, key, problem)

    def text(self, key: str, *, empty: bool = False) -> str:
        value = self.data.get(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, found {_kind(value)}")
        if not value and not empty:
            raise self.fail(key, "must not be empty")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self.data.get(key) is None else self.text(key, empty=True)

    def number(self, key: str, low: float = 0.0, high: float = math.inf) -> float | None:
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fail(key, f"must be a number or null, found {_kind(value)}")
        if not low <= value <= min(high, MAX_NUMBER):  # NaN is neither
            bound = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise self.fail(key, f"must be {bound}, found {shown(value)}")
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else round(value)

    def extra(self, known: set[str]) -> dict[str, Any]:
        return {k: v for k, v in self.data.items() if k not in known}


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {shown(value)}"


def _rows(path: Path | str) -> Iterator[_Row]:
    path = Path(path)
    try:
        handle = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot read {path}: {reason(error)}; give the path of a JSON Lines file") from error
    with handle:
        lines = iter(functools.partial(handle.readline, MAX_LINE_BYTES + 1), b"")
        for number, raw in enumerate(lines, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if raw.strip():
                yield _Row(str(path), number, decode_object(str(path), number, raw))


def decode_object(file: str, number: int, raw: bytes) -> dict[str, Any]:
    """Return the object that a line holds. Raises `RowError` with the file's name and the line's number."""
    if len(raw) > MAX_LINE_BYTES:
        raise RowError(file, number, None, f"is longer than {MAX_LINE_BYTES:,} bytes; write one object a line")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise RowError(file, number, None, f"is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except _RepeatedKey as error:
        raise RowError(file, number, error.key, "is given twice in one object; remove one of them") from None
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({reason(error)}); write one object a line"
        raise RowError(file, number, None, problem) from error
    if not isinstance(data, dict):
        raise RowError(file, number, None, f"must be an object, found {_kind(data)}")
    if _SUSPICIOUS.search(raw):
        _check_writable(file, number, data)
    return data


class _RepeatedKey(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key[:60]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some pairs; Python itself takes the last value of a repeated key."""
    data = dict(pairs)
    if len(data) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKey(next(key for key in data if keys.count(key) > 1))
    return data


def _check_writable(file: str, number: int, data: Mapping[str, Any]) -> None:
    """Refuse what Python reads and no JSON file may hold; such a row could be neither hashed nor written again."""
    for key, value in data.items():
        try:
            json.dumps([key, value], ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            problem = "holds an unpaired surrogate (\\ud800 to \\udfff), which is not a character; remove it"
            raise RowError(file, number, key.encode("ascii", "replace").decode(), problem) from error
        except ValueError as error:
            raise RowError(file, number, key, f"must be finite, found {shown(value)}; use null") from error


def _query(row: _Row) -> Query:
    label = row.data.get("label")
    if label is not None and label not in LABELS:
        raise row.fail("label", f"must be one of {', '.join(LABELS)} or null, found {shown(label)}")
    raw = row.data.get("context")
    try:
        context = parse_context(raw)
    except ContextError as error:
        raise row.fail("context" + (f".{error.field}" if error.field else ""), str(error)) from error
    except RecursionError as error:
        raise row.fail("context", "is nested too deeply; flatten it") from error
    return Query(
        id=row.text("id"),
        text=row.text("text", empty=True),
        context=context,
        label=label,
        group=row.optional_text("group"),
        slice=row.optional_text("slice"),
        raw_context=raw,
        extra=row.extra(_QUERY_KEYS),
    )


def _outcome(row: _Row) -> Outcome:
    resident = row.data.get("resident")
    if resident is not None and not isinstance(resident, bool):
        raise row.fail("resident", f"must be true, false or null, found {_kind(resident)}")
    think = row.data.get("think")
    if think is not None and not is_think(think):
        raise row.fail("think", f"must be true, false, {', '.join(map(str, EFFORTS))} or null, found {_kind(think)}")
    return Outcome(
        query_id=row.text("query_id"),
        model=row.text("model"),
        success=row.number("success", 0.0, 1.0),
        latency_s=row.number("latency_s", 0.0, MAX_LATENCY_S),
        prompt_tokens=row.count("prompt_tokens"),
        output_tokens=row.count("output_tokens"),
        load_s=row.number("load_s", 0.0, MAX_LATENCY_S),
        prompt_eval_s=row.number("prompt_eval_s", 0.0, MAX_LATENCY_S),
        eval_s=row.number("eval_s", 0.0, MAX_LATENCY_S),
        cost_usd=row.number("cost_usd"),
        resident=resident,
        error=row.optional_text("error"),
        weight=1.0 if (weight := row.number("weight", 0.0, 1.0)) is None else weight,
        judged_by=row.optional_text("judged_by"),
        extra=row.extra(_OUTCOME_KEYS),
        think=think,
        logprob_mean=row.number("logprob_mean", MIN_LOGPROB, 0.0),
    )


def read_objects(path: Path | str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects of a JSON Lines file of any kind, each with the number of its line. Raises `RowError`."""
    for row in _rows(path):
        yield row.line, row.data


def _unique(
    rows: Iterable[_Row], build: Callable[[_Row], T], key: Callable[[T], tuple[str, ...]], names: str
) -> list[T]:
    seen: dict[tuple[str, ...], int] = {}
    values: list[T] = []
    for row in rows:
        value = build(row)
        first = seen.setdefault(key(value), row.line)
        if first != row.line:
            raise row.fail(names, f"repeats line {first}; remove one of them")
        values.append(value)
    return values


def read_queries(path: Path | str) -> list[Query]:
    """Read labelled or unlabelled queries.

    Raises `RowError` for a bad or repeated row and `InputError` if the file cannot be read."""
    return _unique(_rows(path), _query, lambda q: (q.id,), "id")


def read_outcomes(path: Path | str) -> list[Outcome]:
    """Read measured outcomes; one row per query and arm (model and `think`).

    Raises `RowError` for a bad or repeated row and `InputError` if the file cannot be read."""
    return _unique(_rows(path), _outcome, lambda o: (o.query_id, arm_key(o.model, o.think)), "query_id, model")


def query_row(query: Query) -> dict[str, Any]:
    """Return the file form of a query."""
    row: dict[str, Any] = {"id": query.id, "text": query.text, "context": query.raw_context, "label": query.label}
    row |= {k: v for k, v in (("group", query.group), ("slice", query.slice)) if v is not None}
    return row | dict(query.extra)


def outcome_row(outcome: Outcome) -> dict[str, Any]:
    """Return the file form of an outcome; absent optional values are left out."""
    required = {"query_id", "model", "success", "latency_s"}
    values = {k: getattr(outcome, k) for k in sorted(_OUTCOME_KEYS, key=_ORDER.__getitem__)}
    if outcome.weight == 1.0:
        del values["weight"]
    return {k: v for k, v in values.items() if v is not None or k in required} | dict(outcome.extra)


_ORDER = {name: index for index, name in enumerate(Outcome.__dataclass_fields__)}


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as UTF-8 JSON Lines, all of them or none, readable by their owner only. numpy's numbers are numbers.

    The path `-` is standard output. Raises `InputError` for a row that JSON cannot hold and `OSError` if the file
    cannot be written."""
    with nullcontext(sys.stdout.buffer) if str(path) == STANDARD_OUTPUT else atomic_file(Path(path)) as handle:
        for number, row in enumerate(rows, start=1):
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_number).encode()
            except (ValueError, RecursionError) as error:
                raise InputError(f"cannot write row {number} to {path}: {reason(error)}; correct the row") from error
            handle.write(line + b"\n")


def _number(value: Any) -> Any:
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")
