"""Events keep their values through JSON, and old programs read newer ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import InputError
from router_ml.events import event as events
from router_ml.events.event import (
    AlertEvent,
    AttemptEvent,
    DecisionEvent,
    ExperimentEvent,
    FeedbackEvent,
    OutcomeEvent,
    Recorders,
    as_dict,
    decision_event,
    feedback_event,
    from_dict,
    from_json,
    json_line,
)
from router_ml.types import Candidate, Decision, Quantiles


def written_form(event: events.Event) -> str:
    return json_line(as_dict(event))


CANDIDATE = Candidate("qwen3:8b", 0.9, Quantiles(2.0, 4.0, 5.0), 0.001, 0.7, ("strong",), 120.0)
text = st.text(max_size=20)
number = st.floats(allow_nan=False, allow_infinity=False)
optional = st.none() | number


@given(
    st.one_of(
        st.builds(
            DecisionEvent, text, text, text, text, text, number, st.just((CANDIDATE,)), st.dictionaries(text, text)
        ),
        st.builds(AttemptEvent, text, text, st.integers(0, 9), st.booleans(), optional, optional),
        st.builds(OutcomeEvent, text, text, optional, optional, st.booleans(), st.none() | st.integers(0)),
        st.builds(
            OutcomeEvent,
            text,
            text,
            optional,
            optional,
            logprob_mean=optional,
            cascade=st.none() | text,
            escalated_from=st.none() | text,
            p_right=optional,
            unused_s=optional,
            unused_usd=optional,
        ),
        st.builds(FeedbackEvent, text, st.sampled_from(["thumb", "retry"]), st.floats(0, 1)),
        st.builds(AlertEvent, text, st.sampled_from(["firing", "resolved"]), text, number, number, text, text),
        st.builds(ExperimentEvent, text, st.just("started"), st.dictionaries(text, number | text)),
    )
)
def test_every_event_survives_its_json_form(event: events.Event) -> None:
    assert from_json(written_form(event)) == event


def test_the_json_form_names_its_kind_and_version() -> None:
    row = json.loads(written_form(OutcomeEvent("d1", "m", 1.0, 2.5, at_s=10.0, event_id="e")))
    assert (row["event"], row["v"], row["latency_s"], row["at_s"]) == ("outcome", 1, 2.5, 10.0)


def test_a_key_of_a_newer_version_is_ignored() -> None:
    row = json.loads(written_form(FeedbackEvent("d1", "thumb", 1.0))) | {"v": 99, "mood": "good"}
    assert isinstance(from_dict(row), FeedbackEvent)


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"event": "mood"}', '{"event": "feedback"}'])
def test_what_is_no_event_is_a_typed_error(line: str) -> None:
    with pytest.raises(InputError, match="event"):
        from_json(line)


def test_a_decision_becomes_an_event_with_its_candidates() -> None:
    decision = Decision("qwen3:8b", "complex", {}, (CANDIDATE,), "answer", "r", "d1", "balanced", "b1", 0.8, "new", 0.3)
    event = decision_event(decision, experiment="e1", unit="s1", at_s=5.0)
    assert (event.candidates, event.propensity, event.variant, event.unit) == ((CANDIDATE,), 0.8, "new", "s1")


def test_a_recorder_that_raises_does_not_hinder_the_next() -> None:
    class Broken:
        def record(self, event: events.Event) -> None:
            raise RuntimeError("no")

    class Kept:
        def __init__(self) -> None:
            self.seen: list[events.Event] = []

        def record(self, event: events.Event) -> None:
            self.seen.append(event)

    kept = Kept()
    feedback = FeedbackEvent("d1", "thumb", 1.0)
    Recorders((Broken(), kept)).record(feedback)
    assert kept.seen == [feedback]


def test_an_old_row_with_fields_that_no_longer_exist_is_read() -> None:
    row = {"event": "outcome", "v": 1, "decision_id": "d", "model": "m", "success": 1.0, "latency_s": 2.0,
           "escalated": True, "at_s": 1.0, "event_id": "e"}  # fmt: skip
    assert from_dict(row) == OutcomeEvent("d", "m", 1.0, 2.0, at_s=1.0, event_id="e")
    old = {"event": "decision", "v": 1, "decision_id": "d", "model": "m", "complexity": "simple", "policy": "p",
           "bundle": "b", "propensity": 1.0, "features_digest": "abc"}  # fmt: skip
    assert isinstance(from_dict(old), DecisionEvent)


@pytest.mark.parametrize(
    "change",
    [{"score": "good"}, {"score": 7.0}, {"at_s": "soon"}, {"at_s": None}, {"decision_id": ["d"]}, {"comment": 5}],
)
def test_a_field_of_the_wrong_type_is_a_typed_error(change: dict[str, object]) -> None:
    row = json.loads(written_form(FeedbackEvent("d1", "thumb", 1.0))) | change
    with pytest.raises(InputError):
        from_dict(row)


def test_a_candidate_without_its_predictions_is_a_typed_error() -> None:
    row = json.loads(written_form(DecisionEvent("d", "m", "simple", "p", "b", 1.0))) | {"candidates": [{"model": "a"}]}
    with pytest.raises(InputError, match="incomplete"):
        from_dict(row)


def test_numbers_that_json_does_not_know_are_left_out_and_those_of_numpy_are_numbers() -> None:
    row = json.loads(written_form(OutcomeEvent("d", "m", np.float32(0.5), float("nan"), output_tokens=np.int64(7))))  # type: ignore[arg-type]
    assert (row["success"], row["output_tokens"]) == (0.5, 7)
    assert "latency_s" not in row


@pytest.mark.parametrize("bad", [["x"], {"a": 1}, 2**70, None, "", "a\ud800", "a\0b", "x" * 2_000_000])
def test_feedback_under_an_id_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="decision id") as caught:
        feedback_event(bad, 1.0)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), "good", None, 1j])
def test_a_score_outside_of_0_to_1_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        feedback_event("d", bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [5, "x" * 20_000])
def test_a_comment_that_is_no_text_or_too_long_is_refused(bad: object) -> None:
    with pytest.raises(InputError, match="comment"):
        feedback_event("d", 1.0, bad)  # type: ignore[arg-type]


def test_feedback_takes_numbers_of_other_libraries_and_names_its_kind() -> None:
    assert (feedback_event("d", np.float32(0.5)).kind, feedback_event("d", True).kind) == ("score", "thumb")  # type: ignore[arg-type]
    inferred = feedback_event("d", 0.0, kind="retry")
    assert (inferred.explicit, feedback_event("d", 0.3).explicit) == (False, True)
