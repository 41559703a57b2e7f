"""The simulation of a cascade says what its figures are, and gains where the signal tells."""

from __future__ import annotations

import numpy as np

from benchmarks import cascade
from benchmarks.cascade import Pool, folds_of, policy_of, rows_of, simulate


def pool(n: int = 400, seed: int = 0) -> Pool:
    """A cheap model that is right on half of the questions and a dear one that is on nine of ten; nobody sees which."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    success = (rng.random((n, 2)) < [0.5, 0.9]).astype(float)
    cost = np.tile([1.0, 4.0], (n, 1))
    return Pool(("cheap", "dear"), vectors, vectors @ vectors.T, success, cost, np.arange(n), "s")


def test_a_strong_signal_serves_more_utility_under_the_same_policy() -> None:
    data = pool()
    folds = folds_of(data, 0)
    plain = simulate(data, folds, policy_of(data, 0.2, cascade=False), 0.5, 0)
    better = simulate(data, folds, policy_of(data, 0.2, cascade=True), 0.95, 0)
    assert plain.asked.mean() == 1.0  # the dear one: .9 - .2 against .5 - .05
    assert better.utility(0.2, 4.0).mean() > plain.utility(0.2, 4.0).mean() + 0.03
    assert better.cost.mean() < plain.cost.mean()
    assert 0.3 < better.escalated.mean() < 0.7
    assert set(better.cost[better.escalated == 1]) == {5.0}  # both answers are paid for


def test_the_table_has_each_strength_beside_the_policy_without() -> None:
    rows = rows_of(pool(100), "made up", 0.1, 0)
    assert [row[1] for row in rows] == ["without", "0.65", "0.72", "0.83"]
    assert "SIMULATED" in (cascade.__doc__ or "")


def test_a_folder_that_is_absent_is_told(tmp_path, capsys) -> None:
    assert cascade.main(["--bench", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err
