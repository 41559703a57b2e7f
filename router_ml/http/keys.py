"""API keys: who may call, as whom, under which policy and how often. Only hashes are stored."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router_ml.errors import SettingsError
from router_ml.files import atomic_file, file_lock

_PREFIX = "rml-"
_FIELDS = {"user": str, "sha256": str, "policy": (str, type(None)), "per_minute": (int, type(None))}


@dataclass(frozen=True, slots=True)
class Key:
    """One key as stored in the file."""

    user: str  # whose it is; the user id of its requests
    sha256: str  # of the key, hexadecimal; keys are random, so no salt is needed
    policy: str | None = None  # every request of this key is served under it
    per_minute: int | None = None  # requests a minute; None: no limit
    created_s: float = 0.0  # Unix time


class KeyFile:
    """The keys in a JSON file that its owner alone can read. It is read anew when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    @property
    def path(self) -> Path:
        """The file of the keys."""
        return self._path

    def all(self) -> tuple[Key, ...]:
        """Return every key. Raises `SettingsError` if the file cannot be used."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._keys = None, ()
            return ()
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            if os.name == "posix" and found.st_mode & 0o077:
                raise SettingsError(f"{self._path} can be read by others; run: chmod 600 {self._path}")
            self._keys, self._stamp = self._read(), stamp
        return self._keys

    def find(self, given: str) -> Key | None:
        """Return the stored hash of a key; takes the same time for a wrong key as for a right one."""
        shown = _hash(given)
        found = None
        for key in self.all():
            if hmac.compare_digest(key.sha256, shown):
                found = key
        return found

    def add(self, user: str, policy: str | None = None, per_minute: int | None = None) -> str:
        """Make a key; it is returned once and not stored. Raises `SettingsError` if the user has one."""
        secret = _PREFIX + secrets.token_urlsafe(32)
        with file_lock(self._path.with_suffix(".lock")):
            if any(key.user == user for key in self.all()):
                raise SettingsError(f"{user!r} has a key; revoke it first, or choose another name")
            self._write((*self.all(), Key(user, _hash(secret), policy, per_minute, round(time.time(), 3))))
        return secret

    def revoke(self, user: str) -> None:
        """Delete a user's key. Raises `SettingsError` if there is none."""
        with file_lock(self._path.with_suffix(".lock")):
            left = tuple(key for key in self.all() if key.user != user)
            if len(left) == len(self.all()):
                raise SettingsError(f"{user!r} has no key; `router-ml keys list` shows who has")
            self._write(left)

    def _read(self) -> tuple[Key, ...]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))["keys"]
            return tuple(_key(row) for row in rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{self._path} is not a key file ({error}); restore it, or create new keys") from error

    def _write(self, keys: tuple[Key, ...]) -> None:
        with atomic_file(self._path) as file:
            file.write(json.dumps({"format": 1, "keys": [asdict(key) for key in keys]}, indent=1).encode())


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _key(row: Mapping[str, Any]) -> Key:
    for name, kind in _FIELDS.items():
        if not isinstance(row.get(name), kind):  # type: ignore[arg-type]
            raise TypeError(f"a key's {name} is {row.get(name)!r:.40}")
    return Key(row["user"], row["sha256"], row.get("policy"), row.get("per_minute"), float(row.get("created_s", 0.0)))
