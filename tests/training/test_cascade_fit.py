"""The map from log-probabilities to right answers is found where there is one, and nowhere else."""

from __future__ import annotations

import json
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.cascade import simulated_signal
from router_ml.decide.selection.cascade import AnswerCheck
from training.outcomes.cascade_fit import MIN_OUTCOMES, Rows, _fit, cascade_config


def world(n: int, auroc: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A small arm that the signal judges, and a large one that gives no log-probabilities."""
    rng = np.random.default_rng(seed)
    p = np.column_stack((rng.uniform(0.2, 0.9, n), rng.uniform(0.7, 0.95, n)))
    success = (rng.random((n, 2)) < p).astype(float)
    signal = simulated_signal(success, auroc, seed)
    signal[:, 1] = np.nan
    return p, success, signal, np.arange(n)


def fitted(n: int, auroc: float, seed: int = 0) -> tuple[AnswerCheck | None, str]:
    config = cascade_config(*world(n, auroc, seed), seed=0)
    assert config is not None
    config = json.loads(json.dumps(config))  # as it comes from a bundle
    assert config["checks"][1] is None
    check = config["checks"][0]
    return (None if check is None else AnswerCheck.from_config(check)), config["lacking"][0]


@pytest.mark.parametrize("auroc", [0.65, 0.72, 0.83])
def test_the_simulated_signal_has_the_auroc_it_says(auroc: float) -> None:
    success = np.random.default_rng(1).integers(0, 2, (20_000, 1)).astype(float)
    assert roc_auc_score(success.ravel(), simulated_signal(success, auroc, 0).ravel()) == pytest.approx(auroc, abs=0.01)


def test_the_weights_are_those_of_a_logistic_regression() -> None:
    p, success, signal, groups = (values[:, 0] if values.ndim == 2 else values for values in world(2000, 0.72))
    found = _fit(Rows(p, signal, success, groups))
    design = np.column_stack((np.log(p / (1 - p)), (signal - signal.mean()) / signal.std()))
    theirs = LogisticRegression(C=np.inf).fit(design, success)
    assert found.weights == pytest.approx([theirs.intercept_[0], *theirs.coef_[0]], abs=0.02)


def test_fresh_answers_are_right_as_often_as_the_map_says() -> None:
    check, _ = fitted(1000, 0.72)
    assert check is not None
    p, success, signal, _ = world(8000, 0.72, seed=9)
    said = np.array([check.p_right(a, b) for a, b in zip(p[:, 0], signal[:, 0], strict=True)])
    for low in np.arange(0.1, 0.9, 0.2):
        within = (said >= low) & (said < low + 0.2)
        assert success[within, 0].mean() == pytest.approx(said[within].mean(), abs=0.06)
    assert np.mean([np.mean(check.spread(a)) for a in p[:300, 0]]) == pytest.approx(p[:300, 0].mean(), abs=0.05)


def test_a_signal_that_tells_nothing_is_kept_for_at_most_one_arm_in_ten() -> None:
    found = [fitted(200, 0.5, seed) for seed in range(40)]
    assert sum(check is not None for check, _ in found) <= 4
    assert all(why for check, why in found if check is None)


def test_it_says_how_many_outcomes_are_needed() -> None:
    assert fitted(30, 0.83) == (None, f"30 outcomes with a log-probability, {MIN_OUTCOMES} are needed")
    weak = [why for check, why in (fitted(60, 0.6, seed) for seed in range(12)) if check is None]
    assert any("more outcomes are needed" in why for why in weak)
    p, success, signal, groups = world(100, 0.72)
    config = cascade_config(p, np.ones_like(success), signal, groups, seed=0)
    assert config is not None
    assert config["lacking"][0] == "0 wrong answers with a log-probability, 8 are needed"


def test_rows_of_one_group_are_one_piece_of_evidence() -> None:
    p, success, signal, _ = world(60, 0.6)
    copies = [np.tile(values, (10, 1)) for values in (p, success, signal)]
    alone = cascade_config(*copies, np.arange(600), seed=0)
    together = cascade_config(*copies, np.tile(np.arange(60), 10), seed=0)
    assert alone is not None
    assert together is not None
    assert alone["checks"][0] is not None
    assert together["checks"][0] is None


def test_how_far_a_surprise_holds_for_other_arms_is_learned_from_pairs() -> None:
    rng, n = np.random.default_rng(3), 3000
    hard = rng.normal(0, 2.0, n)  # of the question, seen by no prediction
    latent = np.column_stack((hard, hard))
    success = (rng.random((n, 2)) < 1 / (1 + np.exp(-latent))).astype(float)
    p = np.full((n, 2), 0.5)
    signal = simulated_signal(success, 0.83, 0)
    together = cascade_config(p, success, signal, np.arange(n), seed=0)
    success[:, 1] = rng.integers(0, 2, n)
    apart = cascade_config(p, success, signal, np.arange(n), seed=0)
    assert together is not None
    assert apart is not None
    assert apart["checks"][0]["shared"] <= 0.1 < 0.2 < together["checks"][0]["shared"]


def test_outcomes_without_log_probabilities_have_no_map() -> None:
    p, success, signal, groups = world(100, 0.72)
    assert cascade_config(p, success, np.full_like(signal, np.nan), groups, seed=0) is None


def test_the_auroc_of_two_normal_distributions_is_known() -> None:
    # d = sqrt(2) * inverse normal(AUROC): 1.349 for .83
    assert 2**0.5 * NormalDist().inv_cdf(0.83) == pytest.approx(1.349, abs=0.001)
