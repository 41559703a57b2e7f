"""What a request asks of its tools, counted by hand."""

from __future__ import annotations

import tracemalloc
from math import log1p
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.context import parse_context
from router_ml.decide.features.toolbox import TOOLBOX_NAMES, toolbox_features
from router_ml.types import Parameter, Tool

AREA = {
    "name": "geometry.triangleArea",
    "description": "Calculate the area of a triangle.",
    "parameters": {
        "type": "object",
        "properties": {
            "base": {"type": "integer", "description": "The base."},
            "height": {"type": ["null", "number"]},
            "unit": {"type": "string", "enum": ["cm", "m"], "default": "cm"},
        },
        "required": ["base", "height"],
    },
}
MAIL = {
    "name": "send_mail",
    "description": "Send a message",
    "parameters": {
        "type": "object",
        "properties": {
            "to": {"type": "array", "items": {"type": "object", "properties": {"address": {"type": "string"}}}},
            "body": {"type": "HashMap", "properties": {"text": {"type": "string"}}},
        },
        "required": ["to"],
    },
}


def _features(text: str, *tools: dict[str, Any]) -> dict[str, float]:
    offered = parse_context({"tools": list(tools)}).tools
    return dict(zip(TOOLBOX_NAMES, toolbox_features(text, offered), strict=True))


def test_the_kinds_of_parameters_are_counted_nested_ones_too() -> None:
    values = _features("", MAIL)
    assert values["tool_share_list"] == pytest.approx(1 / 4)
    assert values["tool_share_text"] == pytest.approx(2 / 4)
    assert values["tool_share_other"] == pytest.approx(1 / 4)
    assert values["tool_log_text"] == pytest.approx(log1p(2))
    assert (values["tool_depth"], values["tool_optional"], values["tool_lists_required"]) == (2, 3, 1)


def test_a_type_that_may_be_null_is_the_other_type() -> None:
    values = _features("", AREA)
    assert values["tool_share_number"] == pytest.approx(2 / 3)
    assert values["tool_log_choices"] == values["tool_log_defaults"] == pytest.approx(log1p(1))
    assert (values["tool_share_dotted"], values["tool_share_camel"]) == (1, 1)


def test_words_shared_with_the_tools_are_found_across_spellings() -> None:
    # of the request's words "triangle", "areas" and "base" all are the tool's; "geometry" is not the request's
    values = _features("areas of the triangle with base 3", AREA)
    assert values["tool_name_cover"] == pytest.approx(2 / 3)
    assert values["tool_parameter_cover"] == pytest.approx(1 / 3)
    assert values["request_cover"] == 1.0


def test_a_tool_that_does_not_fit_shares_nothing() -> None:
    values = _features("Who painted sunflowers?", AREA, MAIL)
    assert values["tool_name_cover"] == values["request_cover_all"] == 0.0
    assert values["request_questions"] == 1


def test_values_for_several_calls_outnumber_what_one_call_wants() -> None:
    one = _features("triangle area, base 3 and height 4", AREA)
    two = _features("triangle area for base 3 and height 4, then base 5 and height 6", AREA)
    assert one["request_numbers_over"] == pytest.approx(log1p(2) - log1p(2))
    assert two["request_numbers_over"] == pytest.approx(log1p(4) - log1p(2))
    assert (one["request_joiners"], two["request_joiners"]) == (1, 3)


def test_the_better_tool_stands_apart() -> None:
    values = _features("area of a triangle", AREA, MAIL)
    assert values["tool_matches"] == 1
    assert values["tool_match_gap"] > 1
    assert values["tool_name_cover_min"] == 0


_TEXT = st.text(max_size=40)
_PARAMETER = st.builds(Parameter, _TEXT, _TEXT, _TEXT, st.booleans(), st.integers(1, 4), st.booleans(), st.booleans())
_TOOL = st.builds(Tool, _TEXT, _TEXT, parameters=st.lists(_PARAMETER, max_size=4).map(tuple))


@given(_TEXT, st.lists(_TOOL, min_size=1, max_size=3))
def test_every_number_is_finite_and_small_whatever_is_offered(text: str, tools: list[Tool]) -> None:
    values = toolbox_features(text, tools)
    assert len(values) == len(TOOLBOX_NAMES)
    assert all(-12.0 < value < 20.0 for value in values)


def test_the_cache_of_tools_is_bounded_in_size() -> None:
    long = "area of the triangle " * 50_000
    tool = parse_context({"tools": [AREA | {"description": long}]}).tools[0]._replace(parameter_text=long)
    described = tuple(parameter._replace(description=long) for parameter in tool.parameters)
    tracemalloc.start()
    for number in range(20):
        toolbox_features("the area", [tool._replace(name=f"tool{number}", parameters=described)])
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20 * 30_000  # bytes; each tool has four texts of a megabyte


def test_a_long_tool_has_the_words_of_its_beginning() -> None:
    beginning = "Calculate the area of a triangle. " * 118  # 4,012 characters, of which 4,000 are read
    short, long = (
        _features("area of a triangle", AREA | {"description": beginning + end}) for end in ("", "zebra " * 9)
    )
    assert short == long
