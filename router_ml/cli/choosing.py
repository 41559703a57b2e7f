"""Options shared by verbs that decide: which router, which policy, which context, which queries."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from router_ml.context import parse_context
from router_ml.decide.query import ContextLike
from router_ml.decide.router import Router
from router_ml.errors import ContextError, InputError, RowError
from router_ml.jsonl import MAX_LINE_BYTES
from router_ml.settings import Settings

STDIN = "standard input"


def add_choosing_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of every verb that decides."""
    verb.add_argument("--policy", help="fast, balanced, accurate, or a policy file (ROUTER_ML_POLICY, else balanced)")
    verb.add_argument("--context", metavar="JSON", help="what comes with the query: a JSON object, or @FILE")
    verb.add_argument("--bundle", type=Path, help="a bundle's folder (the active one)")
    verb.add_argument("--json", action="store_true", help="one JSON object a line")


def chosen_router(options: argparse.Namespace, settings: Settings) -> Router:
    """Return the router of the bundle asked for, or of the active one, or the rules where that cannot be used.

    Raises `BundleError` or `EncoderError` if the bundle asked for cannot be used."""
    if options.bundle is not None:
        return Router.load(options.bundle, settings=settings)
    return Router.load_or_heuristic(settings=settings)


def chosen_policy(options: argparse.Namespace, settings: Settings) -> str:
    """Return the policy asked for, else that of the settings."""
    return str(options.policy or settings.policy)


def chosen_context(options: argparse.Namespace) -> Mapping[str, Any] | None:
    """Return the context as a dictionary. Raises `ContextError` if it is not a JSON object."""
    if not options.context:
        return None
    text = options.context
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ContextError(f"cannot read the context file {text[1:]}: {error}") from error
    try:
        context = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ContextError(f"--context is not JSON ({error}); give an object such as '{{\"n_tools\": 3}}'") from error
    if not isinstance(context, dict):
        raise ContextError("--context must be a JSON object, such as '{\"n_tools\": 3}'")
    return context


Asked: TypeAlias = tuple[str, ContextLike]


def given_queries(arguments: list[str]) -> Iterator[Asked | RowError]:
    """Yield (query, context) pairs from the command line, else from standard input as it comes.

    A line is a query, or a JSON row with `text` and `context`; for a row that cannot be read its error is yielded.

    Raises `InputError` if there is no query at all, or a line without end."""
    if arguments:
        yield from ((query, None) for query in arguments)
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError('no query; write: router-ml route "check email", or pipe one query a line')
    found = False
    for number, raw in enumerate(iter(partial(sys.stdin.buffer.readline, MAX_LINE_BYTES + 1), b""), 1):
        if len(raw) > MAX_LINE_BYTES:
            raise RowError(STDIN, number, None, f"is longer than {MAX_LINE_BYTES:,} bytes; pipe one query a line")
        line = raw.decode("utf-8", "replace").removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
        if line.strip():
            found = True
            yield _line_or_error(line, number)
    if not found:
        raise InputError("standard input is empty; pipe one query a line")


def _line_or_error(line: str, number: int) -> Asked | RowError:
    try:
        return _line(line, number)
    except RowError as error:
        return error


def _line(line: str, number: int) -> Asked:
    if not line.lstrip().startswith("{"):
        return line, None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return line, None
    if not isinstance(row.get("text"), str):
        raise RowError(STDIN, number, "text", "must be a string: the query")
    try:
        return row["text"], None if row.get("context") is None else parse_context(row["context"])
    except ContextError as error:
        field = f"context.{error.field}" if error.field else "context"
        raise RowError(STDIN, number, field, str(error)) from error
