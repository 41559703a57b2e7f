"""Figures of a classifier, held to hand calculation and to a published example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.labelling import Agreement, main, read_agreement
from router_ml.errors import InputError, RowError
from router_ml.types import LABELS
from training.measuring.classification import classification_figures
from training.measuring.metrics import ece


def test_f1_by_hand() -> None:
    # simple: precision 1/2, recall 1/2; moderate: precision 1/2, recall 1; complex: never right; ambiguous: always
    p = np.eye(4)[[0, 1, 1, 0, 3, 3]]
    figures = classification_figures(p, np.array([0, 0, 1, 2, 3, 3]))
    assert [figures[f"f1_{label}"] for label in LABELS] == pytest.approx([1 / 2, 2 / 3, 0, 1])


def test_calibration_error_by_hand() -> None:
    """Four bins: two at .25..5 with confidence .4 and one hit, two at .75..1 with confidence .9 and two hits."""
    confidence, correct = np.array([0.4, 0.4, 0.9, 0.9]), np.array([1.0, 0.0, 1.0, 1.0])
    assert ece(confidence, correct, bins=4) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert ece(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.0
    assert ece(np.array([1.0, 1.0]), np.array([0.0, 0.0])) == 1.0


def test_all_figures_by_hand() -> None:
    p = np.array([[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.0, 1.0, 0.0, 0.0]])
    scores = classification_figures(p, np.array([0, 1, 1]))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["f1_simple"] == pytest.approx(2 / 3)
    assert scores["f1_moderate"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx(2 / 3)  # over the labels that occur
    assert set(scores) == {"accuracy", "macro_f1", "f1_simple", "f1_moderate", "ece", "brier"}
    brier = [0.3**2 + 3 * 0.1**2, 0.4**2 + 0.7**2 + 0.2**2 + 0.1**2, 0.0]
    assert scores["brier"] == pytest.approx(sum(brier) / 3)
    assert scores["ece"] == pytest.approx((0.3 + 0.4 + 0.0) / 3)


def _labelled(counts: np.ndarray) -> Agreement:
    """Two labellings with a confusion matrix of these counts."""
    pairs = [(LABELS[i], LABELS[j]) for i, j in np.ndindex(4, 4) for _ in range(counts[i, j])]
    return Agreement(*zip(*pairs, strict=True))


def test_kappa_of_a_published_example() -> None:
    """Cohen (1960): 200 subjects, three categories, observed agreement .70, by chance .41, kappa .492."""
    counts = np.zeros((4, 4), dtype=np.int64)
    counts[:3, :3] = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
    agreement = _labelled(counts)
    assert agreement.observed == pytest.approx(0.70)
    assert agreement.kappa == pytest.approx(0.492, abs=5e-4)


def test_kappa_at_its_ends() -> None:
    assert _labelled(np.diag([5, 5, 5, 5])).kappa == pytest.approx(1.0)
    assert _labelled(np.full((4, 4), 3)).kappa == pytest.approx(0.0)
    assert _labelled(np.diag([5, 0, 0, 0])).kappa == 1.0


def test_agreement_is_read_from_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "second.jsonl"
    rows = [("simple", "simple"), ("simple", "moderate"), ("complex", "complex"), ("ambiguous", "ambiguous")]
    path.write_text(
        "\n".join(json.dumps({"id": str(i), "first": a, "second": b}) for i, (a, b) in enumerate(rows)) + "\n\n"
    )
    assert read_agreement(path).second[:2] == ("simple", "moderate")
    assert main([str(path)]) == 0
    assert "4 rows labelled twice: 75.0% alike, Cohen's kappa 0.667" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", "5", '{"first": "simple"}', '{"first": "simple", "second": ["simple"]}'])
def test_a_bad_row_of_labels_names_its_place(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "second.jsonl"
    path.write_text('{"first": "simple", "second": "simple"}\n' + line + "\n")
    with pytest.raises(RowError) as caught:
        read_agreement(path)
    assert caught.value.line == 2
    assert main([str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_labels_at_all_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name in ("empty.jsonl", "absent.jsonl"):
        with pytest.raises(InputError, match=name):
            read_agreement(tmp_path / name)
