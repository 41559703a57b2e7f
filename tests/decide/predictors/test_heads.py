"""Heads replayed with numpy, and the hand-written rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router_ml.context import parse_context
from router_ml.decide.features.extractor import TABLE_NAMES
from router_ml.decide.features.surface import surface_features
from router_ml.decide.features.tools import TOOL_NAMES
from router_ml.decide.predictors.complexity import LearnedComplexity
from router_ml.decide.predictors.heads import LinearHead, softmax
from router_ml.decide.predictors.heuristic import READS, HeuristicComplexity
from router_ml.types import LABELS


def test_softmax_by_hand() -> None:
    assert softmax(np.log(np.array([[1.0, 2.0, 5.0]], np.float32)))[0] == pytest.approx([0.125, 0.25, 0.625])


def test_no_logit_overflows() -> None:
    assert softmax(np.array([[1e4, -1e4, 0.0, 1e4]], np.float32))[0] == pytest.approx([0.5, 0, 0, 0.5])


@given(arrays(np.float32, (3, 4), elements=st.floats(-50, 50, width=32)), st.floats(-20, 20, width=32))
def test_softmax_is_a_distribution_that_ignores_a_common_shift(logits: np.ndarray, shift: float) -> None:
    p = softmax(logits)
    assert np.all(p >= 0)
    assert p.sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert softmax(logits + np.float32(shift)) == pytest.approx(p, abs=1e-4)


def test_a_linear_head_by_hand() -> None:
    head = LinearHead(np.array([[1, 2], [0, -1]], np.float32), np.array([0.5, 1], np.float32))
    assert head(np.array([[3, 4]], np.float32)).tolist() == [[11.5, -3.0]]


def test_evidence_is_the_difference_of_the_logits() -> None:
    weights = np.arange(20, dtype=np.float32).reshape(4, 5) ** 1.5 * np.float32(0.02)
    learned = LearnedComplexity(LinearHead(weights, np.array([0, 1, 2, 3], np.float32)))
    embedding, table = np.array([0.6, 0.8], np.float32), np.array([1.0, 0.0, 2.0], np.float32)
    parts = learned.evidence(embedding, table, ("a", "b", "c"), 3, 1)
    assert set(parts) == {"wording (the sentence vector)", "how common the labels are", "a", "c"}
    p = learned(embedding[None], table[None])[0]
    assert sum(parts.values()) == pytest.approx(math.log(p[3] / p[1]), rel=1e-4)


def _verdict(text: str, context: object = None) -> str:
    parsed = parse_context(context)  # type: ignore[arg-type]
    row = [*surface_features(text, parsed), *[0.0] * len(TOOL_NAMES)]
    p = HeuristicComplexity(TABLE_NAMES)(None, np.array([row], np.float32))[0]
    assert p.sum() == pytest.approx(1.0)
    return LABELS[int(p.argmax())]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("check email", "simple"),
        ("what's the weather tomorrow", "simple"),
        ("hello", "simple"),
        ("schedule a meeting with Dana on Thursday at 3pm, 45 minutes", "moderate"),
        ("write a short poem about my cat", "moderate"),
        ("find a free hour with Dana and mail her the agenda", "complex"),
        ("when the parcel arrives, text Omar and move my dentist appointment", "complex"),
        ("send it", "ambiguous"),
        ("do the thing", "ambiguous"),
        ("", "ambiguous"),
    ],
)
def test_the_rules_read_plain_queries(text: str, label: str) -> None:
    assert _verdict(text) == label


def test_history_resolves_for_the_rules_too() -> None:
    assert _verdict("send it") == "ambiguous"
    assert _verdict("send it", {"history": ["the report for Dana"]}) != "ambiguous"
    assert _verdict("this", {"attachment": "report.pdf"}) != "ambiguous"


def test_the_rules_read_columns_that_exist_wherever_they_stand() -> None:
    assert set(READS) <= set(TABLE_NAMES)
    row = np.array(
        [*surface_features("find a free hour with Dana and mail her", parse_context(None)), *[0.0] * len(TOOL_NAMES)]
    )
    order = np.random.default_rng(0).permutation(len(TABLE_NAMES))
    names = tuple(TABLE_NAMES[i] for i in order)
    straight = HeuristicComplexity(TABLE_NAMES)(None, row[None].astype(np.float32))
    assert HeuristicComplexity(names)(None, row[order][None].astype(np.float32)).tolist() == straight.tolist()
    with pytest.raises(ValueError):
        HeuristicComplexity(("other",))
