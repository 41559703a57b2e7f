"""Novelty read from the vector alone."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.decide.predictors.novelty import NoveltyHead
from training.complexity.novelty_fit import CENTROIDS, fit_novelty


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_novelty_rises_from_near_to_far() -> None:
    head = NoveltyHead({"near": 0.8, "far": 0.4}, {"centroids": np.eye(2, 3)})
    for cosine, novelty in ((1.0, 0.0), (0.8, 0.0), (0.6, 0.5), (0.4, 1.0), (0.0, 1.0)):
        vector = np.array([cosine, 0.0, np.sqrt(1 - cosine**2)], np.float32)
        assert head(vector) == pytest.approx(novelty, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "centroids"),
    [({"near": 0.4, "far": 0.8}, np.eye(2)), ({"near": 0.8, "far": 0.4}, np.full((2, 2), np.nan))],
)
def test_a_head_that_makes_no_sense_is_refused(config: dict[str, float], centroids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="novelty head"):
        NoveltyHead(config, {"centroids": centroids})


def test_usual_queries_are_not_novel_and_others_are() -> None:
    rng = np.random.default_rng(0)
    usual = unit(rng.normal(size=(3000, 16)) * 0.2 + np.eye(16)[rng.integers(0, 8, 3000)])
    part = fit_novelty(usual[:2000])
    assert part is not None
    head = NoveltyHead(part.config, {"centroids": part.centroids})
    again = np.array([head(vector) for vector in usual[2000:]])
    assert (again > 0).mean() < 0.10  # 5 % by construction
    assert (again >= 0.9).mean() < 0.01
    other = unit(rng.normal(size=(200, 16)) * 0.2 - np.eye(16)[rng.integers(8, 16, 200)])
    assert np.mean([head(vector) for vector in other]) > 0.9


def test_too_few_queries_make_no_head() -> None:
    assert fit_novelty(unit(np.random.default_rng(0).normal(size=(CENTROIDS, 8)))) is None
