"""Priors, stored neighbours and broken arrays in serving."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.decide.predictors.forest import ALL, Forest
from router_ml.decide.predictors.neighbours import SHRINKAGE, Neighbours
from router_ml.decide.predictors.outcomes import NEVER, OutcomePredictor, with_margin
from router_ml.errors import BundleFormatError


def priors(label: int, prompt_tokens: float = np.nan):  # type: ignore[no-untyped-def]
    predictor = OutcomePredictor.from_arrays({}, {}, load_catalogue())
    one_hot = np.eye(4, dtype=np.float32)[[label]]
    return predictor(np.zeros((1, 0), np.float32), np.zeros((1, 65), np.float32), one_hot, np.array([prompt_tokens]))


def test_priors_speak_for_the_label() -> None:
    found = priors(2)
    model = load_catalogue()["qwen3:8b"]
    j = found.models.index("qwen3:8b+think")
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
    values = np.zeros((1, 32, 2), np.float32)
    values[0, 0], values[0, 1] = (1.0, 2.0), (3.0, 4.0)
    keeps = np.array([[int(ALL) & ~1]], np.uint32)  # a failed test rules out the left leaf
    arrays = {"feature": np.array([[1]]), "threshold": np.array([[0.5]]), "keeps": keeps, "values": values}
    stump = Forest.from_arrays(arrays)
    found = stump(np.array([[9.0, 0.5], [9.0, 0.6]], np.float32))
    assert found.tolist() == [[1.0, 2.0], [3.0, 4.0]]  # not greater: left


def test_a_forest_finds_the_leaf_that_its_tests_lead_to() -> None:
    rng = np.random.default_rng(0)
    n_nodes, n_trees = 11, 5  # neither fills whole bytes
    feature, threshold = rng.integers(0, 7, (n_nodes, n_trees)), rng.normal(size=(n_nodes, n_trees))
    keeps = ~rng.integers(0, 2**20, (n_nodes, n_trees), dtype=np.uint32)  # never rules out the last leaves
    values = rng.normal(size=(n_trees, 32, 3)).astype(np.float32)
    forest = Forest.from_arrays({"feature": feature, "threshold": threshold, "keeps": keeps, "values": values})
    x = rng.normal(size=(40, 7)).astype(np.float32)
    for row, found in zip(x, forest(x), strict=True):
        expected = np.zeros(3)
        for tree in range(n_trees):
            possible = (1 << 32) - 1
            for node in range(n_nodes):
                if row[feature[node, tree]] > np.float32(threshold[node, tree]):
                    possible &= int(keeps[node, tree])
            expected += values[tree, (possible & -possible).bit_length() - 1]
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_forest_whose_arrays_do_not_fit_together_is_refused() -> None:
    arrays = {"feature": np.zeros((1, 2)), "threshold": np.zeros((1, 2)), "keeps": np.zeros((1, 2), np.uint32)}
    with pytest.raises(ValueError, match="fit together"):
        Forest.from_arrays(arrays | {"values": np.zeros((3, 32, 1))})


def learned(width: int = 65, dim: int = 6) -> OutcomePredictor:
    """Two models with heads of random numbers; only the second one's latency was learned."""
    rng = np.random.default_rng(0)
    arrays = {
        "table_centre": np.zeros(width),
        "table_scale": np.full(width, 0.5),
        "weights": rng.normal(0, 0.1, (dim + width + 4, 3 + 2)),
        "bias": np.zeros(5),
        "joint_scale": np.full(width + 2, 0.5),
        "centroids": rng.normal(size=(3, width + 2)),
        "transfer_weights": rng.normal(0, 0.1, (width, 3)),
        "transfer_bias": np.zeros(3),
        **{f"forest_{name}": np.zeros((0, 0)) for name in ("feature", "threshold", "keeps", "values")},
    }
    config = {
        "models": ["llama3.2:3b-instruct", "qwen3:8b"],
        "default_model": "qwen3:8b",
        "basis": 2,
        "novelty": {"near": 0.0, "far": 99.0},
        "doubt": {"near": 0.0, "far": 9.0},
        "columns": {"latency_s": [-1, 0], "output_tokens": [-1, -1], "cost_usd": [-1, -1]},
        "latency_residuals": [[0.0, 0.5, 0.7]],
        "prior_weight": [0.2, 0.2],
        "margin": {"near": 0.1, "far": 0.3},
    }
    return OutcomePredictor.from_arrays(config, arrays, load_catalogue())


def inputs(n: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    complexity = rng.dirichlet(np.ones(4), n)
    parts = (rng.normal(size=(n, 6)), rng.normal(size=(n, 65)), complexity, np.full(n, np.nan))
    return tuple(part.astype(np.float32) for part in parts)


def test_what_was_not_learned_of_a_model_is_its_prior() -> None:
    found, given = learned()(*inputs(30)), inputs(30)
    plain = OutcomePredictor.from_arrays({}, {}, load_catalogue())(*given)
    j, k = found.models.index("llama3.2:3b-instruct"), plain.models.index("llama3.2:3b-instruct")
    assert found.latency_s[:, j] == pytest.approx(plain.latency_s[:, k])
    assert np.ptp(found.p_success[:, j]) > 0.05  # learned
    other = next(name for name in plain.models if name not in learned().learned)
    unmeasured = found.p_success[:, found.models.index(other)]
    assert np.isfinite(found.latency_s).all()
    # nobody measured it, but a query that is hard for the measured models is hard for it, too
    measured = np.log(found.p_success[:, :2] / (1 - found.p_success[:, :2])).mean(axis=1)
    assert np.corrcoef(measured, np.log(unmeasured / (1 - unmeasured)))[0, 1] > 0.9
    eight = found.latency_s[:, found.models.index("qwen3:8b+think")]  # learned under the bare name: the default way
    assert eight[:, 2] / eight[:, 0] == pytest.approx(np.full(30, np.exp(0.7)), rel=1e-5)


def test_threads_do_not_write_over_each_others_numbers() -> None:
    predictor, given = learned(), inputs(400)
    alone = predictor(*given)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: predictor(*given), range(8)))
    for found in together:
        assert np.array_equal(found.p_success, alone.p_success)
        assert np.array_equal(found.latency_s, alone.latency_s)


def test_neighbours_by_hand() -> None:
    keys = np.array([[0.0], [1.0], [2.0], [10.0]], np.float32)
    outcomes = np.array([[1.0], [0.0], [np.nan], [0.0]], np.float32)
    found = Neighbours(keys, outcomes, 3)(np.array([[0.9]], np.float32))
    assert found[0, 0] == pytest.approx((1.0 + 0.0 + SHRINKAGE * (1 / 3)) / (2 + SHRINKAGE))


def test_many_rows_are_searched_by_cells_and_answer_alike() -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(9_000, 3)).astype(np.float32)
    outcomes = (keys[:, :1] > 0).astype(np.float32)
    queries = rng.normal(size=(50, 3)).astype(np.float32)
    found = Neighbours(keys, outcomes, 40)(queries)
    near = np.argsort(((queries[:, None] - keys) ** 2).sum(axis=2), axis=1)[:, :40]
    exact = (outcomes[near].sum(axis=1) + SHRINKAGE * outcomes.mean()) / (40 + SHRINKAGE)
    assert found == pytest.approx(exact, abs=0.03)


def test_fewer_rows_than_neighbours() -> None:
    found = Neighbours(np.zeros((2, 2), np.float32), np.ones((2, 1), np.float32), 80)(np.zeros((1, 2), np.float32))
    assert found[0, 0] == pytest.approx(1.0)
