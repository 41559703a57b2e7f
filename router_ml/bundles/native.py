"""Checks of the files that native code reads: what could run without end or fill the memory is refused before it runs.

Neither library bounds its work: an ONNX graph may hold loops, and a tokenizer may double its text again and again. What
remains (a panic, a wrong result) is caught where the encoder is run."""

from __future__ import annotations

import json
import math
import mmap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from router_ml.errors import EncoderError, shown
from router_ml.files import reason

T = TypeVar("T")

MAX_NODES = 50_000
MAX_ELEMENTS = 1 << 28  # of one tensor that a graph makes from a constant shape
MAX_DEPTH = 8  # of graphs within graphs
MAX_GROWTH = 64  # how many times longer a normalizer may make a text
MAX_STEPS = 10  # of a normalizer or pre-tokenizer, sequences of them included
MAX_WORD_CHARS = 10_000  # WordPiece takes quadratic time in the length of a word
MAX_ADDED_TOKENS = 100_000
_UNBOUNDED_OPERATORS = frozenset(
    {"Loop", "Scan", "SequenceMap", "Tile", "Resize", "Upsample", "EyeLike", "OneHot", "Multinomial"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "MaxUnpool"}
)
_SHAPED_OPERATORS = {"ConstantOfShape": 0, "Expand": 1}  # the input that says how large the result is
_TOKENIZER_PARTS = {
    "model": {"WordPiece", "Unigram", "BPE", "WordLevel"},
    "normalizer": {"BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled",
                   "Prepend", "Replace", "Sequence", "Strip", "StripAccents"},
    "pre_tokenizer": {"BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation",
                      "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit"},
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
}  # fmt: skip

_Message: TypeAlias = Mapping[int, list[Any]]  # values by field number, as protobuf has them


def check_graph(path: Path) -> None:
    """Raise `EncoderError` if a file is not an ONNX model, or has loops, functions or files outside itself."""
    try:
        with path.open("rb") as handle:  # mapped: the weights, nearly all of it, are skipped
            model = _message(memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)))
        graphs = model.get(7, [])
        if not graphs or 25 in model:  # functions nest, and double at each level
            raise ValueError("it holds no graph" if not graphs else "it holds functions of its own")
        left = MAX_NODES
        for graph in graphs:
            left = _check_nodes(_message(graph), left, MAX_DEPTH)
    except (OSError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise EncoderError(f"cannot load the encoder {path}: {reason(error)}; fit or copy the bundle again") from error


def _check_nodes(graph: _Message, left: int, depth: int) -> int:
    """Check the nodes of a graph and of the graphs within it; returns how many more nodes there may be."""
    shapes = {}
    if 15 in graph:
        raise ValueError("it holds sparse weights")
    for tensor in map(_message, graph.get(5, ())):
        _check_tensor(tensor)
        shapes[bytes(tensor.get(8, [b""])[0])] = tensor
    for node in map(_message, graph.get(1, ())):
        left -= 1
        name = bytes(node.get(4, [b""])[0]).decode("utf-8", "replace")
        if name in _UNBOUNDED_OPERATORS or left < 0 or depth < 1:
            raise ValueError(f"its graph is unbounded (operator {name!r:.40})")
        if name in _SHAPED_OPERATORS:
            place, inputs = _SHAPED_OPERATORS[name], node.get(1, [])
            _check_size(shapes.get(bytes(inputs[place]) if place < len(inputs) else b""))
        for attribute in map(_message, node.get(5, ())):
            for tensor in map(_message, (*attribute.get(5, ()), *attribute.get(10, ()))):
                _check_tensor(tensor)
                if name == "Constant":
                    shapes[bytes(node.get(2, [b""])[0])] = tensor
            for inner in (*attribute.get(6, ()), *attribute.get(11, ())):
                left = _check_nodes(_message(inner), left, depth - 1)
    return left


def _check_tensor(tensor: _Message) -> None:
    if tensor.get(13) or any(tensor.get(14, ())):
        raise ValueError("it refers to weights in files outside the bundle")


def _check_size(shape: _Message | None) -> None:
    """Refuse a shape of 64-bit integers whose product is too large."""
    raw = bytes(shape.get(9, [b""])[0]) if shape else b""
    sizes = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw) - 7, 8)]
    sizes += [value for value in (shape.get(7, ()) if shape else ()) if isinstance(value, int)]
    if math.prod(size for size in sizes if size > 0) > MAX_ELEMENTS:
        raise ValueError("it makes a tensor too large for the memory")


def _message(data: memoryview) -> _Message:
    """Return the fields of a protobuf message. Raises `ValueError` or `IndexError` if it is not one."""
    fields: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        fields.setdefault(number, []).append(value)
    return fields


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError("it is not an ONNX model")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("it is not an ONNX model")


def within_cpu_time(work: Callable[[], T], limit_s: float) -> T:
    """Return what `work` returns; its errors, panics of native code included, are raised here.

    Processor time is counted and not time, so that a busy machine fails nothing. Raises `EncoderError` if it takes
    more than `limit_s` of processor time; native code cannot be interrupted, and goes on in a daemon thread."""
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    started_s = time.process_time()
    threading.Thread(target=run, name="router_ml-bundle-check", daemon=True).start()
    while not done.wait(0.1):
        if time.process_time() - started_s > limit_s:
            raise EncoderError(f"the encoder takes more than {limit_s:g} s of processor time for a few short texts")
    if errors:
        raise errors[0]
    return results[0]


def check_tokenizer(path: Path) -> None:
    """Raise `EncoderError` if a tokenizer is not JSON, or has parts whose work on a text is not bounded."""
    try:
        tokenizer = json.loads(path.read_bytes())
        for part, known in _TOKENIZER_PARTS.items():
            _check_part(tokenizer.get(part), part, known)
        if _growth(tokenizer.get("normalizer")) > MAX_GROWTH:
            raise ValueError("its normalizer makes texts many times longer")
        if tokenizer["model"].get("max_input_chars_per_word", 0) > MAX_WORD_CHARS:
            raise ValueError(f"its words may be longer than {MAX_WORD_CHARS:,} characters")
        if len(tokenizer.get("added_tokens") or ()) > MAX_ADDED_TOKENS:
            raise ValueError(f"it adds more than {MAX_ADDED_TOKENS:,} tokens")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EncoderError(
            f"cannot load the tokenizer {path}: {reason(error)}; fit or copy the bundle again"
        ) from error


def _check_part(part: Any, name: str, known: set[str]) -> None:
    steps = list(_steps(part))
    if len(steps) > MAX_STEPS:  # some double the length of every text
        raise ValueError(f"its {name} has {len(steps)} steps, and could make texts many times longer")
    for step in steps:
        if step.get("type", "WordPiece" if name == "model" else None) not in known:
            raise ValueError(f"its {name} has the unknown type {shown(step.get('type'))}")
        pattern = (step.get("pattern") or {}).get("Regex", "") if isinstance(step.get("pattern"), Mapping) else ""
        if sum(map(pattern.count, "*+?{")) > 1 or "\\" in pattern.replace("\\s", ""):
            raise ValueError(f"its {name} has the pattern {shown(pattern)}, whose search may never end")


def _growth(normalizer: Any) -> int:
    """Return how many times longer a normalizer makes a text at most."""
    growth = 1
    for step in _steps(normalizer):
        if step.get("type") == "Replace":
            replaced = step["pattern"].get("String", "")
            growth *= max(1, math.ceil(len(step["content"]) / len(replaced)) if replaced else len(step["content"]) + 1)
    return growth


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a part of a tokenizer, or the steps of a sequence of parts."""
    if part is None:
        return
    yield part
    for key in ("normalizers", "pretokenizers", "processors"):
        for step in part.get(key) or ():
            yield from _steps(step)
