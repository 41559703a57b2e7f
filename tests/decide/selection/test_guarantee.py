"""A bound on the loss beside the best model holds as often as it says, and the selector serves by it."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.catalogue import model_from
from router_ml.decide.selection.guarantee import LOSSES, Guarantee, Step, log_evidence, outcomes_needed
from router_ml.decide.selection.policy import Policy, policy_from
from router_ml.decide.selection.selector import Forecast, Selection, Selector
from router_ml.errors import PolicyError
from router_ml.types import Context

MODELS = tuple(model_from({"name": name, "prior": {"latency_s": 1.0, "success": 0.5}}, "test") for name in "abc")
BOUND = Policy("bound", max_loss=0.05)


def counts(better: int, same: int, worse: int) -> np.ndarray:
    """Rows on which a choice did better than, as, and worse than the reference."""
    found = np.zeros(len(LOSSES))
    found[[0, 10, 20]] = better, same, worse
    return found


def guarantee(*steps: tuple[float, np.ndarray]) -> Guarantee:
    return Guarantee("c", ("a", "b", "c"), [Step(margin, table) for margin, table in steps])


def select(p: tuple[float, float, float], given: Guarantee, policy: Policy = BOUND) -> Selection:
    latency = [(0.1, 0.2, 0.3), (1.0, 1.5, 2.0), (3.0, 3.5, 4.0)]
    return Selector(MODELS, "c", guarantee=given).select(Forecast(p, latency, [10.0] * 3, [0.0] * 3), Context(), policy)


@pytest.mark.parametrize(("better", "worse"), [(0.0, 0.05), (0.05, 0.10), (0.20, 0.25)])
def test_a_loss_at_the_bound_is_certified_in_at_most_five_of_a_hundred_samples(better: float, worse: float) -> None:
    samples = np.random.default_rng(0).multinomial(1500, (better, 1 - better - worse, worse), size=4000)
    certified = [log_evidence(counts(*row), 0.05) >= np.log(20) for row in samples.tolist()]
    assert np.mean(certified) <= 0.05


def test_without_any_loss_the_outcomes_needed_are_near_those_of_clopper_and_pearson() -> None:
    exact = np.log(0.05) / np.log(0.95)  # 59 rows without a loss bound its rate by .05 at confidence .95
    needed = outcomes_needed(counts(0, 1, 0), 0.05, 0.95)
    assert needed is not None
    assert exact <= needed <= 2 * exact
    assert log_evidence(counts(0, needed, 0), 0.05) >= np.log(20) > log_evidence(counts(0, needed - 1, 0), 0.05)


def test_testing_stops_at_the_first_margin_that_is_not_certified() -> None:
    good, bad = counts(10, 2000, 10), counts(0, 1800, 220)
    assert guarantee((-0.1, good), (0.0, good), (0.1, bad), (0.2, good)).certificate(0.05, 0.95).margin == 0.0


def test_the_cheapest_model_within_the_certified_margin_serves() -> None:
    selection = select((0.5, 0.75, 0.8), guarantee((0.1, counts(10, 2000, 10))))
    assert selection.ranked[0].model == "b"
    assert "within 5 points of c with 95 % confidence (2020 outcomes)" in selection.reason


def test_with_too_few_outcomes_the_best_model_serves_and_the_reason_says_how_many_are_lacking() -> None:
    few = guarantee((0.1, counts(0, 40, 0)))
    selection = select((0.5, 0.75, 0.8), few)
    assert selection.ranked[0].model == "c"
    lacking = few.certificate(0.05, 0.95).more_outcomes
    assert f"not certified: {lacking} more paired outcomes needed; the best model serves" in selection.reason
    assert lacking is not None
    assert guarantee((0.1, counts(0, 40 + lacking, 0))).certificate(0.05, 0.95).margin == 0.1


def test_no_number_of_outcomes_certifies_models_that_lose_more_than_the_bound() -> None:
    selection = select((0.5, 0.75, 0.8), guarantee((0.1, counts(0, 900, 100))))
    assert selection.ranked[0].model == "c"
    assert "not certified: cheaper models lose more; the best model serves" in selection.reason


def test_a_best_model_outside_the_limits_leaves_no_guarantee() -> None:
    bound = Policy("bound", max_loss=0.05, latency_budget_s=2.5)
    selection = select((0.5, 0.75, 0.8), guarantee((0.5, counts(10, 2000, 10))), bound)
    assert selection.ranked[0].model == "b"
    assert "no guarantee: c is not available within the limits" in selection.reason


def test_policy_files_set_and_lift_the_bound_and_refuse_impossible_ones() -> None:
    assert policy_from({"max_loss": 0.02, "confidence": 0.9}, "p").max_loss == 0.02
    assert policy_from({"max_loss": "none"}, "p").max_loss is None
    with pytest.raises(PolicyError, match="max_loss must be a number, between 0 and 1"):
        Policy("p", max_loss=5)
    with pytest.raises(PolicyError, match="confidence must be a number, between"):
        Policy("p", confidence=95)
