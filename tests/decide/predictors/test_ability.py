"""Ability, difficulty and what own outcomes add."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_ml.catalogue import Catalogue, Model, Prior
from router_ml.decide.features.extractor import HAS_TOOLS
from router_ml.decide.logistic import logit, sigmoid
from router_ml.decide.predictors.ability import FEW_OUTCOMES, Abilities, Observation
from router_ml.decide.predictors.difficulty import ANY_FAMILY, WITH_TOOLS, DifficultyHead
from router_ml.decide.predictors.outcomes import OutcomePredictor
from router_ml.types import LABELS, TASK_FAMILIES

TABLE = 65  # columns of the surface features


def outcomes(model: str, right: int, wrong: int, p: float = 0.7) -> list[Observation]:
    return [Observation(model, y, logit(p), ANY_FAMILY) for y in [1.0] * right + [0.0] * wrong]


def wide(_: str) -> float:
    return 1.0


def test_outcomes_at_once_and_one_by_one_agree() -> None:
    rows = [*outcomes("a", 8, 2), *outcomes("b", 3, 7)]
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    whole = Abilities().updated(rows, wide)
    stepwise = Abilities()
    for row in rows:
        stepwise = stepwise.updated([row], wide)
    for model in ("a", "b"):
        one, other = whole.shift(model, ANY_FAMILY, 1.0), stepwise.shift(model, ANY_FAMILY, 1.0)
        assert one.mean == pytest.approx(other.mean, abs=0.25)  # each step takes the curvature at its own mode
        assert one.sd == pytest.approx(other.sd, rel=0.1)


def test_the_mode_is_where_the_gradient_vanishes() -> None:
    """One model, one family: prior N(0, 1) on its shift and N(0, 1) on the shared one add up to N(0, 2)."""
    one_family = tuple(float(i == 0) for i in range(len(TASK_FAMILIES)))
    rows = [Observation("a", y, 0.4, one_family) for y in (1, 1, 1, 0)]
    shift = Abilities().updated(rows, wide).shift("a", one_family, 1.0)
    p = sigmoid(0.4 + shift.mean)
    assert 3 - 4 * p == pytest.approx(shift.mean / 2, abs=1e-4)
    assert shift.sd == pytest.approx((1 / 2 + 4 * p * (1 - p)) ** -0.5, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 0.95), st.integers(0, 10_000))
def test_many_outcomes_outweigh_the_prior_and_the_interval_covers(rate: float, seed: int) -> None:
    right = int(np.random.default_rng(seed).binomial(400, rate))
    shift = Abilities().updated(outcomes("a", right, 400 - right, p=0.5), wide).shift("a", ANY_FAMILY, 1.0)
    assert sigmoid(shift.mean) == pytest.approx(right / 400, abs=0.02)
    assert abs(shift.mean - logit(rate)) < 4.5 * shift.sd + 0.1


def test_models_without_outcomes_share_what_all_showed() -> None:
    """Every model fails far more often than thought: so will the one that nobody measured."""
    rows = [row for name in "abcd" for row in outcomes(name, 5, 15, p=0.9)]
    abilities = Abilities().updated(rows, wide)
    unseen = abilities.shift("new", ANY_FAMILY, 1.0)
    assert unseen.mean < -1.0
    assert unseen.sd > abilities.shift("a", ANY_FAMILY, 1.0).sd
    assert "new" not in abilities.measured


def test_a_few_outcomes_make_no_measured_model() -> None:
    assert Abilities().updated(outcomes("a", FEW_OUTCOMES - 1, 0), wide).measured == frozenset()
    assert Abilities().updated(outcomes("a", FEW_OUTCOMES, 0), wide).measured == {"a"}


def test_abilities_survive_json_and_refuse_what_does_not_fit() -> None:
    abilities = Abilities().updated(outcomes("a", 3, 1), wide)
    again = Abilities.from_config(abilities.as_config())
    assert again.shift("a", ANY_FAMILY, 1.0) == pytest.approx(abilities.shift("a", ANY_FAMILY, 1.0))
    for broken in ({"mean": [0.0]}, {"outcomes": []}, {"mean": [math.nan] * 6}):
        with pytest.raises(ValueError, match="abilities"):
            Abilities.from_config(abilities.as_config() | broken)


def catalogue(*models: tuple[str, float]) -> Catalogue:
    prior = {name: Prior(dict.fromkeys(LABELS, 1.0), dict.fromkeys(LABELS, p)) for name, p in models}
    return Catalogue(tuple(Model(name, prior[name]) for name, _ in models))


def head(sd: float = 1.0, label_sd: float = 1.0) -> DifficultyHead:
    """The difficulty is the first number of the embedding."""
    weights = np.zeros((1 + len(TASK_FAMILIES), 2 + TABLE), np.float32)
    weights[0, 0] = 1.0
    config = {"sd": sd, "label_means": [0.0, 1.0, 2.0, 1.0], "label_sd": label_sd}
    return DifficultyHead(config, {"weights": weights, "bias": np.zeros(len(weights), np.float32)}, HAS_TOOLS)


def chances(predictor: OutcomePredictor, difficulty: np.ndarray, label: int = 1) -> np.ndarray:
    n = len(difficulty)
    embedding = np.column_stack((difficulty, np.zeros(n))).astype(np.float32)
    labels = np.repeat(np.eye(4, dtype=np.float32)[[label]], n, axis=0)
    return predictor(embedding, np.zeros((n, TABLE), np.float32), labels, np.full(n, np.nan, np.float32)).p_success


def test_difficulty_moves_a_prior_around_its_own_mean() -> None:
    """Readings of moderate queries are N(1, 1): over them the catalogue's .9 and .6 stay what they are."""
    predictor = OutcomePredictor(catalogue(("good", 0.9), ("poor", 0.6)), reading=head())
    drawn = np.random.default_rng(0).normal(1.0, 1.0, 4000)
    found = chances(predictor, drawn)
    assert found.mean(axis=0) == pytest.approx([0.9, 0.6], abs=0.01)
    easy, hard = chances(predictor, np.array([-1.0, 3.0]))
    assert (easy > [0.93, 0.75]).all()
    assert (hard < [0.85, 0.45]).all()


def test_without_a_difficulty_head_priors_are_the_catalogues() -> None:
    predictor = OutcomePredictor(catalogue(("good", 0.9), ("poor", 0.6)))
    assert chances(predictor, np.zeros(1))[0] == pytest.approx([0.9, 0.6])


def test_where_tools_are_offered_the_task_is_to_call_them() -> None:
    reading, table = head(), np.zeros(TABLE, np.float32)
    assert reading(np.array([2.0, 0.0], np.float32), table).families == (0.2,) * 5
    table[HAS_TOOLS] = 1.0
    assert reading(np.array([2.0, 0.0], np.float32), table) == (2.0, 1.0, WITH_TOOLS)


def test_a_head_of_another_shape_is_refused() -> None:
    config = {"sd": 1.0, "label_means": [0.0] * 4, "label_sd": 1.0}
    with pytest.raises(ValueError, match="outputs"):
        DifficultyHead(config, {"weights": np.zeros((2, 3)), "bias": np.zeros(2)}, HAS_TOOLS)


@pytest.mark.parametrize("n", [8, 20])
def test_a_new_model_is_placed_by_a_few_outcomes(n: int) -> None:
    """Three models, equal before; of the new one's outcomes most are wrong, of the others' nine in ten right."""
    predictor = OutcomePredictor(catalogue(("a", 0.8), ("b", 0.8), ("new", 0.8)))
    labels = np.full(4, 0.25, np.float32)
    rows = [predictor.observation(m, float(i % 10 > 0), labels) for m in ("a", "b") for i in range(60)]
    rows += [predictor.observation("new", float(i % 4 == 0), labels) for i in range(n)]
    predictor.abilities = predictor.abilities.updated(rows, predictor.prior_sd)
    a, b, new = chances(predictor, np.zeros(1))[0]
    assert a == pytest.approx(0.9, abs=0.05)
    assert b == pytest.approx(a, abs=0.01)
    assert new < 0.7
    assert predictor.measured == {"a", "b", "new"}
