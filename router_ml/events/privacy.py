"""What leaves the request as text and what does not: keyed hashes, redaction, and the switch that keeps text at all."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError

KEY_FILE = "events.key"
_KEY_BYTES = 32

# Order matters: what is narrow comes before what is wide.
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("credentials", re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")),
    ("email", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("secret", re.compile(r"(?i)\b(?:password|passwd|pwd|secret|token|api[_-]?key)\b\s*(?:is|[:=])\s*\S+")),
    ("secret", re.compile(r"\b(?:sk|pk|ghp|gho|xox[abp]|hf|AKIA)[-_]?[A-Za-z0-9_-]{16,}\b")),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,4})?\b")),
    ("address", re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")),
    ("number", re.compile(r"(?<![\w.])\+?\d(?:[ ().-]?\d){7,18}(?![\w])")),
    ("secret", re.compile(r"\b(?=\w*\d)(?=\w*[A-Za-z])\w{32,}\b")),
)


def redact(text: str) -> str:
    """The text with addresses, numbers of eight digits and more, and what looks like a secret replaced by its kind."""
    for kind, pattern in _PATTERNS:
        text = pattern.sub(f"[{kind}]", text)
    return text


def redacted(value: Any) -> Any:
    """A JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Privacy:
    """How the private parts of an event are written. Without text by default."""

    key: bytes
    keep_text: bool = False

    def digest(self, value: str) -> str:
        """A keyed hash (HMAC-SHA-256, 128 bits): equal values can be joined, and nobody without the key can guess."""
        return hmac.new(self.key, value.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def clean(self, row: dict[str, Any]) -> dict[str, Any]:
        """The dictionary form of an event, with its private parts hashed, redacted or left out. Changes `row`."""
        if "unit" in row:
            row["unit"] = self.digest(row["unit"])
        text = row.pop("text", None)
        if text is not None:
            row["query_key"] = self.digest(text)
            if self.keep_text:
                row["text"] = redact(text)
        context = row.pop("context", None)
        if context and "text" in row:
            row["context"] = redacted(context)
        comment = row.pop("comment", None)
        if comment is not None and self.keep_text:
            row["comment"] = redact(comment)
        return row


def load_key(folder: Path) -> bytes:
    """The key of keyed hashes, made on first use with access for its owner only.

    Raises `StoreError` where it can be neither read nor made."""
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        if not path.exists():
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
                handle.write(secrets.token_bytes(_KEY_BYTES))
            try:
                os.link(fresh, path)  # fails where another process was faster, so that all share one key
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        key = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read or make the key {path}: {error.strerror}; check its permissions") from error
    if len(key) < _KEY_BYTES:
        raise StoreError(f"the key {path} is too short; delete it to get a new one (old hashes will not join)")
    return key
