"""Arrays cached between fits: no text is stored, nothing is unpickled, and only the owner reads or writes an entry."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.files import atomic_file, make_private_folder
from training.arrays import Arrays

log = logging.getLogger(__name__)

MAX_AGE_DAYS = 30.0  # since an entry was last used
_OLD_FORMAT = Path("joblib") / "training"  # held the texts themselves, as pickles and JSON


def cache_dir() -> Path:
    """Return ROUTER_ML_CACHE_DIR, else `router_ml` under the user's cache folder."""
    chosen = os.environ.get("ROUTER_ML_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(chosen) if chosen else Path(base) / "router_ml").expanduser()


class ArrayCache:
    """Results of expensive computations by the SHA-256 of their inputs, as npz files without objects.

    A folder or entry that others may write, or that another user owns, is neither read nor written."""

    def __init__(self, enabled: bool = True) -> None:
        self._folder = _usable(cache_dir() / "arrays") if enabled else None

    def get(self, kind: str, key: Sequence[Any], compute: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of a JSON-ready key, computed where they are not cached.

        Where `compute` raises, nothing is cached."""
        if self._folder is None:
            return compute()
        digest = hashlib.sha256(json.dumps([kind, *key], sort_keys=True, default=str).encode()).hexdigest()
        path = self._folder / f"{kind}-{digest[:40]}.npz"
        found = _read(path)
        if found is None:
            found = compute()
            _write(path, found)
        return found


def _usable(folder: Path) -> Path | None:
    """Return the folder, made and cleared of old entries; None if it cannot be used."""
    try:
        make_private_folder(folder)
        if not _is_private(folder.stat()):
            log.warning("%s can be written by others and is not used as a cache; run 'chmod go-w' on it", folder)
            return None
        shutil.rmtree(folder.parent / _OLD_FORMAT, ignore_errors=True)
        oldest = time.time() - MAX_AGE_DAYS * 86_400
        for path in folder.glob("*.npz"):
            if path.lstat().st_mtime < oldest:
                path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be used as a cache (%s); results are computed anew", folder, error)
        return None
    return folder


def _is_private(status: os.stat_result) -> bool:
    return os.name == "nt" or (status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _read(path: Path) -> Arrays | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as handle:
            if not _is_private(os.fstat(handle.fileno())):
                return None
            with np.load(io.BytesIO(handle.read()), allow_pickle=False) as found:
                arrays = dict(found)
        os.utime(path)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive fails in many ways; the entry is computed anew
        log.info("the cache entry %s cannot be read (%s)", path.name, error)
        return None
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    try:
        with atomic_file(path) as handle:
            np.savez(handle, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        log.warning("cannot write to the cache (%s); a later fit computes the same again", error)
