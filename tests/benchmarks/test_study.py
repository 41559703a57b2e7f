"""The study says what is missing and runs on what is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study import SETS, Reader, main


def test_a_missing_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bench", str(tmp_path / "nowhere")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_absent_data_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = object.__new__(Reader)  # no encoder is needed to find that a file is absent
    reader._bench = tmp_path
    assert [reader.read(name) for name in SETS] == [None] * len(SETS)
    said = capsys.readouterr().err
    assert all(f"skipped {name}: " in said for name in SETS)
