"""Graded requests: reading them, their difficulty, and the head that is scaled on held-out ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.errors import InputError
from training.complexity.finetune import N_OUTPUTS
from training.complexity.graded import agreement, difficulty_head, read_graded
from training.corpus import data_dir


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": f"d{i}", "text": f"text {i}", **row}) + "\n" for i, row in enumerate(rows))
    )
    return path


def test_difficulty_is_the_mean_of_two_grades(tmp_path: Path) -> None:
    graded = read_graded(
        write(tmp_path / "d.jsonl", [{"grades": [3, 3], "family": "maths"}, {"grades": [1, 2], "family": "code"}])
    )
    assert graded.difficulty.tolist() == pytest.approx([2.3, -0.1])  # between 3B (1.6) and 8B (3.0); and lower
    assert graded.family.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"grades": [3], "family": "maths"}, "grades"),
        ({"grades": [0, 6], "family": "maths"}, "grades"),
        ({"grades": [1, 1], "family": "cooking"}, "family"),
    ],
)
def test_a_bad_row_is_named_with_its_field(tmp_path: Path, row: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"d\.jsonl: d0: field '{field}'"):
        read_graded(write(tmp_path / "d.jsonl", [row]))


def test_agreement_of_equal_grades_is_one_and_of_reversed_ones_negative() -> None:
    grades = np.arange(1, 6)
    assert agreement(np.stack((grades, grades), axis=1)) == 1.0
    assert agreement(np.stack((grades, grades[::-1]), axis=1)) == pytest.approx(-1.0)


def test_the_head_is_scaled_so_that_held_out_requests_are_read_without_bias(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"grades": [int(g), int(g)], "family": "code"} for g in rng.integers(1, 6, 200)]
    test = read_graded(write(tmp_path / "d.jsonl", rows))
    vectors = np.stack((test.difficulty / 10 + 0.3, np.ones(200)), axis=1).astype(
        np.float32
    )  # another scale and origin
    weights = np.zeros((N_OUTPUTS, 2), np.float32)
    weights[4] = (1.0, 0.0)
    part = difficulty_head(
        weights, np.zeros(N_OUTPUTS, np.float32), vectors, test, (vectors, np.zeros(200, np.int64), 3)
    )
    assert (vectors @ part.weights[0, :2] + part.bias[0]).tolist() == pytest.approx(test.difficulty.tolist(), abs=1e-4)
    assert part.weights.shape == (6, 5)
    assert part.config["sd"] == pytest.approx(0.0, abs=1e-4)
    assert part.metrics["test/difficulty_rank_correlation"] == pytest.approx(1.0)


def test_the_shipped_grades_agree() -> None:
    graded = read_graded(data_dir() / "difficulty.jsonl")
    assert len(graded.texts) >= 4000
    assert agreement(graded.grades) > 0.8
    assert set(graded.family) == set(range(5))
