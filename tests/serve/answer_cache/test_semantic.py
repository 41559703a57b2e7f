"""Near matches: what the guard lets through, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from router_ml.serve.answer_cache.guard import near_miss
from router_ml.serve.answer_cache.key import CacheKey
from router_ml.serve.answer_cache.semantic import SemanticCache

# Pairs that sentence encoders put close together and whose answers differ.
NEAR_MISSES = [
    ("What is 2+2?", "What is 2+3?"),
    ("What is 2+2?", "What is 2-2?"),
    ("remind me at 7:30", "remind me at 17:30"),
    ("transfer 100 euros to Dana", "transfer 1000 euros to Dana"),
    ("mail Dana the agenda", "mail Dina the agenda"),
    ("weather in paris", "weather in berlin"),
    ("flights from Paris to Rome", "flights from Rome to Paris"),
    ("turn the lights on", "turn the lights off"),
    ("can I eat this", "can't I eat this"),
    ("is it safe", "is it not safe"),
    ("meetings with Bob", "meetings without Bob"),
    ("show the first result", "show the last result"),
    ("delete notes.txt", "delete notes.md"),
    ('say "yes"', 'say "no"'),
    ("write to a@b.org", "write to c@b.org"),
    ("is x > y", "is x < y"),
    ("move it to US", "move it to us"),
    ("book for Monday", "book for Tuesday"),
    ("who likes whom: Ann likes Bo", "who likes whom: Bo likes Ann"),
    ("open /etc/hosts", "open /etc/passwd"),
    ("increase the volume", "decrease the volume"),
    ("translate to German", "translate to French"),
]
SAME = [
    ("What's the capital of France?", "what is the capital of France"),
    ("Tell me the capital of France, please.", "the capital of France"),
    ("Could you show me my meetings on Monday?", "show my meetings on Monday"),
    ("Hi, turn the lights on!", "Please turn lights on"),
]


@pytest.mark.parametrize(("one", "other"), NEAR_MISSES)
def test_texts_with_other_answers_are_kept_apart(one: str, other: str) -> None:
    assert near_miss(one, other) is not None
    assert near_miss(other, one) is not None


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_question_in_other_clothes_passes(one: str, other: str) -> None:
    assert near_miss(one, other) is None


def _embed(text: str) -> np.ndarray:
    """Everything is close to everything, as the worst encoder has it."""
    return np.array([1.0, 0.001 * len(text)], dtype=np.float32)


def _key(text: str, setting: str = "s") -> CacheKey:
    return CacheKey(f"{setting}/{text}", setting, text)


def test_the_guard_stands_even_where_the_encoder_sees_no_difference() -> None:
    cache: SemanticCache[str] = SemanticCache(_embed)
    cache.put(_key("What is 2+2?"), "4")
    assert cache.get(_key("What is 2+3?")) is None
    assert cache.get(_key("what is 2+2")) == "4"


def test_settings_are_never_mixed() -> None:
    cache: SemanticCache[str] = SemanticCache(_embed)
    cache.put(_key("Hello"), "hi Dana")
    assert cache.get(_key("hello", setting="eve")) is None


def test_a_low_cosine_is_no_match() -> None:
    vectors = {"Hello": [1.0, 0.0], "hello": [0.9, 0.44]}
    cache: SemanticCache[str] = SemanticCache(lambda text: np.array(vectors[text], dtype=np.float32), threshold=0.95)
    cache.put(_key("Hello"), "hi")
    assert cache.get(_key("hello")) is None


def test_answers_grow_old_and_are_bounded() -> None:
    now = [0.0]
    cache: SemanticCache[str] = SemanticCache(_embed, max_texts=2, ttl_s=10.0, clock=lambda: now[0])
    for text in ("one cat", "two dogs", "three birds"):
        cache.put(_key(text), text)
    assert cache.get(_key("one cat")) is None
    assert cache.get(_key("three birds")) == "three birds"
    now[0] = 11.0
    assert cache.get(_key("three birds")) is None
