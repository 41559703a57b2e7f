"""What the fit learns on made-up worlds whose truth is known, and that serving answers as the estimators do."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from router_ml.catalogue import Catalogue, catalogue_from, load_catalogue
from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.decide.predictors.forest import Forest
from router_ml.decide.predictors.neighbours import SHRINKAGE
from router_ml.decide.predictors.outcomes import OutcomePredictor, Predictions
from router_ml.types import Outcome, Query
from training.outcomes import learners, outcome_fit
from training.outcomes.basis import fit_basis
from training.outcomes.forest_learner import export_forest, fit_forest
from training.outcomes.learner import Export, Setting, TrainingRows
from training.outcomes.learners import success_blends
from training.outcomes.neighbour_learner import ROWS_PER_NEIGHBOUR
from training.outcomes.outcome_fit import FittedOutcomes, fit_outcomes
from training.outcomes.ridge_learner import fit_ridge

N = 400
EMPTY = Catalogue(())
RNG = np.random.default_rng(7)


def world(n: int = N, d: int = 12, seed: int = 0) -> tuple[list[Query], Features, np.ndarray, np.ndarray]:
    """Queries of two kinds, which the first embedding column tells apart, and their label probabilities."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    embedding = rng.normal(size=(n, d)) * 0.3
    embedding[:, 0] += np.where(kind == 1, 1.0, -1.0)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    table = rng.normal(size=(n, len(TABLE_NAMES)))
    queries = [Query(id=f"q{i}", text=f"text {i}", group=f"g{i // 2}") for i in range(n)]
    complexity = np.full((n, 4), 0.25, np.float32)
    return queries, Features(embedding.astype(np.float32), table.astype(np.float32)), complexity, kind


def specialists(queries: list[Query], kind: np.ndarray, seed: int = 1) -> list[Outcome]:
    """Model a is good at kind 0, model b at kind 1; b takes four times as long, longer for kind 1."""
    rng = np.random.default_rng(seed)
    rows = []
    for query, k in zip(queries, kind, strict=True):
        for model, good in (("a", 0), ("b", 1)):
            chance = 0.9 if k == good else 0.3
            latency = (1.0 if model == "a" else 4.0) * (1 + k) * np.exp(0.2 * rng.normal())
            rows.append(
                Outcome(query.id, model, float(rng.random() < chance), float(latency), output_tokens=20 + 40 * int(k))
            )
    return rows


def predict(
    fitted: FittedOutcomes, features: Features, complexity: np.ndarray, catalogue: Catalogue = EMPTY
) -> Predictions:
    config = json.loads(json.dumps(fitted.config))  # as it comes from a bundle
    predictor = OutcomePredictor.from_arrays(config, fitted.arrays, catalogue)
    unknown = np.full(len(complexity), np.nan, np.float32)
    return predictor(features.embedding, features.table, complexity, unknown)


@pytest.fixture(scope="module")
def fitted() -> FittedOutcomes:
    queries, features, complexity, kind = world()
    return fit_outcomes(queries, specialists(queries, kind), features, complexity, EMPTY, seed=0, tune=True)


def test_each_kind_goes_to_its_specialist(fitted: FittedOutcomes) -> None:
    _, features, complexity, kind = world(seed=5)
    found = predict(fitted, features, complexity)
    near = found.novelty < 0.1
    chosen = found.p_success[near].argmax(axis=1)
    assert (chosen == kind[near]).mean() > 0.95
    assert found.p_success[near][kind[near] == 0, 0].mean() == pytest.approx(0.9, abs=0.06)
    assert found.p_success[near][kind[near] == 0, 1].mean() == pytest.approx(0.3, abs=0.09)


def test_latency_quantiles_are_ordered_and_cover(fitted: FittedOutcomes) -> None:
    queries, features, complexity, kind = world(seed=6)
    found = predict(fitted, features, complexity)
    assert (np.diff(found.latency_s, axis=2) >= 0).all()
    truth = {(o.query_id, o.model): o.latency_s for o in specialists(queries, kind, seed=9)}
    for j, model in enumerate(found.models):
        taken = np.array([truth[query.id, model] for query in queries], dtype=float)
        assert (taken <= found.latency_s[:, j, 2]).mean() == pytest.approx(0.95, abs=0.04)
        assert (taken <= found.latency_s[:, j, 0]).mean() == pytest.approx(0.5, abs=0.1)


def test_output_tokens_are_expected(fitted: FittedOutcomes) -> None:
    _, features, complexity, kind = world(seed=5)
    found = predict(fitted, features, complexity)
    assert found.output_tokens[kind == 0].mean() < 32 < 45 < found.output_tokens[kind == 1].mean()


def test_the_choice_is_reported(fitted: FittedOutcomes) -> None:
    assert fitted.report["learner"] in success_blends()
    assert set(fitted.report["cross_validated"]) == {"prior", *success_blends()}
    chosen, prior = (fitted.report["cross_validated"][name] for name in (fitted.report["learner"], "prior"))
    assert chosen["accuracy"] > prior["accuracy"] + 0.2
    json.dumps(fitted.report)


def test_a_query_unlike_any_is_routed_by_the_means(fitted: FittedOutcomes) -> None:
    _, features, complexity, _ = world(n=20, seed=8)
    far = Features(features.embedding, features.table + 30.0)
    found = predict(fitted, far, complexity)
    assert (found.novelty == 1.0).all()
    assert np.ptp(found.p_success, axis=0).max() < 0.2


def test_one_row_and_many_answer_alike(fitted: FittedOutcomes) -> None:
    _, features, complexity, _ = world(n=30, seed=3)
    many = predict(fitted, features, complexity)
    for i in range(30):
        one = predict(fitted, features.rows(slice(i, i + 1)), complexity[i : i + 1])
        assert one.p_success[0] == pytest.approx(many.p_success[i], abs=1e-5)
        assert one.latency_s[0] == pytest.approx(many.latency_s[i], rel=1e-4)


def test_noise_is_not_believed() -> None:
    queries, features, complexity, _ = world()
    rng = np.random.default_rng(3)
    rows = [
        Outcome(query.id, model, float(rng.random() < rate), None)
        for query in queries
        for model, rate in (("good", 0.8), ("bad", 0.5))
    ]
    found = predict(fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=True), features, complexity)
    assert (found.p_success.argmax(axis=1) == found.models.index("good")).all()


def test_few_rows_keep_the_best_single_model() -> None:
    queries, features, complexity, kind = world(n=50)
    rows = specialists(queries, kind)
    rows += [Outcome(query.id, "steady", float(i % 10 > 0), 2.0) for i, query in enumerate(queries)]
    found = predict(fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=True), features, complexity)
    assert (found.p_success.argmax(axis=1) == found.models.index("steady")).mean() > 0.9


def test_few_rows_move_the_priors_and_nothing_else() -> None:
    """16 wrong answers of three models that were expected to be right in .85 to .92 of the cases."""
    catalogue = load_catalogue()
    queries, features, complexity, _ = world(n=16)
    rows = [Outcome(q.id, name, 0.0, 1.0) for q in queries for name in catalogue.names]
    fit = fit_outcomes(queries, rows, features, complexity, catalogue, seed=0, tune=True)
    learned = predict(fit, features, complexity, catalogue)
    assert fit.report["learner"] == "prior"
    measured = learned.p_success[:, [learned.models.index(catalogue.arm(name).key) for name in catalogue.names]]
    assert (measured < 0.4).all()
    assert np.ptp(measured, axis=0) == pytest.approx(np.zeros(3), abs=1e-6)  # the labels are equally likely


def test_a_model_added_to_the_catalogue_rides_along(fitted: FittedOutcomes) -> None:
    _, features, complexity, _ = world(n=5, seed=4)
    found = predict(fitted, features, complexity, load_catalogue())
    assert found.models == ("a", "b", *(arm.key for arm in load_catalogue().arms))
    column = found.models.index("qwen2.5:3b-instruct")
    prior = np.mean(list(load_catalogue()["qwen2.5:3b-instruct"].prior.success.values()))
    assert 0.5 < found.p_success[0, column] <= prior  # queries turned out harder than thought, for all models


def test_models_with_hardly_a_row_ride_on_their_profile() -> None:
    queries, features, complexity, kind = world()
    rows = [*specialists(queries, kind), Outcome("q0", "rare", 1.0, 2.0)]
    fit = fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=False)
    found = predict(fit, features, complexity)
    assert "rare" not in fit.config["models"]
    assert np.isfinite(found.p_success[:, found.models.index("rare")]).all()


def test_equal_successes_are_a_constant() -> None:
    queries, features, complexity, kind = world()
    rows = [*specialists(queries, kind), *(Outcome(q.id, "always", 1.0, 1.0) for q in queries)]
    fit = fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=False)
    p = predict(fit, features, complexity).p_success[:, fit.config["models"].index("always")]
    assert p.min() > 0.97


def test_missing_cells_do_no_harm() -> None:
    queries, features, complexity, kind = world()
    rows = [row for i, row in enumerate(specialists(queries, kind)) if i % 3]
    fit = fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=True)
    found = predict(fit, features, complexity)
    assert (found.p_success.argmax(axis=1) == kind).mean() > 0.9
    assert np.isfinite(found.latency_s).all()


def test_stored_neighbours_serve_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_fit, "success_blends", lambda: {"knn": {"knn": 1.0}})
    monkeypatch.setattr(outcome_fit, "NOVEL_MARGIN", 0.0)
    queries, features, complexity, kind = world()
    fit = fit_outcomes(queries, specialists(queries, kind), features, complexity, EMPTY, seed=0, tune=False)
    k = fit.config["neighbours"]["k"]
    assert k == N // ROWS_PER_NEIGHBOUR
    found = predict(fit, features, complexity)
    assert (found.p_success.argmax(axis=1) == kind).mean() > 0.85
    # the difference between two queries is that of scikit-learn's kNN on the stored rows
    arrays = fit.arrays
    nearest = NearestNeighbors(n_neighbors=k).fit(arrays["neighbour_keys"].astype(np.float32))
    near = nearest.kneighbors(fit_basis(features, complexity, 0).neighbour_keys(features), return_distance=False)
    mean = arrays["neighbour_outcomes"].astype(np.float64)[near].mean(axis=1) * k / (k + SHRINKAGE)
    expected = mean * arrays["neighbour_weights"] * (1 - np.array(fit.config["prior_weight"]))
    known = found.novelty == 0
    differences = found.p_success[known] - found.p_success[known][0] - (expected[known] - expected[known][0])
    assert np.median(np.abs(differences)) < 1e-5  # stored keys are rounded: here and there another neighbour is met
    assert np.quantile(np.abs(differences), 0.9) < 0.02


def test_one_group_of_queries_leaves_the_priors_alone() -> None:
    queries, features, complexity, kind = world(n=80)
    one_group = [replace(query, group="all") for query in queries]
    fit = fit_outcomes(one_group, specialists(one_group, kind), features, complexity, EMPTY, seed=0, tune=False)
    assert fit.report["learner"] == "prior"
    assert "one group" in fit.report["reason"]


class _Constant:
    """A learner that predicts the same for every query."""

    def __init__(self, rows: TrainingRows) -> None:
        self._means = rows.means

    def predict(self, features: Features, complexity: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self._means, (1, len(complexity), len(self._means)))

    def export(self, share: np.ndarray, setting: Setting) -> Export:
        return Export(bias=self._means * share)


def test_a_learner_takes_part_by_its_row_in_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(learners.LEARNERS, "constant", SimpleNamespace(fit=_Constant))
    queries, features, complexity, kind = world(n=120)
    fit = fit_outcomes(queries, specialists(queries, kind), features, complexity, EMPTY, seed=0, tune=False)
    tried = fit.report["cross_validated"]
    assert set(tried) == {"prior", "constant", *learners.SUCCESS_BLENDS}
    assert tried["constant"]["auc"] == pytest.approx(0.5, abs=0.1)
    assert np.isfinite(predict(fit, features, complexity).p_success).all()


def test_ridge_is_scikit_learns_on_each_targets_rows() -> None:
    x, y = RNG.normal(size=(30, 8)), RNG.normal(size=(30, 3))
    y[:10, 1] = np.nan
    ours = fit_ridge(x, y, 2.5)
    for j in range(3):
        known = ~np.isnan(y[:, j])
        theirs = Ridge(alpha=2.5).fit(x[known], y[known, j])
        assert ours.weights[:, j] == pytest.approx(theirs.coef_)
        assert ours.bias[j] == pytest.approx(theirs.intercept_)


def test_ridge_with_more_features_than_rows() -> None:
    x, y = RNG.normal(size=(10, 25)), RNG.normal(size=(10, 1))
    theirs = Ridge(alpha=0.7).fit(x, y[:, 0])
    assert fit_ridge(x, y, 0.7).weights[:, 0] == pytest.approx(theirs.coef_.ravel())


@pytest.mark.parametrize("targets", [1, 4])
def test_exported_forest_answers_as_scikit_learn(targets: int) -> None:
    x = RNG.normal(size=(300, 9)).astype(np.float32)
    y = np.column_stack([np.sin(3 * x[:, j]) + x[:, 0] * x[:, j + 1] for j in range(targets)])
    model = fit_forest(x, y, seed=1, trees=20)
    assert isinstance(model, ExtraTreesRegressor)
    served = Forest.from_arrays(export_forest(model))
    unseen = RNG.normal(size=(500, 9)).astype(np.float32)
    expected = model.predict(unseen).reshape(500, -1)
    assert served(unseen) == pytest.approx(expected, abs=1e-5)
    assert served(unseen[:1]) == pytest.approx(expected[:1], abs=1e-5)


def test_each_arm_is_learned_from_its_own_outcomes() -> None:
    """Thinking is right where not thinking is wrong, and takes four times as long."""
    queries, features, complexity, kind = world()
    rows = [replace(o, model="m", think=o.model == "b") for o in specialists(queries, kind)]
    fitted = fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=False)
    assert fitted.config["models"] == ["m+nothink", "m+think"]
    assert [(m.name, [arm.think for arm in m.arms]) for m in fitted.profiles] == [("m", [False, True])]
    found = predict(fitted, features, complexity)
    quick, slow = (found.models.index(key) for key in ("m+nothink", "m+think"))
    right = found.p_success[:, slow] > found.p_success[:, quick]
    assert np.mean(right == (kind == 1)) > 0.9
    assert np.median(found.latency_s[:, slow, 0] / found.latency_s[:, quick, 0]) == pytest.approx(4.0, rel=0.2)
    router_catalogue = OutcomePredictor.from_arrays(fitted.config, fitted.arrays, EMPTY).catalogue
    assert [arm.key for arm in router_catalogue.arms] == ["m+nothink", "m+think"]


def test_rows_that_do_not_say_count_for_the_default_arm_where_that_has_rows_too() -> None:
    catalogue = load_catalogue()
    rows = [Outcome("a", "qwen3:8b", 1.0, 9.0), Outcome("b", "qwen3:8b", 1.0, 9.0, think=True)]
    rows += [Outcome("b", "qwen3:8b", 0.0, 5.0)]
    assert [(o.query_id, o.think, o.success) for o in outcome_fit.said(rows, catalogue)] == [
        ("a", True, 1.0), ("b", True, 1.0),
    ]  # fmt: skip
    assert outcome_fit.said(rows[:1], catalogue) == rows[:1]


def test_a_learned_arm_that_the_catalogue_lacks_is_added_to_its_model() -> None:
    queries, features, complexity, kind = world()
    rows = [replace(o, model="m", think=o.model == "b") for o in specialists(queries, kind)]
    fitted = fit_outcomes(queries, rows, features, complexity, EMPTY, seed=0, tune=False)
    config = {**fitted.config, "profiles": []}
    own = catalogue_from([{"name": "m", "prior": {"latency_s": 5.0, "success": 0.5}}], "own")
    predictor = OutcomePredictor.from_arrays(config, fitted.arrays, own)
    assert predictor.models == ("m+nothink", "m+think")
    assert predictor.learned == predictor.models


def test_one_outcome_a_query_teaches_which_model_suits_which_query() -> None:
    """Traffic has no query that several models answered, so choices cannot be compared row by row."""
    rng = np.random.default_rng(3)
    n = 900
    hard = rng.random(n) < 0.4
    embedding = rng.normal(0, 0.3, (n, 24)).astype(np.float32)
    embedding[:, 0] += np.where(hard, 1.5, -1.5)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    features = Features(embedding, np.zeros((n, len(TABLE_NAMES)), np.float32))
    large = rng.random(n) < 0.5
    success = rng.random(n) < np.where(hard & ~large, 0.2, 0.9)
    queries = [Query(f"q{i}", "") for i in range(n)]
    outcomes = [
        Outcome(f"q{i}", "large" if large[i] else "small", float(success[i]), 9.0 if large[i] else 2.0)
        for i in range(n)
    ]
    complexity = np.full((n, 4), 0.25)
    fitted = fit_outcomes(queries, outcomes, features, complexity, Catalogue(()), seed=0, tune=False)
    assert fitted.report["learner"] != "prior"
    predictor = OutcomePredictor.from_arrays(fitted.config, fitted.arrays, Catalogue(()))
    found = predictor(embedding, features.table, complexity.astype(np.float32), np.full(n, np.nan, np.float32))
    small = found.p_success[:, found.models.index("small")]
    assert small[hard].mean() < 0.45
    assert small[~hard].mean() > 0.75
    assert found.p_success[hard, found.models.index("large")].mean() > 0.75


def test_one_outcome_a_query_without_any_difference_stays_with_the_means() -> None:
    rng = np.random.default_rng(4)
    n = 500
    features = Features(rng.normal(size=(n, 24)).astype(np.float32), np.zeros((n, len(TABLE_NAMES)), np.float32))
    outcomes = [Outcome(f"q{i}", "ab"[i % 2], float(rng.random() < 0.7), 1.0) for i in range(n)]
    queries = [Query(f"q{i}", "") for i in range(n)]
    fitted = fit_outcomes(queries, outcomes, features, np.full((n, 4), 0.25), Catalogue(()), seed=0, tune=False)
    if fitted.report["learner"] != "prior":
        predictor = OutcomePredictor.from_arrays(fitted.config, fitted.arrays, Catalogue(()))
        label, unknown = np.full((n, 4), 0.25, np.float32), np.full(n, np.nan, np.float32)
        found = predictor(features.embedding, features.table, label, unknown)
        assert found.p_success.std(axis=0).max() < 0.04
