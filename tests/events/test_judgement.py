"""Which judgement counts, and how far a judge model agrees with people."""

from __future__ import annotations

import pytest
from sklearn.metrics import cohen_kappa_score

from router_ml.events.event import FeedbackEvent, OutcomeEvent
from router_ml.events.judgement import Judgement, counts, judge_agreement, note_feedback, success_of

SILENT = OutcomeEvent("d", "m", None, 1.0)


def judged(*feedback: tuple[str, float]) -> dict[str, Judgement]:
    found: dict[str, Judgement] = {}
    for kind, score in feedback:
        note_feedback(found, FeedbackEvent("d", kind, score))
    return found


@pytest.mark.parametrize(
    ("feedback", "kind"),
    [
        ([("thumb", 1.0), ("tool_invalid", 0.0)], "thumb"),
        ([("tool_invalid", 0.0), ("score", 0.4)], "score"),
        ([("left", 0.0), ("retry", 0.0), ("rephrased", 0.0)], "retry"),
        ([("thumb", 1.0), ("score", 0.0)], "score"),  # the later of two people's
    ],
)
def test_a_person_outranks_a_sign_and_a_heavier_sign_a_lighter_one(
    feedback: list[tuple[str, float]], kind: str
) -> None:
    assert judged(*feedback)["d"].kind == kind


def test_an_answer_without_judgement_is_neither_right_nor_wrong() -> None:
    assert success_of(SILENT, {}) is None
    assert success_of(SILENT, judged(("retry", 0.0))) is None  # the absence of a retry says nothing
    assert success_of(SILENT, judged(("format_invalid", 0.0))) == 0.0
    assert success_of(SILENT, judged(("judge", 1.0))) == 1.0
    assert success_of(OutcomeEvent("d", "m", 0.0, 1.0), judged(("judge", 1.0))) == 0.0  # no answer came
    assert success_of(OutcomeEvent("d", "m", 0.0, 1.0), judged(("thumb", 1.0))) == 1.0


def test_weak_signs_that_only_say_wrong_count_in_no_rate() -> None:
    assert [kind for kind in ("thumb", "judge", "tool_invalid", "retry", "rephrased", "left") if not counts(kind)] == [
        "retry",
        "rephrased",
        "left",
    ]


def test_the_judges_weight_is_its_agreement_beyond_chance() -> None:
    people = [1, 1, 1, 0, 0, 1, 0, 1, 1, 0] * 4
    judge = [1, 1, 0, 0, 0, 1, 1, 1, 1, 0] * 4
    events = [FeedbackEvent(str(i), "thumb", float(score)) for i, score in enumerate(people)]
    events += [FeedbackEvent(str(i), "judge", float(score)) for i, score in enumerate(judge)]
    found = judge_agreement(events)
    assert (found.compared, found.same) == (40, 32)
    assert found.kappa == pytest.approx(cohen_kappa_score(people, judge))
    assert found.weight == found.kappa
    assert judge_agreement(events[:5]).weight == 0.5  # not enough compared yet
