"""Odd rows of outcomes: each an error or a documented rule."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.errors import InputError
from router_ml.types import Outcome, Query
from training.outcomes.table import UNKNOWN_LATENCY_S, derived_profiles, outcome_table

QUERIES = [Query(id=f"q{i}", text=f"text {i}") for i in range(4)]


def test_outcomes_of_unknown_queries_are_named() -> None:
    with pytest.raises(InputError, match="'nowhere'"):
        outcome_table(QUERIES, [Outcome("nowhere", "m", 1.0, 1.0)])


def test_repeated_outcomes_are_refused() -> None:
    with pytest.raises(InputError, match="repeated"):
        outcome_table(QUERIES, [Outcome("q0", "m", 1.0, 1.0), Outcome("q0", "m", 0.0, 1.0)])


@pytest.mark.parametrize(
    ("success", "latency"), [(1.5, 1.0), (-0.1, 1.0), (1.0, -2.0), (1.0, 1e9), (float("nan"), 1.0)]
)
def test_values_out_of_range_are_refused(success: float, latency: float) -> None:
    with pytest.raises(InputError, match="'m' for query 'q0'"):
        outcome_table(QUERIES, [Outcome("q0", "m", success, latency)])


def test_a_call_that_broke_counts_as_failure_without_latency() -> None:
    table = outcome_table(QUERIES, [Outcome("q1", "m", None, 30.0, error="timeout")])
    assert table.success[0, 0] == 0.0
    assert np.isnan(table.latency_s[0, 0])


def test_any_subset_of_models_per_query() -> None:
    table = outcome_table(QUERIES, [Outcome("q0", "b", 1.0, 0.0), Outcome("q2", "a", 0.0, None)])
    assert table.models == ("a", "b")
    assert [query.id for query in table.queries] == ["q0", "q2"]
    assert np.isnan(table.success).tolist() == [[True, False], [False, True]]
    assert table.latency_s[0, 1] == 0.001  # zero is raised to a millisecond


def test_cost_axis_prefers_seconds_then_dollars() -> None:
    assert outcome_table(QUERIES, [Outcome("q0", "a", 1.0, 2.0, cost_usd=1.0)]).cost_axis[0] == "latency_s"
    assert outcome_table(QUERIES, [Outcome("q0", "a", 1.0, None, cost_usd=1.0)]).cost_axis[0] == "cost_usd"
    assert outcome_table(QUERIES, [Outcome("q0", "a", 1.0, None)]).cost_axis[0] == "none"


def test_profiles_are_derived_for_unknown_models_only() -> None:
    known = load_catalogue().names[0]
    outcomes = [Outcome(f"q{i}", model, float(i % 2), 3.0) for i in range(4) for model in (known, "new:1b")]
    table = outcome_table(QUERIES, [*outcomes, Outcome("q0", "silent:1b", 1.0, None)])
    simple = np.tile([1.0, 0.0, 0.0, 0.0], (4, 1))
    profiles = {model.name: model for model in derived_profiles(table, simple, load_catalogue())}
    assert set(profiles) == {"new:1b", "silent:1b"}
    assert profiles["new:1b"].prior.success["simple"] == pytest.approx(0.5)
    assert profiles["new:1b"].prior.latency_s["complex"] == pytest.approx(3.0)
    assert profiles["silent:1b"].prior.latency_s["simple"] == pytest.approx(3.0)  # the others' median


def test_without_any_latency_a_second_is_assumed() -> None:
    table = outcome_table(QUERIES, [Outcome("q0", "m", 1.0, None)])
    (profile,) = derived_profiles(table, np.full((1, 4), 0.25), Catalogue(()))
    assert profile.prior.latency_s["simple"] == UNKNOWN_LATENCY_S


def test_few_rows_do_not_tell_one_labels_success_from_anothers() -> None:
    table = outcome_table(QUERIES, [Outcome(f"q{i}", "new:1b", float(i < 2), 3.0) for i in range(4)])
    labels = np.eye(4)
    (profile,) = derived_profiles(table, labels, Catalogue(()))
    assert list(profile.prior.success.values()) == pytest.approx([(2 + 0.5) / 5] * 4)


def test_a_weak_sign_moves_success_from_the_models_mean_by_its_weight() -> None:
    queries = [Query(str(i), "q") for i in range(5)]
    outcomes = [
        *(Outcome(str(i), "m", success, 1.0) for i, success in enumerate((1.0, 1.0, 0.0, 1.0))),
        Outcome("4", "m", 0.0, 1.0, weight=0.5, judged_by="retry"),
        Outcome("0", "signs only", 0.0, 1.0, weight=0.5, judged_by="retry"),
    ]
    success = outcome_table(queries, outcomes).success
    assert success[:, 0].tolist() == [1.0, 1.0, 0.0, 1.0, 0.375]  # half of the mean .75
    assert np.isnan(success[:, 1]).all()
