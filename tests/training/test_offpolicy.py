"""The off-policy gate: textbook values, intervals that hold, and the cases in which it must not decide."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.offpolicy_worlds import World, logged
from router_ml.catalogue import model_from
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, policy_parameters
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.errors import InputError, RowError
from router_ml.events.connect import open_store
from router_ml.events.event import FeedbackEvent, OutcomeEvent, decision_event
from router_ml.events.export import bandit_rows, export_bandit
from router_ml.types import Context, Decision
from training.offpolicy.__main__ import main
from training.offpolicy.challengers import Predicted, always, by_policy, judge_bundle, with_arms
from training.offpolicy.estimate import clustered_mean, difference, values
from training.offpolicy.gate import judge, judged_needed
from training.offpolicy.log import Log
from training.offpolicy.nuisance import expected_rewards, judging
from training.offpolicy.reading import log_of, read_log


def _log(chosen: list[int], propensity: list[float], reward: list[float], **more: Any) -> Log:
    n = len(chosen)
    parts: dict[str, Any] = {
        "arms": ("a", "b"),
        "chosen": np.array(chosen),
        "preferred": np.zeros(n, np.intp),
        "propensity": np.array(propensity),
        "admissible": np.ones((n, 2), bool),
        "reward": np.array(reward, float),
        "session": np.arange(n),
        "features": np.zeros((n, 1)),
        "predicted": np.full((n, 2), 0.5),
        "drawn": np.ones(n, bool),
    }
    return Log(**{**parts, **more})


# -- estimators -------------------------------------------------------------------------------------------------------


def test_weighted_values_by_hand() -> None:
    """Always b, four rows: b was chosen twice, with .25 and .5, and was right once.

    Horvitz-Thompson: (1/.25)/4 = 1. Self-normalised: 4/(4 + 2) = 2/3. Kish: 6^2/(16 + 4) = 1.8. With an expected reward
    of 1/2 for everything DR is 1/2 + (4 * 1/2 - 2 * 1/2)/4 = .75."""
    log = _log([1, 0, 1, 0], [0.25, 0.75, 0.5, 0.5], [1, 1, 0, 0])
    found = values(log, np.ones(4, np.intp), np.full((4, 2), 0.5), np.ones(4))
    assert found.ips == pytest.approx(1.0)
    assert found.snips == pytest.approx(2 / 3)
    assert found.effective == pytest.approx(1.8)
    assert found.dr.value == pytest.approx(0.75)
    assert found.matching == pytest.approx(0.5)


def test_a_judgement_counts_for_the_answers_that_were_as_unlikely_to_be_judged() -> None:
    """As above with the second b not judged, and a chance of one half of being judged: 8/4 = 2, and 1."""
    log = _log([1, 0, 1, 0], [0.25, 0.75, 0.5, 0.5], [1, 1, math.nan, 0])
    found = values(log, np.ones(4, np.intp), np.full((4, 2), 0.5), np.full(4, 0.5))
    assert found.ips == pytest.approx(2.0)
    assert found.snips == pytest.approx(1.0)


def test_rows_on_which_both_choose_alike_add_nothing() -> None:
    rng = np.random.default_rng(0)
    log = _log([0] * 50, [0.9] * 50, list(rng.random(50)))
    same = np.zeros(50, np.intp)
    assert difference(log, same, same, rng.random((50, 2)), np.ones(50))[:2] == (0.0, 0.0)


def test_the_interval_of_independent_values_is_students() -> None:
    """Ten normal values: mean 1.0, standard error .0333; t with about 9 degrees of freedom is 2.262 (tables)."""
    value = 1.0 + 0.1 * np.array([-1.5, -1, -0.5, -0.5, 0, 0, 0.5, 0.5, 1, 1.5])
    found = clustered_mean(value, np.arange(10))
    assert found.value == pytest.approx(1.0)
    assert found.error == pytest.approx(value.std(ddof=1) / math.sqrt(10))
    assert found.high - found.value == pytest.approx(2.262 * found.error, rel=0.05)


def test_repeating_every_row_of_a_session_tells_nothing_new() -> None:
    value = np.random.default_rng(1).standard_normal(40)
    once = clustered_mean(value, np.arange(40))
    assert clustered_mean(np.repeat(value, 5), np.repeat(np.arange(40), 5)) == pytest.approx(once)


@pytest.mark.parametrize(
    "world", [World("sessions", sessions=True, gap=0.05), World("missing", missing=True, judged=3000, gap=0.05)]
)
def test_the_interval_holds_the_truth_where_naive_matching_does_not(world: World) -> None:
    held, errors, naive = 0, [], []
    for seed in range(60):
        log, challenger, truth = logged(replace(world, gain=0.03), np.random.default_rng(seed))
        expected, judged = expected_rewards(log), judging(log)
        found = difference(log, challenger, log.preferred, expected, judged)
        held += found.low <= truth <= found.high
        errors.append(found.value - truth)
        two = [values(log, target, expected, judged).matching for target in (challenger, log.preferred)]
        naive.append(two[0] - two[1] - truth)
    assert held >= 52  # of 60: P(fewer | 95 %) is below 1 %
    assert abs(np.mean(errors)) < 0.008
    assert np.mean(naive) < -0.02


def test_a_constant_probability_of_being_judged_is_found() -> None:
    log, _, _ = logged(World("w"), np.random.default_rng(0))
    judged = np.random.default_rng(1).random(len(log)) < 0.3
    found = judging(replace(log, reward=np.where(judged, log.reward, np.nan)))
    assert found.mean() == pytest.approx(0.3, abs=0.02)
    assert found.std() < 0.05


# -- the gate ---------------------------------------------------------------------------------------------------------


def _verdict(world: World, seed: int = 0) -> Any:
    log, challenger, _ = logged(world, np.random.default_rng(seed))
    return judge(log, challenger)


def test_a_better_challenger_is_better_and_a_worse_one_is_worse() -> None:
    far = World("w", gap=0.05, exploration=0.2, disagreement=0.3)
    better, worse = _verdict(replace(far, gain=0.06)), _verdict(replace(far, gain=-0.08))
    assert (better.word, worse.word) == ("better", "worse")
    assert better.passes
    assert not worse.passes
    assert "points, 95 % interval +" in str(better)
    assert better.difference.low <= 0.06 <= better.difference.high
    json.dumps(better.as_dict(), allow_nan=False)


def test_a_challenger_three_points_worse_hardly_ever_passes() -> None:
    passed = sum(_verdict(World("w", gap=0.05, gain=-0.03), seed).passes for seed in range(60))
    assert passed <= 3  # of 60: P(more | 1 %) is below .1 %


def test_the_same_choices_are_not_worse() -> None:
    log, _, _ = logged(World("w"), np.random.default_rng(0))
    assert judge(log, log.preferred).word == "not worse"


def test_without_exploration_it_cannot_tell_and_says_what_would() -> None:
    log, challenger, _ = logged(World("w"), np.random.default_rng(0))
    found = judge(replace(log, drawn=np.zeros(len(log), bool), chosen=log.preferred), challenger)
    assert found.word == "cannot tell"
    assert "Nothing was explored" in str(found)
    assert found.needed["10%"] * 2 == pytest.approx(found.needed["5%"], abs=2)
    assert f"{found.needed['5%']:,} judged answers" in str(found)


def test_how_many_judged_answers_are_needed_by_hand() -> None:
    """z = 2.326 + .842 for 99 % and 80 %: (3.168/.02)^2 * .2 * .16 / .025 = 32,116."""
    assert judged_needed(0.2, 0.16, 0.025, 0.02) == pytest.approx(32116, abs=2)


def test_an_arm_that_was_never_admissible_can_never_be_judged() -> None:
    log, _, _ = logged(World("w"), np.random.default_rng(0))
    admissible = log.admissible.copy()
    admissible[:, 0] = False
    found = judge(replace(log, admissible=admissible), always("small"))
    assert found.word == "cannot tell"
    assert "small, which was never admissible, so it can never be judged" in str(found)


def test_a_choice_that_was_hardly_tried_is_not_judged() -> None:
    found = _verdict(World("w", gap=0.05, judged=300))
    assert (found.word, found.difference) == ("cannot tell", None)
    assert "10 are needed" in str(found)


def test_few_effective_answers_are_not_enough() -> None:
    found = _verdict(World("w", gap=0.05, judged=900, disagreement=0.9))
    assert found.word == "cannot tell"
    assert "effective sample size" in str(found)


def test_judging_only_what_cannot_be_compared_is_refused() -> None:
    """Only the long queries are judged: no weight makes them stand for the short ones."""
    log, challenger, _ = logged(World("w", gap=0.05), np.random.default_rng(0))
    one_kind = replace(log, reward=np.where(log.features[:, 0] > 0.5, log.reward, np.nan))
    found = judge(one_kind, challenger)
    assert found.word == "cannot tell"
    assert "chance to be judged" in str(found) or "differ too much" in str(found)


def test_an_arm_of_which_nothing_was_judged_is_refused() -> None:
    log, challenger, _ = logged(World("w", gap=0.05), np.random.default_rng(0))
    reward = np.where(log.chosen == log.preferred, log.reward, np.nan)
    assert "tried and judged 0 times" in str(judge(replace(log, reward=reward), challenger))


# -- logs and challengers ---------------------------------------------------------------------------------------------

MODELS = tuple(
    model_from({"name": name, "prior": {"latency_s": 1.0, "success": 0.5}}, "test") for name in ("a", "b", "slow")
)
P_SUCCESS = {"a": 0.8, "b": 0.79, "slow": 0.99}
EXPLORING = Policy("exploring", exploration=0.3, latency_budget_s=5.0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    """1,200 decisions of the real selector; b is right in 95 %, a in 60 %; one in ten was named by the caller."""
    rng = random.Random(1)
    opened = open_store(tmp_path / "events.db")
    forecast = Forecast(list(P_SUCCESS.values()), [(1, 2, 3), (1, 2, 3), (9, 9, 9)], [math.nan] * 3, [0.0] * 3)
    events: list[Any] = []
    for i in range(1200):
        found = Selector(MODELS).select(forecast, Context(), EXPLORING, draw=rng.random)
        made = Decision(
            found.ranked[0].model, "simple", {"simple": 1.0}, found.ranked, "answer", "", f"d{i}", "p", "b",
            found.propensity,
        )  # fmt: skip
        events.append(
            decision_event(
                made,
                unit=f"s{i // 3}",
                pinned=i % 10 == 0,
                policy_parameters=policy_parameters(EXPLORING),
                at_s=float(i),
            )
        )
        events.append(OutcomeEvent(f"d{i}", made.model, None, 1.0))
        right = rng.random() < (0.95 if made.model == "b" else 0.6)
        events.append(FeedbackEvent(f"d{i}", "thumb", float(right)))
    opened.append(events)
    yield opened
    opened.close()


def test_an_exported_log_is_what_the_selector_did(store: Any, tmp_path: Path) -> None:
    export_bandit(store, tmp_path / "rows.jsonl")
    log = read_log(tmp_path / "rows.jsonl")
    assert log.arms == ("a", "b", "slow")
    assert len(log) == 1200
    assert log.admissible.tolist()[0] == [True, True, False]
    assert set(log.preferred) == {0}
    explored = log.chosen == 1
    assert log.propensity[explored] == pytest.approx(0.3 / (1 + 0.01 / 0.05))
    assert explored.mean() == pytest.approx(0.25, abs=0.04)
    assert log.drawn.mean() == 0.9
    assert len(np.unique(log.session)) == 400
    verdict = judge(log, always("b"))
    assert verdict.word == "better"
    assert verdict.difference is not None
    assert verdict.difference.low <= 0.35 <= verdict.difference.high


def test_a_policy_is_ranked_on_what_was_logged(store: Any, tmp_path: Path) -> None:
    export_bandit(store, tmp_path / "rows.jsonl")
    log = read_log(tmp_path / "rows.jsonl")
    assert set(by_policy()(log)) == {0}
    assert set(by_policy(Policy("unlimited", latency_budget_s=None, latency_weight_per_s=0.0))(log)) == {2}
    assert set(by_policy(Policy("one", models=("b",)))(log)) == {1}
    shape = (1200, 3)
    believes_in_b = Predicted(np.tile([0.5, 0.9, np.nan], (1200, 1)), np.ones((*shape, 3)), np.zeros(shape))
    assert set(by_policy(None, believes_in_b)(log)) == {1}


def test_a_model_that_was_never_a_candidate_is_named(store: Any, tmp_path: Path) -> None:
    export_bandit(store, tmp_path / "rows.jsonl")
    log = with_arms(read_log(tmp_path / "rows.jsonl"), ["new"])
    shape = (1200, 4)
    best = Predicted(np.tile([0.5, 0.5, 0.5, 0.99], (1200, 1)), np.ones((*shape, 3)), np.zeros(shape))
    verdict = judge(log, by_policy(None, best))
    assert verdict.word == "cannot tell"
    assert "In 100.0 % it would have taken new, which was never admissible" in str(verdict)


@pytest.mark.parametrize(
    ("field", "value"),
    [("propensity", 0), ("reward", 2), ("candidates", [{"model": "a"}]), ("decision_id", None)],
)
def test_a_bad_row_is_named(field: str, value: Any) -> None:
    row = {
        "decision_id": "d", "propensity": 0.5, "reward": 1.0, "chosen": "a",
        "candidates": [{"model": "a", "p_success": 0.5, "utility": 0.5}],
    }  # fmt: skip
    assert len(log_of([(row, 1)])) == 1
    with pytest.raises(RowError, match=rf"rows.jsonl.*7.*{field}"):
        log_of([({**row, field: value}, 7)], "rows.jsonl")


def test_the_command_judges_recorded_events(store: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "events.db")
    assert main(["--events", place, "--challenger", "always:b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["passes"]) == ("better", True)
    assert found["decisions"] == 1080
    assert main(["--events", place, "--challenger", "always:c"]) == 2
    assert "it had a, b, slow" in capsys.readouterr().err
    assert main(["--events", place, "--challenger", "balanced"]) == 0
    assert "chooses as the present router does" in capsys.readouterr().out


def test_a_bundle_needs_the_texts(
    store: Any, tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--events", str(tmp_path / "events.db"), "--challenger", str(tiny_bundle)]) == 2
    assert "ROUTER_ML_KEEP_TEXT=1" in capsys.readouterr().err


def test_a_bundle_is_judged_on_features_alone(store: Any, tiny_bundle: Path) -> None:
    router = Router.load(tiny_bundle)
    rows = list(bandit_rows(store))
    features = router._features.extract(["check email"] * len(rows), [Context()] * len(rows))
    verdict = judge_bundle(tiny_bundle, rows, features)
    assert verdict.decisions == 1080
    assert verdict.numbers["judged"] == 1080
    assert set(verdict.unsupported) <= {model.name for model in router.models}


def test_no_decisions_are_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match="no decisions"):
        read_log(tmp_path / "none.jsonl")
