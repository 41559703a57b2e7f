"""The cache of decisions: bounded, ageing, exact, and free to be changed by those who get its answers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.context import parse_context
from router_ml.decide.decision_cache import MAX_QUERY_CHARS, DecisionCache, decision_key, renewed
from router_ml.decide.selection.policy import PRESETS
from router_ml.types import LABELS, Candidate, Decision, Quantiles

BALANCED = PRESETS["balanced"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def decision(name: str = "m") -> Decision:
    return Decision(
        model=name,
        complexity="simple",
        complexity_probabilities=dict.fromkeys(LABELS, 0.25),
        ranked=(Candidate(name, 0.9, Quantiles(1.0, 2.0, 3.0), 0.0, 0.8),),
        action="answer",
        reason="r",
        decision_id="first",
        policy="balanced",
        bundle="b@1",
        propensity=0.7,
        variant="v",
        novelty=0.3,
        excluded={"other": "cannot call tools"},
        degraded=True,
    )


def key(query: object = "check email", context: Any = None, policy: Any = BALANCED, bundle: str = "b@1") -> Any:
    return decision_key(query, context, policy, bundle)


def test_an_entry_is_found_again_until_it_is_too_old() -> None:
    clock = Clock()
    cache = DecisionCache(10, ttl_s=300.0, clock=clock)
    cache.put(key(), decision())
    clock.now_s = 299.9
    assert cache.get(key()) == decision()
    clock.now_s = 300.0
    assert cache.get(key()) is None
    assert len(cache) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=60), st.integers(1, 4))
def test_the_least_recently_used_leaves_first(steps: list[tuple[bool, int]], size: int) -> None:
    cache, model = DecisionCache(size, clock=Clock()), OrderedDict[int, str]()
    for is_put, number in steps:
        if is_put:
            cache.put(number, decision(str(number)))
            model[number] = str(number)
            model.move_to_end(number)
            if len(model) > size:
                model.popitem(last=False)
        else:
            found = cache.get(number)
            assert (found.model if found else None) == model.get(number)
            if number in model:
                model.move_to_end(number)
    assert len(cache) == len(model) <= size


@pytest.mark.parametrize(
    "other",
    [
        {"query": "check email "},
        {"context": {"tools": ["calendar"]}},
        {"policy": PRESETS["fast"]},
        {"bundle": "b@2"},
    ],
)
def test_query_context_policy_and_bundle_all_tell_requests_apart(other: dict[str, Any]) -> None:
    assert key(**other) != key()


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), PLAIN, max_size=3), st.dictionaries(st.text(max_size=4), PLAIN, max_size=3))
def test_contexts_share_a_key_only_where_they_are_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    one.pop("session_id", None)
    other.pop("session_id", None)
    if key(context=one) == key(context=other):
        assert one == other
    assert key(context=one) == key(context={k: v for k, v in one.items()})  # noqa: C416 - another object


def test_long_contexts_are_told_apart_by_their_last_character() -> None:
    history = ["x" * 5000 + "a"]
    assert key(context={"history": history}) != key(context={"history": ["x" * 5000 + "b"]})
    assert key(context={"history": history}) == key(context={"history": ["x" * 5000 + "a"]})


def test_the_session_is_no_part_of_the_key() -> None:
    tools = {"tools": ["mail"]}
    assert key(context={**tools, "session_id": "1"}) == key(context={**tools, "session_id": "2"})
    parsed = [parse_context({**tools, "session_id": name}) for name in "12"]
    assert key(context=parsed[0]) == key(context=parsed[1]) is not None


def test_parsed_contexts_are_told_apart_by_everything_else() -> None:
    contexts = [
        {},
        {"tools": ["mail"]},
        {"n_tools": 1},
        {"history": ["hi"]},
        {"attachment": "a.png"},
        {"attachment": "a.pdf"},
        {"latency_budget_s": 2},
        {"prompt_tokens": 9},
    ]
    assert len({key(context=parse_context(context)) for context in contexts}) == len(contexts)


class Tool:
    """Equal in its name, not in its values."""


@pytest.mark.parametrize("context", [{"tools": [Tool()]}, "no context", 5])
def test_what_cannot_be_told_by_its_values_is_not_kept(context: Any) -> None:
    assert key(context=context) is None


def test_neither_are_very_long_queries_nor_what_is_no_text() -> None:
    assert key("x" * MAX_QUERY_CHARS) is not None
    assert key("x" * (MAX_QUERY_CHARS + 1)) is None
    assert key(5) is None


def test_a_renewed_decision_differs_in_its_id_alone_and_shares_nothing_that_changes() -> None:
    old = decision()
    new = renewed(old, "second")
    assert {k for k, v in old.as_dict().items() if new.as_dict()[k] != v} == {"decision_id"}
    assert new.decision_id == "second"
    new.complexity_probabilities.clear()  # type: ignore[attr-defined]
    new.excluded.clear()  # type: ignore[attr-defined]
    assert old == decision()


def test_a_cached_decision_keeps_every_field_but_its_id() -> None:
    decision = Decision(
        "m", "simple", {"simple": 1.0}, (), "answer", "why", "first", "p", "b", 0.5, "v", 0.25, {"x": "y"}, True,
        1.5, "code", "kept", "warm", "judge",
    )  # fmt: skip
    names = [field.name for field in fields(Decision)]
    usual = {field.name: field.default for field in fields(Decision)}
    assert not [name for name in names if getattr(decision, name) == usual[name]]  # none could pass unnoticed
    again = renewed(decision, "second")
    assert again.decision_id == "second"
    assert [name for name in names if getattr(again, name) != getattr(decision, name)] == ["decision_id"]
