"""A journal keeps every row that was written, and no torn one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.errors import InputError, StoreError
from training.measuring.row_log import RowLog

ROWS = [{"query_id": f"q{i}", "model": "m", "text": "größer\u2028" * i} for i in range(5)]


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 10_000))
def test_cut_anywhere_and_gone_on_with_it_holds_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    cut %= len(whole) + 1
    path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    with pytest.MonkeyPatch.context() as patch, RowLog(path) as journal:
        patch.setattr(os, "fsync", lambda file: None)  # what survives a power cut is not asked here
        # A row that lacks nothing but its line end is whole.
        assert len(journal) in (complete, complete + 1)
        for row in ROWS:
            journal.append(row)
    assert path.read_bytes() == whole


def test_rows_are_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowLog(path) as journal:
        journal.append(ROWS[1])
        journal.append(ROWS[1])
    with RowLog(path) as journal:
        assert ("q1", "m") in journal
        assert journal.rows["q1", "m"] == ROWS[1]
    assert len(path.read_text("utf-8").split("\n")) == 2


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    with RowLog(tmp_path / "rows.jsonl"), pytest.raises(InputError, match="another benchmark"):
        RowLog(tmp_path / "rows.jsonl")
    RowLog(tmp_path / "rows.jsonl").close()


@pytest.mark.parametrize("text", ['{"id": "x"}\n', "hello\nworld\n", '{"query_id": "q0", "model": "m"}\n' * 2])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError):
        RowLog(path)
    assert path.read_text() == text


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    real = os.write
    with RowLog(path) as journal:
        journal.append(ROWS[0])
        monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:9]))
        with pytest.raises(StoreError, match="--resume"):
            journal.append(ROWS[1])
        monkeypatch.undo()
        journal.append(ROWS[1])
    assert [json.loads(line)["query_id"] for line in path.read_bytes().splitlines()] == ["q0", "q1"]
