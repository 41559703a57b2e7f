"""Scoring of calls and texts against what a row expects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import InputError
from router_ml.types import Query
from training.measuring.expected_answer import ExpectedAnswer, ExpectedCall, expected_answer
from training.measuring.judge import JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer
from training.measuring.scoring import needs_judge, outcome
from training.measuring.text_checks import is_question, score_text
from training.measuring.tool_calls import MadeCall, score_calls

LIGHT = ExpectedCall("lights", {"room": "study", "on": False}, frozenset({"color"}))
MAIL = ExpectedCall("mail", {"unread": True})


def test_calls_in_any_order_are_right() -> None:
    made = [MadeCall("mail", {"unread": "true"}), MadeCall("lights", {"on": "off", "room": "Study"})]
    score = score_calls([LIGHT, MAIL], made)
    assert (score.success, score.names, score.arguments, score.problems) == (True, 1.0, 1.0, ())


def test_optional_arguments_may_be_left_out_or_be_anything() -> None:
    assert score_calls([LIGHT], [MadeCall("lights", {"room": "study", "on": False, "color": "red"})]).success


def test_an_optional_argument_with_a_value_must_have_it_where_given() -> None:
    expected = [ExpectedCall("list", {"end": "2026-03-10"}, frozenset({"end"}))]
    assert score_calls(expected, [MadeCall("list", {})]).success
    assert score_calls(expected, [MadeCall("list", {"end": ""})]).success
    assert not score_calls(expected, [MadeCall("list", {"end": "2026-03-11"})]).success


def test_an_argument_nobody_asked_for_is_wrong_unless_it_is_empty() -> None:
    assert score_calls([MAIL], [MadeCall("mail", {"unread": True, "sender": None, "tags": []})]).success
    score = score_calls([MAIL], [MadeCall("mail", {"unread": True, "sender": "Bo"})])
    assert not score.success
    assert score.problems == ("mail: sender was not expected",)


def test_a_wrong_and_a_missing_argument_cost_their_share() -> None:
    score = score_calls([LIGHT, MAIL], [MadeCall("lights", {"room": "attic", "on": False}), MadeCall("mail", {})])
    assert not score.success
    assert score.names == 1.0
    assert score.arguments == pytest.approx(1 / 3)  # of room, on, unread only `on` is right
    assert score.problems == ("lights: room is 'attic', expected 'study'", "mail: unread is missing")


def test_missing_superfluous_and_repeated_calls_are_failures() -> None:
    right = MadeCall("mail", {"unread": True})
    assert score_calls([LIGHT, MAIL], [right]).names == 0.5
    assert not score_calls([LIGHT, MAIL], [right]).success
    assert not score_calls([MAIL], [right, right]).success
    assert not score_calls([], [right]).success
    assert score_calls([], []).success


def test_an_allowed_look_up_is_passed_over_and_never_needed() -> None:
    right = MadeCall("mail", {"unread": True})
    assert score_calls([MAIL], [MadeCall("find", {"name": "Bo"}), right], {"find"}).success
    assert score_calls([MAIL], [right], {"find"}).success


def test_two_calls_of_one_tool_are_told_apart_by_their_arguments() -> None:
    expected = [ExpectedCall("timer", {"minutes": {"$any": [8, 12]}}), ExpectedCall("timer", {"minutes": 8})]
    assert score_calls(expected, [MadeCall("timer", {"minutes": 8}), MadeCall("timer", {"minutes": 12})]).success


names = st.sampled_from(["a", "b", "c"])
calls = st.lists(st.tuples(names, st.dictionaries(names, st.integers(0, 2), max_size=2)), max_size=5)


@given(calls, st.randoms())
def test_the_expected_calls_themselves_score_full_marks_in_any_order(pairs: list[Any], random: Any) -> None:
    made = [MadeCall(name, arguments) for name, arguments in pairs]
    expected = [ExpectedCall(name, arguments) for name, arguments in pairs]
    random.shuffle(made)
    score = score_calls(expected, made)
    assert (score.success, score.names) == (True, 1.0)
    assert score.arguments == (1.0 if any(arguments for _, arguments in pairs) else None)
    assert not score_calls(expected, [*made, MadeCall("d", {})]).success


@given(calls, calls)
def test_shares_stay_shares_and_success_means_no_problem(left: list[Any], right: list[Any]) -> None:
    score = score_calls([ExpectedCall(*pair) for pair in left], [MadeCall(*pair) for pair in right])
    assert 0 <= score.names <= 1
    assert score.arguments is None or 0 <= score.arguments <= 1
    assert score.success is (score.problems == ())


SCHEMA = {"type": "object", "properties": {"route": {"enum": ["small", "large"]}}, "required": ["route"]}


@pytest.mark.parametrize(
    ("checks", "text"),
    [
        ({"exact": "Paris"}, "paris."),
        ({"exact": "Paris"}, "<think>London? No.</think>\nParis"),
        ({"contains": ["Oslo", "17:20"]}, "The 17:20 to oslo."),
        ({"contains_any": ["1609", "1,609"]}, "A mile is 1,609 m."),
        ({"regex": r"\b54\b"}, "54 euros more"),
        ({"json_schema": SCHEMA}, '{\n\n\t\t\t"route" :"small" }'),  # as a real server answered under `format`
        ({"json_schema": SCHEMA}, 'Here it is:\n```json\n{"route": "large"}\n```'),
        ({"asks": True}, "Which meeting do you mean?"),
        ({"asks": True}, "Please tell me the city."),
        ({"asks": True}, "何時ですか？"),
        ({"asks": False}, "Done."),
    ],
)
def test_texts_that_pass(checks: dict[str, Any], text: str) -> None:
    assert score_text(checks, text) == []


@pytest.mark.parametrize(
    ("checks", "text"),
    [
        ({"exact": "Paris"}, "It is Paris"),
        ({"contains": ["Oslo", "17:20"]}, "The 17:20 to Bergen"),
        ({"contains": "Paris"}, "<think>Paris</think>London"),
        ({"contains_any": ["1609"]}, "many"),
        ({"regex": r"\b54\b"}, "540 euros"),
        ({"json_schema": SCHEMA}, '{"route": "medium"}'),
        ({"json_schema": SCHEMA}, "small"),
        ({"asks": True}, "Sent."),
        ({"asks": False}, "Shall I?"),
    ],
)
def test_texts_that_fail(checks: dict[str, Any], text: str) -> None:
    assert len(score_text(checks, text)) == 1


def test_asking_is_more_than_being_polite() -> None:
    assert not is_question("I have sent it. Please enjoy your day.")


def rows(**extra: Any) -> ExpectedAnswer:
    return expected_answer(Query("q", "text", extra=extra))


def test_success_of_an_answer() -> None:
    expected = rows(expected_calls=[{"name": "mail", "arguments": {"unread": True}}], expected={"contains": "two"})
    good = MeasuredAnswer(
        "q", "m", content="You have two.", calls=(MadeCall("mail", {"unread": True}),), turns=2, latency_s=1.0
    )
    assert outcome(good, expected, None).success == 1.0
    silent = MeasuredAnswer("q", "m", content="", calls=good.calls, turns=2)
    assert outcome(silent, expected, None).success == 0.0
    assert outcome(silent, expected, None).extra["problems"] == ["text does not say 'two'"]


def test_nothing_expected_is_not_scored_and_an_error_is_a_failure() -> None:
    assert outcome(MeasuredAnswer("q", "m", content="hi"), rows(), None).success is None
    assert outcome(MeasuredAnswer("q", "m", error="timeout: no answer in time"), rows(), None).success == 0.0


def test_a_judge_decides_only_what_nothing_else_failed() -> None:
    expected = rows(expected={"contains": "dear", "judge": "is kind"})
    kind = MeasuredAnswer("q", "m", content="Dear Bo")
    assert needs_judge(kind, expected)
    assert not needs_judge(MeasuredAnswer("q", "m", content="Bo!"), expected)
    assert outcome(kind, expected, None).success is None
    assert outcome(kind, expected, None, JudgeDecision(True, "warm")).success == 1.0
    assert outcome(kind, expected, None, JudgeDecision(False, "cold")).success == 0.0
    assert outcome(kind, expected, None, JudgeDecision(None, "no decision")).success is None


@pytest.mark.parametrize(
    "extra",
    [
        {"expected_calls": "mail"},
        {"expected_calls": [{"arguments": {}}]},
        {"expected_calls": [{"name": "mail", "args": {}}]},
        {"expected_calls": [{"name": "mail", "arguments": {"x": {"$regexp": "a"}}}]},
        {"expected": {"equals": "x"}},
        {"expected": {"regex": "("}},
        {"expected": {"json_schema": {"type": "nothing"}}},
        {"expected": {"contains": 5}},
        {"expected": {"asks": "yes"}},
        {"tool_results": [{"name": "mail"}]},
        {"allowed_calls": "mail"},
    ],
)
def test_a_row_that_says_it_wrongly_is_named(extra: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="query 'q'"):
        rows(**extra)
