"""Atomic and private file writes, and a lock between processes."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_CREATE = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

if sys.platform == "win32":
    import msvcrt

    def lock_open_file(descriptor: int, *, wait: bool = True) -> None:
        """Lock an open file until it is closed. Raises `OSError` if another process holds it and `wait` is off."""
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def lock_open_file(descriptor: int, *, wait: bool = True) -> None:
        """Lock an open file until it is closed. Raises `OSError` if another process holds it and `wait` is off."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file, which is made where it is missing and left there afterwards.

    The lock ends with the process that holds it. Raises `OSError` if the file cannot be opened, is a symbolic link,
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

    Readers see the old content or the new one. A symbolic link at `path` is replaced, never written through; a device
    or pipe, such as /dev/stdout, is written to as it is. Raises `OSError` if the folder cannot be made or written.
    """
    if _is_device(path):
        with path.open("wb") as handle:
            yield handle
        return
    make_private_folder(path.parent)
    partial = path.with_name(f".{path.name[:100]}.{os.urandom(8).hex()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_EXCL | _CREATE, mode)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            if hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)  # independent of the umask
            yield handle
            handle.flush()
            os.fsync(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _is_device(path: Path) -> bool:
    """Return whether a path is a device or a pipe, which must not be replaced by a file."""
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return True
    try:
        return stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)
    except OSError:
        return False


def atomic_write(path: Path, data: bytes | str, mode: int = PRIVATE_FILE) -> None:
    """Replace a file by `data` (text as UTF-8) in one step, on disk before the call returns; see `atomic_file`."""
    with atomic_file(path, mode) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_regular(path: Path, max_bytes: int) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file of a limited size for reading, following links; yield it and its size in bytes.

    Raises `OSError` if it cannot be opened, is not a regular file (a pipe or device could block for ever), or is too
    large."""
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as handle:
        found = os.fstat(handle.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if found.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes")
        yield handle, found.st_size


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of a limited size. Raises as `open_regular` does."""
    with open_regular(path, max_bytes) as (handle, size):
        data = handle.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EBUSY, "it is being written")
    return data


def foreign_link(path: Path) -> bool:
    """Return whether a path is a symbolic link made by another user, other than the administrator."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISLNK(found.st_mode) and hasattr(os, "geteuid") and found.st_uid not in (0, os.geteuid())


def reason(error: BaseException) -> str:
    """Return why a file could not be used, in one line without its path."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0][:200]


def mode_within(folder: Path) -> int:
    """Return the mode of a file with the readers of its folder: 0600 in a private folder."""
    return PRIVATE_FILE | (folder.stat().st_mode & 0o044)


def _sync_folder(folder: Path) -> None:
    """Put a renaming on disk where the system can."""
    with suppress(OSError):  # Windows opens no folders; some network file systems do not sync them
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
