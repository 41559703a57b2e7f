"""What int8 gives up is measured on what is there, pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import fidelity
from benchmarks.study import SETS, Data
from router_ml.decide.features.extractor import Features


def test_a_missing_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main(["--bench", str(tmp_path / "nowhere")]) == 2
    assert "not a folder" in capsys.readouterr().err


def test_absent_data_is_skipped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [fidelity._paths(tmp_path, name) for name in SETS] == [None] * len(SETS)
    said = capsys.readouterr().err
    assert all(f"skipped {name}: " in said for name in SETS)


def test_what_is_given_up_is_the_mean_difference_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(2, dtype=np.float32)
    scores = {"exact": (0.80, 0.90, 0.85), "rough": (0.79, 0.91, 0.82)}

    def data(name: str) -> Data:
        return Data(name, [], [], Features(vectors, vectors), vectors)

    monkeypatch.setattr(fidelity, "_figures", lambda data, seed: {"aiq": scores[data.name][seed], "accuracy": 0.5})
    rows = list(fidelity._compared(data("exact"), data("rough"), 3))
    assert [row["what"].split(",")[0] for row in rows] == ["exact aiq", "exact accuracy"]
    assert rows[0]["given_up"] == pytest.approx((0.01 - 0.01 + 0.03) / 3)
    assert rows[0]["most"] == pytest.approx(0.03)
    assert rows[0]["by_seed"] == pytest.approx(0.10)
    assert rows[1]["given_up"] == 0.0
