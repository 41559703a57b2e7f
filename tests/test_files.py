"""Files are written whole or not at all, for their owner only, and never through a link."""

from __future__ import annotations

import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from router_ml.files import atomic_file, atomic_write, file_lock, mode_within


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_and_its_new_folders_are_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    atomic_write(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    assert [mode_of(p) for p in (path, path.parent, path.parent.parent)] == [0o600, 0o700, 0o700]


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic_write(tmp_path / "x", b"1", mode=0o644)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "x") == 0o644


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("theirs")
    link.symlink_to(target)
    atomic_write(link, "mine")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("theirs", "mine", False)


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def broken_rows() -> Iterator[bytes]:
        yield b"half"
        raise KeyError("broken")

    with pytest.raises(KeyError), atomic_file(path) as handle:
        handle.writelines(broken_rows())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_lock_is_not_taken_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), file_lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def _held_elsewhere(path: Path) -> bool:
    try:
        with file_lock(path, wait=False):
            return False
    except OSError:
        return True


def test_one_process_holds_a_lock_at_a_time(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with file_lock(tmp_path / "lock"):
            assert pool.apply(_held_elsewhere, (tmp_path / "lock",))
        assert not pool.apply(_held_elsewhere, (tmp_path / "lock",))


def test_files_of_a_shared_folder_are_shared_and_never_writable(tmp_path: Path) -> None:
    modes = {}
    for folder_mode in (0o700, 0o750, 0o755, 0o777):
        tmp_path.chmod(folder_mode)
        modes[folder_mode] = mode_within(tmp_path)
    tmp_path.chmod(0o700)
    assert modes == {0o700: 0o600, 0o750: 0o640, 0o755: 0o644, 0o777: 0o644}
