"""Whole files or none, read by their owner only, and the lock between processes."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_CREATE = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

if sys.platform == "win32":
    import msvcrt

    def lock_open_file(descriptor: int, *, wait: bool = True) -> None:
        """Lock an open file until it is closed. Raises `OSError` where another process holds it and `wait` is off."""
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def lock_open_file(descriptor: int, *, wait: bool = True) -> None:
        """Lock an open file until it is closed. Raises `OSError` where another process holds it and `wait` is off."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made where it is missing and left there afterwards.

    The lock ends with the process that holds it. Raises `OSError` where the file cannot be opened, is a symbolic link,
    or, unless `wait`, is locked by another process."""
    make_private_folder(path.parent)
    descriptor = os.open(path, os.O_RDWR | _CREATE, PRIVATE_FILE)
    try:
        lock_open_file(descriptor, wait=wait)
        yield
    finally:
        os.close(descriptor)


def make_private_folder(path: Path) -> None:
    """Make a folder and its missing parents, readable by their owner only; existing folders stay as they are."""
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)


@contextmanager
def atomic_file(path: Path, mode: int = PRIVATE_FILE) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and leaves no trace where the block raises.

    Readers see the old content or the new one. A symbolic link at `path` is replaced, never written through. Raises
    `OSError` where the folder cannot be made or written."""
    make_private_folder(path.parent)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_EXCL | _CREATE, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)  # whatever the umask leaves out
            yield handle
            handle.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write(path: Path, data: bytes | str, mode: int = PRIVATE_FILE) -> None:
    """Replace a file by `data` (text as UTF-8) in one step, on disk before the call returns; see `atomic_file`."""
    with atomic_file(path, mode) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


def mode_within(folder: Path) -> int:
    """Return the mode of a file that whoever may read its folder may read: 0600 in a private folder."""
    return PRIVATE_FILE | (folder.stat().st_mode & 0o044)


def _sync_folder(folder: Path) -> None:
    """Put a renaming on disk where the system can."""
    with suppress(OSError):  # Windows opens no folders; some network file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
