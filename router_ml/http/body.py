"""Read the body of a request, bounded in size and time, as JSON that can be encoded again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from router_ml.http.options import ServerOptions
from router_ml.http.problems import Problem


async def read_body(request: Request, options: ServerOptions) -> bytes:
    """Read the whole body. Raises `Problem` if it is too large or too slow, and `ClientDisconnect`."""
    limit = options.body_limit_bytes
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(options.body_idle_s):
                message = await request.receive()
        except TimeoutError:
            raise Problem("timed_out", f"nothing came for {options.body_idle_s:g} s; send the body at once") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_json(raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a body without unpaired surrogates. Raises `Problem` if it is not a JSON object."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Problem("invalid", f"the body is not JSON ({error}); send a JSON object") from None
    if not isinstance(value, dict):
        raise Problem("invalid", f"the body must be a JSON object, found {type(value).__name__}")
    try:
        return dict(_cleaned(value)) if b"\\ud" in raw.lower() else value
    except RecursionError:
        raise Problem("invalid", "the body is nested too deeply") from None


def lenient_json(raw: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a body, or an empty one; the host reports what is wrong with it."""
    try:
        return parse_json(raw)
    except Problem:
        return {}


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _too_large(limit: int) -> Problem:
    return Problem("too_large", f"the body is larger than {limit / 2**20:g} MiB")
