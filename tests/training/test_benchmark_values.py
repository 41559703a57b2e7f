"""Which arguments count as the expected ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import InputError
from training.measuring.argument_values import agrees, check_pattern, matching

SAME = [
    (5, "5"), (5, 5.0), (250.0, "250"), (1284.5, "1,284.50"), (22.5, "22.5"),
    (True, "true"), (False, "off"), (True, 1),
    ("Paris", " paris "), ("Sick today", "sick  today."), ("March", "'March'"), ("Dana", ["Dana"]),
    ("2026-03-12T15:00", "2026-03-12T15:00:00"), ("2026-03-12T15:00", "2026-03-12 15:00"), ("06:30", "06:30:00"),
    ("2026-03-10", "2026-03-10T00:00"),
    (["Dana", "Luis"], ["luis", "Dana"]), (["Dana"], "Dana"), (["a", "b"], "a, b"), (["a", "b"], '["b", "a"]'),
    ({"lat": 1}, {"lat": "1", "label": None}), ({"lat": 1}, '{"lat": 1}'),
    (None, ""), (None, []),
    ({"$any": ["ja", "Japanese"]}, "japanese"), ({"$contains": "milk"}, "Oat milk, 1 l"),
    ({"$contains": ["a", "b"]}, "b and A"), ({"$regex": "^x+$"}, "XX"), ({"$present": True}, 0),
    ([{"$contains": "egg"}, {"$contains": "bread"}], ["rye bread", "6 eggs"]),
]  # fmt: skip
DIFFERENT = [
    (5, "6"), (5, True), (5, "five"), (5, None), (True, "maybe"), (True, 0),
    ("Paris", "Paris, Texas"), ("Paris", None), ("Paris", {"city": "Paris"}), ("06:30", "18:30"),
    ("2026-03-12T15:00", "2026-03-12T15:00:00Z"), ("2026-03-12", "2026-03-13"),
    (["Dana", "Luis"], ["Dana"]), (["Dana"], ["Dana", "Luis"]), (["Dana", "Dana"], ["Dana", "Luis"]),
    ({"lat": 1}, {"lat": 1, "lon": 2}), ({"lat": 1}, "1"), (None, 0), (None, "x"),
    ({"$any": ["a"]}, "b"), ({"$contains": ["a", "b"]}, "a"), ({"$regex": "^x$"}, "xx"), ({"$present": True}, ""),
    ({"$present": False}, "x"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "given"), SAME)
def test_means_the_same(expected: object, given: object) -> None:
    assert agrees(expected, given)


@pytest.mark.parametrize(("expected", "given"), DIFFERENT)
def test_means_something_else(expected: object, given: object) -> None:
    assert not agrees(expected, given)


plain = st.recursive(
    st.booleans() | st.integers(-(10**6), 10**6) | st.floats(-1e6, 1e6) | st.text("abcXYZ 0123", min_size=1),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4)
        | st.dictionaries(st.text("abc", min_size=1), inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
def test_a_value_agrees_with_itself_and_with_its_json(value: object) -> None:
    assert agrees(value, value)
    if isinstance(value, list | dict):
        assert agrees(value, json.dumps(value))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.randoms())
def test_lists_agree_in_any_order_and_with_no_item_more(values: list[int], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert agrees(values, shuffled)
    assert not agrees(values, [*shuffled, shuffled[0]])


@given(st.lists(st.sets(st.integers(0, 4)), max_size=5))
def test_matching_is_as_large_as_any(edges: list[set[int]]) -> None:
    right = list(range(5))
    found = matching(edges, right, lambda wanted, item: item in wanted)
    assert all(j in edges[i] for j, i in found.items())
    assert len(found) == _largest(edges, frozenset())


def _largest(edges: list[set[int]], used: frozenset[int]) -> int:
    """By trying everything."""
    if not edges:
        return 0
    without = _largest(edges[1:], used)
    return max([without, *(1 + _largest(edges[1:], used | {j}) for j in edges[0] - used)])


@pytest.mark.parametrize(
    "pattern", [{"$regex": "("}, {"$any": []}, {"$like": "x"}, [{"$regex": 3}], {"a": {"$any": 1}}]
)
def test_a_pattern_that_cannot_match_is_refused(pattern: object) -> None:
    with pytest.raises(InputError):
        check_pattern(pattern)
