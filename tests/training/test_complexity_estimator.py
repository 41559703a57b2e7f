"""The exported complexity head answers as scikit-learn does, whatever labels there were."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.decide.predictors.complexity import LearnedComplexity
from training.complexity.complexity_head import STRENGTHS, fit_complexity, held_out_probabilities

DIM, COLUMNS = 6, 5


def _data(labels: tuple[int, ...], n: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    y = np.array([labels[i % len(labels)] for i in range(n)], dtype=np.int64)
    block = rng.normal(0, 1, (n, DIM)).astype(np.float32)
    block[:, 0] += y
    table = rng.normal(3, 20, (n, COLUMNS)).astype(np.float32)
    table[:, 1] = 7.0  # a column that never changes
    table[:, 2] += 8 * y
    return block, table, y, [f"g{i // 2}" for i in range(n)]


@pytest.mark.parametrize("labels", [(0, 1, 2, 3), (0, 1, 2), (1, 3), (0, 2), (3, 2, 1)])
@pytest.mark.parametrize("tune", [True, False])
def test_the_exported_head_answers_as_scikit_learn(labels: tuple[int, ...], tune: bool) -> None:
    block, table, y, groups = _data(labels)
    fitted = fit_complexity(block, table, y, groups, tune=tune)
    fresh_block, fresh_table, _, _ = _data(labels, seed=1)
    ours = LearnedComplexity(fitted.head())(fresh_block, fresh_table)
    theirs = np.zeros_like(ours)
    theirs[:, np.unique(y)] = fitted.probabilities(fresh_block, fresh_table)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[:, [i for i in range(4) if i not in labels]].max(initial=0.0) < 1e-6
    assert ours.sum(axis=1) == pytest.approx(np.ones(len(ours)), abs=1e-5)


def test_a_projection_is_folded_into_the_head() -> None:
    """Fitted on logits that follow from an embedding, the head acts on the embedding itself."""
    rng = np.random.default_rng(5)
    _, table, y, groups = _data((0, 1, 2, 3))
    embedding = rng.normal(0, 1, (len(y), 20)).astype(np.float32)
    projection, offset = rng.normal(0, 1, (4, 20)).astype(np.float32), rng.normal(0, 1, 4).astype(np.float32)
    logits = embedding @ projection.T + offset
    fitted = fit_complexity(logits, table, y, groups)
    ours = LearnedComplexity(fitted.head(projection, offset))(embedding, table)
    assert ours == pytest.approx(fitted.probabilities(logits, table), abs=1e-5)


def test_the_strength_is_the_one_of_least_loss() -> None:
    fitted = fit_complexity(*_data((0, 1, 2, 3)))
    assert set(fitted.losses) == set(STRENGTHS)
    assert fitted.losses[fitted.strength] == min(fitted.losses.values())


def test_held_out_probabilities_never_saw_their_group() -> None:
    """Labels drawn at random cannot be guessed from other groups, however well a fit knows its own rows."""
    rng = np.random.default_rng(9)
    block = rng.normal(0, 1, (300, 40)).astype(np.float32).repeat(2, axis=0)  # both rows of a group are alike
    labels = rng.integers(0, 4, 300).repeat(2)
    groups = [f"g{i // 2}" for i in range(600)]
    p = held_out_probabilities(block, np.zeros((600, 1), np.float32), labels, groups, 100.0)
    assert p.sum(axis=1) == pytest.approx(np.ones(600), abs=1e-4)
    assert (p.argmax(axis=1) == labels).mean() < 0.35


def test_rare_labels_do_not_stop_a_fit() -> None:
    """A label in one group alone is missing from a fold; a fold may even hold one label only."""
    block, table, y, groups = _data((0,), n=60)
    y[:2] = 2
    fitted = fit_complexity(block, table, y, groups)
    assert LearnedComplexity(fitted.head())(block, table).shape == (60, 4)
