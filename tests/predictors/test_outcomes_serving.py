"""Priors, stored neighbours and broken arrays in serving."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.errors import BundleFormatError
from router_ml.predictors.forest import ALL, Forest
from router_ml.predictors.neighbours import PULL, Neighbours
from router_ml.predictors.outcomes import NEVER, OutcomePredictor, with_margin


def priors(label: int, prompt_tokens: float = np.nan):  # type: ignore[no-untyped-def]
    predictor = OutcomePredictor.from_arrays({}, {}, load_catalogue())
    one_hot = np.eye(4, dtype=np.float32)[[label]]
    return predictor(np.zeros((1, 0), np.float32), np.zeros((1, 65), np.float32), one_hot, np.array([prompt_tokens]))


def test_priors_speak_for_the_label() -> None:
    found = priors(2)
    model = load_catalogue()["qwen3:8b"]
    j = found.models.index("qwen3:8b")
    assert found.p_success[0, j] == pytest.approx(model.prior.success["complex"])
    sd = model.prior.latency_log_sd
    assert found.latency_s[0, j, 0] * np.exp(sd**2 / 2) == pytest.approx(model.prior.latency_s["complex"], rel=1e-5)
    assert found.latency_s[0, j, 2] / found.latency_s[0, j, 0] == pytest.approx(np.exp(1.6448536 * sd), rel=1e-5)


def test_local_models_cost_nothing_and_nothing_is_novel() -> None:
    found = priors(0, 500.0)
    assert (found.cost_usd == 0).all()
    assert (found.novelty == 0).all()


def test_a_newer_format_is_refused() -> None:
    with pytest.raises(BundleFormatError, match="upgrade"):
        OutcomePredictor.from_arrays({"format": 99, "models": ["a"]}, {}, load_catalogue())


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises((KeyError, ValueError)):
        OutcomePredictor.from_arrays({"format": 1, "models": ["qwen3:8b"]}, {}, load_catalogue())


def test_another_model_must_beat_the_default_by_the_margin() -> None:
    p = np.array([[0.60, 0.50, 0.63], [0.60, 0.59, 0.80]], np.float32)  # the default stands first
    held = with_margin(p, 0, 0.05)
    assert held.argmax(axis=1).tolist() == [0, 2]
    assert held[1, 2] == pytest.approx(0.80 - 0.05, abs=1e-3)
    assert held[:, 1] == pytest.approx(p[:, 1])  # who is behind the default is left alone


def test_a_margin_of_one_never_lets_the_default_lose() -> None:
    p = np.random.default_rng(0).random((200, 4)).astype(np.float32)
    held = with_margin(p, 2, NEVER)
    assert (held.argmax(axis=1) == 2).all()
    behind = p < p[:, 2:3]
    assert np.array_equal(held[behind], p[behind])


def test_a_forest_of_one_stump() -> None:
    values = np.zeros((1, 64, 2), np.float32)
    values[0, 0], values[0, 1] = (1.0, 2.0), (3.0, 4.0)
    keeps = np.array([[int(ALL) & ~1]], np.uint64)  # a failed test rules out the left leaf
    arrays = {"feature": np.array([[1]]), "threshold": np.array([[0.5]]), "keeps": keeps, "values": values}
    stump = Forest.from_arrays(arrays)
    found = stump(np.array([[9.0, 0.5], [9.0, 0.6]], np.float32))
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]  # not greater: left


def test_neighbours_by_hand() -> None:
    keys = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    outcomes = np.array([[1.0], [0.0], [np.nan], [0.0]], np.float32)
    found = Neighbours(keys, outcomes, 3)(np.array([[0.9]], np.float32))
    assert found[0, 0] == pytest.approx((1.0 + 0.0 + PULL * (1 / 3)) / (2 + PULL))


def test_many_rows_are_searched_by_cells_and_answer_alike() -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(9_000, 3)).astype(np.float32)
    outcomes = (keys[:, :1] > 0).astype(np.float32)
    queries = rng.normal(size=(50, 3)).astype(np.float32)
    found = Neighbours(keys, outcomes, 40)(queries)
    near = np.argsort(((queries[:, None] - keys) ** 2).sum(axis=2), axis=1)[:, :40]
    exact = (outcomes[near].sum(axis=1) + PULL * outcomes.mean()) / (40 + PULL)
    assert found == pytest.approx(exact, abs=0.03)


def test_fewer_rows_than_neighbours() -> None:
    found = Neighbours(np.zeros((2, 2), np.float32), np.ones((2, 1), np.float32), 80)(np.zeros((1, 2), np.float32))
    assert found[0, 0] == pytest.approx(1.0)
