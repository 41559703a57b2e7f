"""What the encoder reads, and what is read off without it."""

from __future__ import annotations

from math import log1p
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.context import parse_context
from router_ml.decide.features.composition import MAX_QUERY_CHARS, compose, shorten
from router_ml.decide.features.cues import CUES, DOMAINS
from router_ml.decide.features.extractor import TABLE_NAMES, Extractor
from router_ml.decide.features.surface import NAMES, surface_features
from router_ml.decide.features.tools import TOOL_NAMES, ToolFeatures
from router_ml.types import EMPTY_CONTEXT, Tool


def _named(text: str, context: Any = None) -> dict[str, float]:
    return dict(zip(NAMES, surface_features(text, parse_context(context)), strict=True))


def test_a_bare_query_is_read_as_it_is() -> None:
    assert compose("  check email ", EMPTY_CONTEXT) == "check email"


def test_each_part_of_the_context_has_its_place() -> None:
    context = parse_context(
        {
            "history": ["user: hi", {"role": "assistant", "content": "which one?"}],
            "tools": ["mail", "maps"],
            "attachment": "a.pdf",
        }
    )
    assert compose("the first", context) == "the first [SEP] u: hi a: which one? [SEP] file: a.pdf"


def test_the_last_turns_count_and_a_long_history_never_crowds_out_the_query() -> None:
    context = parse_context({"history": [f"turn {i} " + "x" * 5000 for i in range(50)], "tools": ["t" * 500] * 50})
    composed = compose("q" * 3000, context)
    assert composed.startswith("q" * 500)
    assert "turn 49" in composed
    assert "turn 45" not in composed
    assert len(composed) < 2500


@given(st.text(max_size=300), st.integers(3, 200))
def test_shortening_keeps_both_ends(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert len(short) <= limit + 3
    assert short[: limit // 2] == text[: limit // 2]
    assert len(text) > limit or short == text
    assert text.endswith(short[-(limit // 3) :]) or not text


def test_texts_up_to_the_limit_are_whole() -> None:
    assert compose("a" * MAX_QUERY_CHARS, EMPTY_CONTEXT) == "a" * MAX_QUERY_CHARS


def test_surface_features_by_hand() -> None:
    values = _named("If it rains, mail Dana 2 files!")
    assert values["log_chars"] == pytest.approx(log1p(31))
    assert values["log_words"] == pytest.approx(log1p(7))
    assert (values["commas"], values["numbers"], values["exclamation"], values["question_mark"]) == (1, 1, 1, 0)
    assert values["digits_share"] == pytest.approx(1 / 31)
    assert values["upper_share"] == pytest.approx(2 / 31)
    assert (values["cue_condition"], values["cue_reference"]) == (1, 1)
    assert values["share_condition"] == pytest.approx(1 / 7)
    assert values["domains"] == 2  # mail, files
    assert (values["reference_without_history"], values["reference_and_history"]) == (1, 0)


def test_context_features_by_hand() -> None:
    values = _named(
        "it", {"history": ["user: a", "assistant: b?"], "attachment": "x.png", "n_tools": 3, "prompt_tokens": 99}
    )
    assert (values["has_history"], values["last_is_question"], values["user_turns"]) == (1, 1, 1)
    assert values["log_turns"] == pytest.approx(log1p(2))
    assert values["log_history_chars"] == pytest.approx(log1p(3))
    assert (values["has_attachment"], values["attachment_image"], values["attachment_audio"]) == (1, 1, 0)
    assert values["log_tools"] == pytest.approx(log1p(3))
    assert values["log_prompt_tokens"] == pytest.approx(log1p(99))
    assert (values["reference_and_history"], values["short_with_history"], values["short_without_history"]) == (1, 1, 0)


@given(st.text(max_size=200))
def test_an_empty_context_and_none_are_the_same(text: str) -> None:
    empty = surface_features(text, EMPTY_CONTEXT)
    assert empty == surface_features(text, parse_context({"session_id": "s"}))


def test_no_word_stands_in_one_list_twice() -> None:
    for words in (*CUES.values(), *DOMAINS.values()):
        assert words == words.lower()
        assert len(words.split()) == len(set(words.split()))


class _Planar:
    """Three-dimensional vectors chosen by the first letter of a text; counts what it embeds."""

    name, dim = "planar", 3
    _VECTORS = {"a": (1, 0, 0), "b": (0, 1, 0), "c": (0.6, 0.8, 0)}  # noqa: RUF012

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Any) -> Any:
        self.seen += texts
        return np.array([self._VECTORS.get(text[:1], (0, 0, 1)) for text in texts], np.float32)


def test_tool_features_by_hand() -> None:
    tools = [
        Tool("apple", "x" * 9, n_parameters=4, n_required=2, schema_chars=50),
        Tool("banana", "", 2, 1, 49),
        Tool("cherry"),
    ]
    values = dict(zip(TOOL_NAMES, ToolFeatures(_Planar())("", tools, np.array([1, 0, 0], np.float32)), strict=True))
    assert values["tool_schema_log_chars"] == pytest.approx(log1p(99))
    assert (values["tool_mean_parameters"], values["tool_required"], values["tool_max_parameters"]) == (2, 3, 4)
    assert values["tool_log_description"] == pytest.approx(log1p(9))
    assert values["tool_similarity_max"] == pytest.approx(1)
    assert values["tool_similarity_gap"] == pytest.approx(0.4)
    assert values["tool_similarity_min"] == pytest.approx(0)
    assert values["tool_similarity_mean"] == pytest.approx(1.6 / 3)


def test_tool_vectors_are_kept_and_bounded() -> None:
    encoder = _Planar()
    features = ToolFeatures(encoder, capacity=2)
    query = np.array([1, 0, 0], np.float32)
    for _ in range(3):
        features("", [Tool("apple"), Tool("apple")], query)
    assert len(encoder.seen) == 1
    features("", [Tool("b1"), Tool("b2"), Tool("b3")], query)
    assert len(features._vectors) == 2
    assert features("", (), query) == [0.0] * len(TOOL_NAMES)


def test_one_row_of_features_per_query() -> None:
    features = Extractor(_Planar()).extract(["apple", "banana"], [EMPTY_CONTEXT, parse_context({"tools": ["apple"]})])
    assert features.embedding.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert features.table.shape == (2, len(TABLE_NAMES))
    assert features.table.dtype == np.float32
    assert not features.table[0, -len(TOOL_NAMES) :].any()
    assert features.rows(np.array([1])).embedding.tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError):
        Extractor(_Planar()).extract(["a"], [])
