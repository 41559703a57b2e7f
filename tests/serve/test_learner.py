"""A running gateway counts judged answers: a new model is placed by a dozen of them, without a fit."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from router_ml.catalogue import Catalogue, Model, Prior
from router_ml.decide.router import Counted, Router
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, FeedbackEvent, OutcomeEvent
from router_ml.serve.build import build_gateway
from router_ml.serve.learner import FILE, OnlineLearner
from router_ml.settings import Settings
from router_ml.types import LABELS
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.timing import until

USUAL, NEW = "usual:3b", "new:7b"
QUERY = "Compare the two drafts, then say which one to send and why"
P = dict(zip(LABELS, (0.1, 0.7, 0.1, 0.1), strict=True))


def _model(name: str, success: float, strength: float) -> Model:
    prior = Prior(dict.fromkeys(LABELS, 0.05), dict.fromkeys(LABELS, success), latency_log_sd=0.2, strength=strength)
    return Model(name, prior)


CATALOGUE = Catalogue((_model(USUAL, 0.7, 20.0), _model(NEW, 0.5, 2.0)))


def test_twelve_judged_answers_place_a_new_model_and_a_restart_forgets_nothing(tmp_path) -> None:
    with OllamaDouble([DoubleModel(USUAL, "Usual."), DoubleModel(NEW, "New.")]) as double:
        settings = Settings(models_dir=tmp_path / "none", ollama_host=double.url, state_dir=tmp_path / "state",
                            last_resort=None, policy="accurate", learn_s=0.1, deadline_s=20.0)  # fmt: skip
        with build_gateway(settings, catalogue=CATALOGUE) as gateway:
            assert gateway.chat(QUERY).model == USUAL
            for _ in range(12):
                answer = gateway.chat(QUERY, model=NEW)
                gateway.feedback(answer.decision.decision_id, 1.0)
            until(lambda: gateway.chat(QUERY).model == NEW)
        with build_gateway(settings, catalogue=CATALOGUE) as gateway:
            assert gateway.chat(QUERY).model == NEW


def _store(tmp_path, *events):
    store = open_store(tmp_path, read_only=False)
    store.append(events)
    return store


def _answered(decision_id: str, success: float | None = None, model: str = NEW):
    decision = DecisionEvent(decision_id, model, "moderate", "balanced", "b", 1.0, complexity_probabilities=P)
    return decision, OutcomeEvent(decision_id, model, success, 1.0)


def _learner(tmp_path, router: Router | None = None) -> tuple[OnlineLearner, Router]:
    router = router or Router.heuristic(CATALOGUE)
    return OnlineLearner(router, lambda: open_store(tmp_path), tmp_path / FILE), router


def _n(router: Router) -> float:
    return dict(zip(router.abilities.models, router.abilities.outcomes, strict=True)).get(NEW, 0.0)


def test_an_answer_nobody_judged_teaches_nothing_and_no_file_is_written(tmp_path) -> None:
    _store(tmp_path, *_answered("a"))
    learner, router = _learner(tmp_path)
    assert learner.check() == 0
    learner.close()
    assert _n(router) == 0
    assert not (tmp_path / FILE).exists()


def test_feedback_on_a_coordinators_decision_counts_for_the_model_it_chose(tmp_path) -> None:
    _store(tmp_path, _answered("a")[0], FeedbackEvent("a", "thumb", 1.0))
    learner, router = _learner(tmp_path)
    learner.check()
    assert _n(router) == 1.0


def test_nothing_is_counted_twice_after_a_restart_and_what_came_meanwhile_is(tmp_path) -> None:
    store = _store(tmp_path, *_answered("a", 1.0))
    learner, _ = _learner(tmp_path)
    learner.check()
    learner.close()
    store.append([*_answered("b"), FeedbackEvent("b", "thumb", 0.0)])
    again, router = _learner(tmp_path)
    assert _n(router) == 1.0
    again.check()
    assert again.check() == 0
    assert _n(router) == 2.0


@pytest.mark.parametrize("kind", ["retry", "rephrased", "left", "tool_failed"])
def test_a_sign_that_only_ever_says_wrong_moves_nothing_and_a_persons_word_after_it_counts_in_full(
    tmp_path, kind: str
) -> None:
    store = _store(tmp_path, *_answered("a"), FeedbackEvent("a", kind, 0.0))
    learner, router = _learner(tmp_path)
    assert learner.check() == 0
    assert _n(router) == 0.0
    store.append([FeedbackEvent("a", "thumb", 0.0)])
    learner.check()
    assert _n(router) == 1.0


def test_an_unusable_answer_moves_nothing_since_no_usable_one_is_counted_beside_it(tmp_path) -> None:
    decision, answered = _answered("a", 0.0)
    _store(tmp_path, decision, replace(answered, invalid="tool_invalid"))
    learner, router = _learner(tmp_path)
    assert learner.check() == 0
    assert _n(router) == 0.0


def test_a_persons_word_outweighs_the_judges_before_it_and_one_that_agrees_adds_the_rest(tmp_path) -> None:
    store = _store(tmp_path, *_answered("a"), FeedbackEvent("a", "judge", 0.0))  # weighs 0.5
    learner, router = _learner(tmp_path)
    learner.check()
    assert _n(router) == 0.5
    store.append([FeedbackEvent("a", "thumb", 0.0)])
    learner.check()
    assert _n(router) == 1.0
    store.append([FeedbackEvent("a", "judge", 0.0)])  # outranked
    learner.check()
    assert _n(router) == 1.0


def test_a_bundle_fitted_on_outcomes_begins_with_its_own_and_another_takes_over_what_is_known(tmp_path) -> None:
    store = _store(tmp_path, *_answered("a", 1.0), *_answered("b", 1.0))
    learner, _ = _learner(tmp_path)
    learner.check()
    learner.close()
    plain, fitted = Router.heuristic(CATALOGUE), Router.heuristic(CATALOGUE)
    plain.name, fitted.name = "plain", "fitted"
    fitted.counted = Counted(store.last_seq(), 0.0)
    assert _n(_learner(tmp_path, plain)[1]) == 2.0
    other, _ = _learner(tmp_path, fitted)
    other.check()
    assert _n(fitted) == 0.0
    store.append(_answered("c", 1.0))
    other.check()
    assert _n(fitted) == 1.0


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"bundle": "x", "seq": 1, "abilities": {"models": ["a"]}})])
def test_a_file_that_cannot_be_read_is_no_error_and_the_store_is_counted_anew(tmp_path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    _store(tmp_path, *_answered("a", 1.0))
    learner, router = _learner(tmp_path)
    learner.check()
    assert _n(router) == 1.0


def test_an_escalated_answer_that_is_judged_teaches_of_both_models_once(tmp_path) -> None:
    decision, outcome = _answered("d", model=USUAL)
    escalated = replace(outcome, escalated_from=NEW, p_right=0.2)
    store = _store(tmp_path, decision, escalated)
    learner, router = _learner(tmp_path)
    learner.check()
    assert _n(router) == 0.0  # nobody judged the answer, so nobody knows of either model
    store.append([FeedbackEvent("d", "thumb", 1.0)])
    learner.check()
    assert _n(router) == 1.0
    expected = Router.heuristic(CATALOGUE)
    expected.learn([(decision, USUAL, 1.0), (decision, NEW, 0.2)])
    assert router.expectations() == expected.expectations()
    store.append([FeedbackEvent("d", "score", 0.9)])
    learner.check()
    assert _n(router) == 1.0
