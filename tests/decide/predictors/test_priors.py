"""Priors averaged over the labels' probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.catalogue import Catalogue, Model, Prior
from router_ml.decide.predictors.priors import LabelPriors
from router_ml.types import LABELS


def model(latency_s: tuple[float, ...], log_sd: float = 0.3) -> Model:
    success = dict(zip(LABELS, (0.9, 0.8, 0.6, 0.7), strict=True))
    return Model("m", Prior(dict(zip(LABELS, latency_s, strict=True)), success, None, log_sd))


def test_success_is_the_mean_over_the_labels() -> None:
    found = LabelPriors([model((1, 1, 1, 1))])(np.array([0.5, 0.25, 0.25, 0.0], np.float32))
    assert found.p_success == pytest.approx([0.5 * 0.9 + 0.25 * 0.8 + 0.25 * 0.6])
    assert np.isnan(found.output_tokens).all()


def test_quantiles_of_the_mixture_are_those_of_its_samples() -> None:
    """A hundred thousand draws: a label first, then a log-normal latency of that label's mean."""
    weights, means = np.array([0.6, 0.25, 0.15, 0.0], np.float32), (2.0, 2.5, 4.0, 9.0)
    (found,) = LabelPriors([model(means)])(weights).latency_s
    rng = np.random.default_rng(0)
    label = rng.choice(4, 100_000, p=weights.astype(float) / weights.sum(dtype=float))
    drawn = np.exp(rng.normal(np.log(means)[label] - 0.3**2 / 2, 0.3))
    assert found == pytest.approx(np.quantile(drawn, (0.5, 0.9, 0.95)), rel=0.06)


def test_doubt_between_a_fast_and_a_slow_label_shows_in_p95() -> None:
    priors = LabelPriors([model((2.0, 2.0, 12.0, 2.0))])
    sure, doubtful = (priors(np.array([1 - x, 0, x, 0], np.float32)).latency_s[0] for x in (0.0, 0.2))
    assert sure[2] < 5 < doubtful[2]
    assert doubtful[0] < 5


def test_a_catalogue_without_models_expects_nothing() -> None:
    assert LabelPriors(list(Catalogue(())))(np.full(4, 0.25, np.float32)).p_success == []
