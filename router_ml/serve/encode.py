"""Values of a request as JSON has them, so that values that cannot be sent are found before any model is called."""

from __future__ import annotations

import base64
import binascii
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router_ml.errors import QueryError
from router_ml.messages import clean_text

MAX_DEPTH = 100  # a value nested deeper contains itself, or is a mistake
MAX_VALUES = 200_000  # of one part of a request
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


class _NotJson(Exception):
    """Why a value is not JSON, and the path to it, the innermost step first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason, self.steps = reason, list[str]()


def json_ready(value: Any, where: str) -> Any:
    """Return a value made of JSON's types alone: numpy numbers and arrays and pydantic models are converted, unpaired
    surrogates replaced.

    Raises `QueryError` that names the place, beginning with `where`, for everything else: numbers that are not finite,
    sets, bytes, objects, and values nested or repeated without end."""
    try:
        return _encoded(value, MAX_DEPTH, [MAX_VALUES])
    except _NotJson as error:
        raise QueryError(f"{where}{''.join(reversed(error.steps))[:200]} {error.reason}") from error


def image_base64(image: Any, where: str, *, files: bool = True) -> str:
    """Return an image as base64 text. It may be the path of a file (where `files`), bytes, base64 text or a data URL.

    Raises `QueryError` for anything else, and for a file that cannot be read."""
    value = getattr(image, "value", image)  # ollama.Image
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, os.PathLike) and files:
        return _file_base64(Path(value), where)
    if not isinstance(value, str):
        raise QueryError(f"{where} is of type {type(value).__name__}; give a path, bytes, base64 text or a data URL")
    text = _DATA_URL.sub("", value, count=1) if value[:5].lower() == "data:" else value
    if files and _is_file(text):
        return _file_base64(Path(text), where)
    text = "".join(text.split())
    try:
        if text and base64.b64decode(text, validate=True):
            return text
    except (binascii.Error, ValueError):
        pass
    raise QueryError(
        f"{where} is neither an existing file nor base64 text: {value!r:.80}; give a path, bytes or base64"
    )


def _encoded(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise _NotJson(f"holds more than {MAX_VALUES:,} values; does a part of it contain itself? Send less")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return clean_text(str.__str__(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _NotJson(f"is {float(value)}, which JSON does not have; give a finite number or leave it out")
        return float(value)
    if depth == 0:
        raise _NotJson(f"is nested more than {MAX_DEPTH} deep; does it contain itself?")
    if isinstance(value, Mapping):
        return {_key(key): _step(f".{key!s:.60}", item, depth, left) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_step(f"[{index}]", item, depth, left) for index, item in enumerate(value)]
    return _encoded(_converted(value), depth - 1, left)


def _step(step: str, value: Any, depth: int, left: list[int]) -> Any:
    try:
        return _encoded(value, depth - 1, left)
    except _NotJson as error:
        error.steps.append(step)
        raise


def _key(key: Any) -> str:
    if isinstance(key, str):
        return clean_text(str.__str__(key))
    if isinstance(key, int | float):
        return str(key)
    raise _NotJson(f"has a key of type {type(key).__name__}; keys must be text")


def _converted(value: Any) -> Any:
    """Return what a pydantic model or a number of numpy holds."""
    try:
        if hasattr(value, "model_dump") and not isinstance(value, type):
            return value.model_dump(mode="json", by_alias=True, exclude_none=True)
        if hasattr(value, "tolist") and not isinstance(value, type):
            return value.tolist()
    except Exception as error:  # third-party code
        raise _NotJson(f"({type(value).__name__}) cannot be converted: {type(error).__name__}") from error
    raise _NotJson(f"is of type {type(value).__name__}, which is not JSON; give text, numbers, lists or mappings")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # base64 text is too long for a path
        return False


def _file_base64(path: Path, where: str) -> str:
    try:
        if path.is_file():
            return base64.b64encode(path.read_bytes()).decode()
        reason = "it is not a file" if path.exists() else "no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise QueryError(f"{where}: the file {path} cannot be read ({reason}); give an existing path, or bytes")
