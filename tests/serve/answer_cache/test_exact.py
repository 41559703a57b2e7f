"""The exact cache, held against a plain reference."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router_ml.errors import SettingsError
from router_ml.serve.answer_cache.exact import ExactCache
from router_ml.serve.answer_cache.key import cache_key, deterministic, user_scope

ENTRIES, BYTES, TTL_S = 4, 100, 10.0
HELLO = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Hello"}]


class CacheMachine(RuleBasedStateMachine):
    """Random use against an ordered dictionary that does the same by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.cache: ExactCache[int] = ExactCache(ENTRIES, BYTES, TTL_S, lambda: self.now_s)
        self.model: OrderedDict[str, tuple[float, int, int]] = OrderedDict()
        self.hits = self.asked = 0

    @rule(key=st.sampled_from("abcdef"), value=st.integers(), size=st.integers(1, 120))
    def put(self, key: str, value: int, size: int) -> None:
        self.cache.put(key, value, size)
        if size > BYTES:
            return
        self.expire()
        self.model.pop(key, None)
        self.model[key] = (self.now_s, size, value)
        while len(self.model) > ENTRIES or sum(s for _, s, _ in self.model.values()) > BYTES:
            self.model.popitem(last=False)

    @rule(key=st.sampled_from("abcdef"))
    def get(self, key: str) -> None:
        self.expire()
        entry = self.model.get(key)
        if entry is not None:
            self.model.move_to_end(key)
        self.asked += 1
        self.hits += entry is not None
        assert self.cache.get(key) == (entry[2] if entry else None)

    def expire(self) -> None:
        """What is too old leaves before anything else does."""
        for key in [key for key, (put_s, _, _) in self.model.items() if self.now_s - put_s >= TTL_S]:
            del self.model[key]

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def bounded_and_counted(self) -> None:
        self.expire()
        stats = self.cache.stats
        assert stats.entries == len(self.model) <= ENTRIES
        assert stats.size_bytes == sum(size for _, size, _ in self.model.values()) <= BYTES
        assert stats.hit_rate == (self.hits / self.asked if self.asked else 0.0)


CacheMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestCacheMachine = CacheMachine.TestCase


def _key(**changes: object) -> str:
    parts = {"scope": "dana", "messages": HELLO, "tools": [], "options": {"temperature": 0}, "form": {}, "policy": "p"}
    return cache_key(**{**parts, **changes}).whole  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"scope": "eve"},
        {"messages": [{"role": "system", "content": "be long"}, HELLO[1]]},
        {"messages": [HELLO[0], {"role": "user", "content": "hello"}]},
        {"messages": [*HELLO, {"role": "assistant", "content": "hi"}]},
        {"tools": [{"name": "get_weather"}]},
        {"options": {"temperature": 0, "num_predict": 5}},
        {"form": {"format": "json"}},
        {"policy": "fast"},
    ],
    ids=str,
)
def test_whatever_may_change_the_answer_changes_the_key(changes: dict[str, object]) -> None:
    assert _key(**changes) != _key()


def test_the_order_of_keys_does_not_matter() -> None:
    assert _key(options={"a": 1, "temperature": 0}) == _key(options={"temperature": 0, "a": 1})


def test_text_cannot_pass_for_structure() -> None:
    one = _key(messages=[{"role": "user", "content": 'a","b'}])
    assert one != _key(messages=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])


@pytest.mark.parametrize(
    ("options", "expected"),
    [(None, False), ({}, False), ({"temperature": 0.2}, False), ({"temperature": 0}, True), ({"seed": 7}, True)],
)
def test_only_fixed_sampling_is_deterministic(options: dict[str, object] | None, expected: bool) -> None:
    assert deterministic(options) is expected


def test_bounds_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError):
        ExactCache(max_entries=0)


def test_users_and_sessions_of_one_id_are_different_people() -> None:
    ids = [(7, None), ("7", None), (None, "7"), (0, "7"), (True, "7")]
    scopes = [user_scope(user, session) for user, session in ids]
    assert len({*scopes}) == len(scopes)
    assert user_scope(7, "a") == user_scope(7, "b") == user_scope(np.int64(7), None)
    assert user_scope(object(), "a") is user_scope("", None) is user_scope(None, None) is None
