"""The affine correction of quantised logits: it finds a distortion, does nothing without one, and folds into a head."""

from __future__ import annotations

import numpy as np
import pytest

from training.complexity.logit_correction import fit_correction

MATRIX = np.array([[0.9, 0.05, 0, 0], [0, 1.1, 0, 0], [0, -0.1, 1, 0], [0, 0, 0.2, 0.95]], np.float32)
OFFSET = np.array([0.3, -0.2, 0, 0.1], np.float32)


def _logits(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (n, 4)).astype(np.float32)


def test_a_known_distortion_is_undone_on_rows_it_was_not_fitted_on() -> None:
    exact = _logits(400)
    noise = np.random.default_rng(1).normal(0, 0.1, exact.shape).astype(np.float32)
    correction = fit_correction(exact @ MATRIX.T + OFFSET + noise, exact)
    fresh = _logits(300, seed=2)
    rough = fresh @ MATRIX.T + OFFSET
    assert np.abs(rough - fresh).mean() > 0.2
    assert np.abs(correction(rough) - fresh).mean() < 0.05


def test_equal_logits_are_left_alone() -> None:
    exact = _logits(50)
    correction = fit_correction(exact, exact)
    assert correction.matrix == pytest.approx(np.eye(4), abs=1e-6)
    assert correction.offset == pytest.approx(np.zeros(4), abs=1e-6)


def test_few_rows_move_little() -> None:
    """Three rows cannot tell a distortion of four logits from chance."""
    exact = _logits(3) / 10
    correction = fit_correction(exact + OFFSET, exact)
    assert np.abs(correction.matrix - np.eye(4)).max() < 0.05
    assert np.abs(correction.offset).max() < 0.1


def test_folded_into_a_head_it_is_the_same_map() -> None:
    rng = np.random.default_rng(3)
    weights, bias = rng.normal(0, 1, (4, 12)).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32)
    vectors, exact = rng.normal(0, 1, (60, 12)).astype(np.float32), _logits(60)
    rough = vectors @ weights.T + bias
    correction = fit_correction(rough, exact)
    folded_weights, folded_bias = correction.folded(weights, bias)
    assert vectors @ folded_weights.T + folded_bias == pytest.approx(correction(rough), abs=1e-4)
