"""The text of a catalogue file: written new with comments, or an older one brought up to date without losing edits."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router_ml.catalogue import MAX_BYTES, Measured, Model, model_from
from router_ml.errors import CatalogueError
from router_ml.files import read_regular, reason
from router_ml.hosts.inventory import Table
from router_ml.hosts.measure import Measurement
from router_ml.hosts.names import normal
from router_ml.settings import without_credentials
from router_ml.types import LABELS

_HEAD = """# Your models, as `router-ml init` found them on {hosts}.
#
# Edit freely: a second `router-ml init` keeps what is written here, adds new models, marks those that are gone
# (absent = true) and renews [model.measured]. What a table leaves out is taken from the library of published figures:
# success, length and seconds of an answer. To state your own, add below a model's lines, for example
#
#     [model.prior]
#     success = {{ simple = 0.97, moderate = 0.9, complex = 0.8, ambiguous = 0.8 }}
#
# role: fast, balanced or accurate; savings are reported against the accurate one.
# context_window_tokens: what the host gives a request; the gateway asks for up to max_context_tokens where it must.

format = 1
"""
_KEYS = (
    "name", "role", "family", "parameters_b", "quantisation", "size_gb", "context_window_tokens", "max_context_tokens",
    "capabilities", "aliases", "hosts",
)  # fmt: skip
_BLOCK = re.compile(r"^[ \t]*\[\[[ \t]*model[ \t]*\]\][^\n]*$", re.MULTILINE)
_NAME = re.compile(r"^[ \t]*(?:name|\"name\")[ \t]*=[^\n]*$", re.MULTILINE)
_ABSENT = re.compile(r"^[ \t]*absent[ \t]*=[^\n]*\n", re.MULTILINE)
_MEASURED_KEYS = "|".join(Measured.__dataclass_fields__)
_MEASURED = re.compile(
    rf"^[ \t]*\[[ \t]*model\.measured[ \t]*\][^\n]*\n(?:[ \t]*(?:{_MEASURED_KEYS})[ \t]*=[^\n]*\n?)*", re.MULTILINE
)


def new_text(tables: Iterable[Table], hosts: Sequence[str], measured: Mapping[str, Measurement]) -> str:
    """Return a whole catalogue file."""
    shown = ", ".join(without_credentials(host) for host in hosts)
    blocks = [_block(table, measured.get(table["name"])) for table in tables]
    return "\n".join([_HEAD.format(hosts=shown), *blocks])


def merged_text(
    text: str, tables: Sequence[Table], measured: Mapping[str, Measurement], path: Path, listed_all: bool = True
) -> str:
    """Return an older file with new models at its end, gone ones marked unless some host did not answer (`listed_all`),
    and rates renewed; all else stays as it is written.

    Raises `CatalogueError` for a file whose models are not in [[model]] tables."""
    head, *blocks = _split(text)
    names = _names(text, path)
    if len(names) != len(blocks):
        raise CatalogueError(f"{path}: the models are not in [[model]] tables; use --force to write it anew, or --out")
    found = {normal(name): table for table in tables for name in (table["name"], *table.get("aliases", ()))}
    kept, known = [], set()
    for block, own_names in zip(blocks, names, strict=True):
        table = next((found[normal(name)] for name in own_names if normal(name) in found), None)
        if table is not None:
            known.add(table["name"])
            block = _renewed(_ABSENT.sub("", block), measured.get(table["name"]))
        elif listed_all:
            block = _marked(block)
        kept.append(block)
    new = [_block(table, measured.get(table["name"])) for table in tables if table["name"] not in known]
    return "\n".join([(head + "".join(kept)).rstrip("\n") + "\n", *new]) if new else head + "".join(kept)


def read_text(path: Path) -> str:
    """Return the text of a catalogue file. Raises `CatalogueError` if it cannot be read or is not TOML."""
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
        tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CatalogueError(
            f"{path} is not a catalogue that can be brought up to date: {reason(error)}; correct it, "
            "give another --out, or write it anew with --force"
        ) from error
    return text


def _names(text: str, path: Path) -> list[list[str]]:
    entries = tomllib.loads(text).get("model", [])
    if not isinstance(entries, list) or not all(
        isinstance(e, Mapping) and isinstance(e.get("name"), str) for e in entries
    ):
        raise CatalogueError(f"{path}: each [[model]] table needs a 'name'; correct it, or use --force")
    return [[e["name"], *(a for a in e.get("aliases", ()) if isinstance(a, str))] for e in entries]


def _is_named(entry: Any) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("name"), str)


def _split(text: str) -> list[str]:
    starts = [match.start() for match in _BLOCK.finditer(text)]
    ends = [*starts, len(text)]
    return [text[: ends[0]], *(text[a:b] for a, b in itertools.pairwise(ends))]


def _marked(block: str) -> str:
    if _ABSENT.search(block):
        return block
    today = datetime.now(UTC).date().isoformat()
    return _NAME.sub(lambda m: f"{m[0]}\nabsent = true  # on no host at {today}; never chosen", block, count=1)


def _renewed(block: str, measurement: Measurement | None) -> str:
    if measurement is None:
        return block
    lines = _measured_lines(measurement)
    if _MEASURED.search(block):
        return _MEASURED.sub(lambda _: lines, block, count=1)
    body = block.rstrip("\n")
    return f"{body}\n{lines}{chr(10) * max(1, len(block) - len(body))}"


def _block(table: Table, measurement: Measurement | None) -> str:
    model = model_from(table, "a found model")
    lines = ["[[model]]", *(_line(key, table, model) for key in _KEYS if key in table)]
    if not table.get("arm"):
        lines.append(_expectation(model))
    for arm, entry in zip(model.each_arm, table.get("arm", ()), strict=False):
        lines += ["[[model.arm]]", f"think = {_toml(entry['think'])}", _expectation(arm)]
    text = "\n".join(lines) + "\n"
    return text if measurement is None else text + _measured_lines(measurement)


def _line(key: str, table: Table, model: Model) -> str:
    comment = ""
    if key == "context_window_tokens" and (model.max_context_tokens or 0) > table[key]:
        comment = f"  # as the host gives it; the model itself reads {model.max_context_tokens:,}"
    return f"{key} = {_toml(table[key])}{comment}"


def _expectation(arm: Model) -> str:
    success = ", ".join(f"{label} {arm.prior.success[label]:.2f}" for label in LABELS)
    seconds = min(arm.prior.latency_s.values()), max(arm.prior.latency_s.values())
    return f"# expected by the library: {success}; {seconds[0]:.1f} to {seconds[1]:.1f} s on its reference machine"


def _measured_lines(measurement: Measurement) -> str:
    values = {
        "decode_tokens_per_s": _short(measurement.decode_tokens_per_s),
        "prompt_tokens_per_s": _short(measurement.prompt_tokens_per_s),
        "load_s": None if measurement.load_s is None else round(measurement.load_s, 2),
        "output_tokens": measurement.output_tokens,
        "thinking_tokens": measurement.thinking_tokens,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": measurement.host,
    }
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["[model.measured]", *lines]) + "\n"


def _short(rate: float) -> float:
    return float(f"{rate:.4g}")


def _toml(value: Any) -> str:
    """Return a value as TOML writes it; JSON's strings, numbers, booleans and lists of strings are TOML's, too."""
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value, ensure_ascii=False)
