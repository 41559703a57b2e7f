"""Refuse an encoder's files that could run without end, before native code reads them."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from router_ml.errors import EncoderError

MAX_STEPS = 8  # of a tokenizer's normalizer, and of its pre-tokenizer
MAX_GROWTH = 64.0  # times a text may become longer by replacements
# Operators that repeat others, as a node of a graph names them (ONNX: field 4 of NodeProto, a length and a string).
_REPEATING = tuple(b'"' + bytes([len(name)]) + name for name in (b"Loop", b"Scan", b"SequenceMap"))


def check_graph(path: Path) -> None:
    """Raise `EncoderError` where an ONNX graph has an operator that repeats others: it need never end."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if any(data.find(name) >= 0 for name in _REPEATING):
            raise EncoderError(f"the graph {path} has a loop; export the encoder without one")


def check_tokenizer(path: Path) -> None:
    """Raise `EncoderError` where a tokenizer's steps could make a text grow without measure."""
    described = json.loads(path.read_bytes())
    for part in ("normalizer", "pre_tokenizer"):
        steps = list(_steps(described.get(part)))
        growth = 1.0
        for step in steps:
            growth *= max(1.0, _growth(step))
        if len(steps) > MAX_STEPS or growth > MAX_GROWTH:
            raise EncoderError(
                f"the {part} of {path} has {len(steps)} steps that make a text up to {growth:g} times longer"
            )


def _steps(part: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a part, those of nested sequences included."""
    if not isinstance(part, Mapping) or depth > MAX_STEPS:
        return
    nested = part.get("normalizers") or part.get("pretokenizers")
    if isinstance(nested, list):
        for step in nested[: MAX_STEPS + 1]:
            yield from _steps(step, depth + 1)
    else:
        yield part


def _growth(step: Mapping[str, Any]) -> float:
    pattern, content = step.get("pattern"), step.get("content")
    literal = pattern.get("String") if isinstance(pattern, Mapping) else None
    added = len(content) if isinstance(content, str) else 0
    return added / len(literal) if isinstance(literal, str) and literal else float(added)
