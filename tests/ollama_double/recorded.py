"""Exchanges recorded from a real Ollama server, and how a request finds its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recordings"


@dataclass(frozen=True)
class Recording:
    """One request and what the server sent back."""

    name: str
    method: str
    path: str
    request_body: Any  # JSON, or the raw text where it was not JSON
    status: int
    content_type: str
    chunked: bool
    body: str
    chunks_ms: tuple[tuple[float, str], ...]

    @property
    def raw_request(self) -> bytes:
        body = self.request_body
        if body is None:
            return b""
        return body.encode() if isinstance(body, str) else json.dumps(body).encode()


@cache
def load_recordings() -> tuple[Recording, ...]:
    """Every recording, by name."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.json")))


@cache
def _index() -> dict[tuple[str, str, str], Recording]:
    return {(r.method, r.path, _canonical(r.raw_request)): r for r in load_recordings()}


def find(method: str, path: str, body: bytes) -> Recording | None:
    """The recording of exactly this request, if there is one."""
    return _index().get((method, path, _canonical(body)))


def _canonical(body: bytes) -> str:
    try:
        return json.dumps(json.loads(body), sort_keys=True)
    except ValueError:
        return body.decode(errors="replace")


def _read(path: Path) -> Recording:
    data = json.loads(path.read_text(encoding="utf-8"))
    request, headers = data["request"], data["headers"]
    return Recording(
        name=path.stem,
        method=request["method"],
        path=request["path"],
        request_body=request["body"],
        status=data["status"],
        content_type=headers["content-type"],
        chunked="transfer-encoding" in headers,
        body=data["body"],
        chunks_ms=tuple((ms, text) for ms, text in data["chunks_ms"] or ()),
    )
