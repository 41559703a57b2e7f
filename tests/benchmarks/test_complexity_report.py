"""The figures of a bundle that the README quotes come from a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.complexity_report import main

DATA = Path(__file__).resolve().parents[2] / "data"


def test_the_default_bundle_reads_the_test_groups_far_better_than_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = DATA.parent / "models" / "default"
    assert main(["--bundle", str(bundle), "--queries", str(DATA / "queries.jsonl")]) == 0
    figures = {line.split()[0]: float(line.split()[1]) for line in capsys.readouterr().out.splitlines()}
    assert figures["rows"] == 3916
    assert figures["macro_f1"] >= 0.83  # the rules reach .48
    assert figures["ece"] <= 0.05


def test_a_file_without_labels_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text('{"id": "a", "text": "hi", "context": null, "label": null}\n', encoding="utf-8")
    assert main(["--queries", str(path), "--all"]) == 2
    assert "no labelled queries" in capsys.readouterr().err
