"""Answers from the cache, as a caller of the gateway meets them."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benchmarks import zipf_replay
from router_ml.decide.selection.policy import Policy
from router_ml.events.event import OutcomeEvent
from router_ml.serve.answer_cache.exact import ExactCache
from router_ml.serve.answer_cache.semantic import SemanticCache
from tests.ollama_double import DoubleModel
from tests.timing import until

HELLO = [{"role": "user", "content": "Hello"}]
COLD = {"temperature": 0}
DANA, EVE = {"user_id": "dana"}, {"user_id": "eve"}
LLAMA = "llama3.2:3b-instruct"


@pytest.fixture
def cached(gateway_of):
    return gateway_of(cache=ExactCache())


def test_the_second_time_no_model_is_called(cached, double, recording) -> None:
    first, second = (cached.chat(HELLO, options=COLD, context=DANA) for _ in range(2))
    assert (first.cached, second.cached) == (False, True)
    assert second.content == first.content
    assert len(double.generations) == 1
    assert second.decision.decision_id != first.decision.decision_id
    assert [event.cache_hit for event in recording.of(OutcomeEvent)] == [False, True]
    assert cached.cache_stats.hit_rate == 0.5


def one(a: int) -> str:
    """Do it."""
    return str(a)


def two(b: str, c: str) -> str:
    """Do it."""
    return b + c


two.__name__ = "one"
ONE, TWO = (Policy("mine", models=models) for models in ((LLAMA,), ("qwen2.5:3b-instruct",)))
IMAGES = [[{"role": "user", "content": "look", "images": [data]}] for data in (b"one", b"two")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"context": DANA}, {"context": EVE}),
        ({"context": {"user_id": 7}}, {"context": {"session_id": 7}}),
        ({"context": {"user_id": 7}}, {"context": {"user_id": 0, "session_id": 7}}),
        ({"context": DANA}, {"context": DANA, "policy": "fast"}),
        ({"context": DANA, "policy": ONE}, {"context": DANA, "policy": TWO}),
        ({"context": DANA}, {"context": DANA, "format": "json"}),
        ({"context": DANA}, {"context": DANA, "model": "qwen2.5:3b-instruct"}),
        ({"context": DANA, "tools": [one]}, {"context": DANA, "tools": [two]}),
        ({"context": DANA, "messages": IMAGES[0]}, {"context": DANA, "messages": IMAGES[1]}),
    ],
    ids=str,
)
def test_other_people_and_other_settings_get_their_own(cached, double, one, other) -> None:
    cached.chat(**{"messages": HELLO, "options": COLD, **one})
    assert not cached.chat(**{"messages": HELLO, "options": COLD, **other}).cached
    assert len(double.generations) == 2


def test_a_file_that_changed_is_asked_about_anew(cached, double, tmp_path) -> None:
    policy, photo = tmp_path / "p.toml", tmp_path / "photo.png"
    for models, data in ((LLAMA, b"one"), ("qwen2.5:3b-instruct", b"two")):
        policy.write_text(f'models = ["{models}"]')
        photo.write_bytes(data)
        turn = [{"role": "user", "content": "look", "images": [photo]}]
        assert not cached.chat(turn, options=COLD, context=DANA).cached
        assert not cached.chat(HELLO, options=COLD, context=DANA, policy=str(policy)).cached
        time.sleep(0.02)


def test_an_answer_that_cannot_be_cached_reaches_the_caller(cached, monkeypatch) -> None:
    for name in ("get", "put"):
        monkeypatch.setattr(ExactCache, name, lambda *_: 1 / 0)
        assert cached.chat(HELLO, options=COLD, context=DANA).content == "The llama says hello."


@pytest.mark.parametrize(
    "more", [{"options": {}, "context": DANA}, {"options": {"temperature": 0.7}, "context": DANA}, {"options": COLD}]
)
def test_what_may_differ_or_belongs_to_nobody_is_not_cached(cached, double, more) -> None:
    for _ in range(2):
        assert not cached.chat(HELLO, **more).cached


def test_an_answer_cut_short_is_not_cached(cached) -> None:
    for _ in range(2):
        assert not cached.chat(HELLO, options={**COLD, "num_predict": 2}, context=DANA).cached


def test_a_caller_cannot_change_what_others_get(cached) -> None:
    cached.chat(HELLO, options=COLD, context=DANA)
    cached.chat(HELLO, options=COLD, context=DANA).response.message.content = "changed"
    assert cached.chat(HELLO, options=COLD, context=DANA).content == "The llama says hello."


def test_the_first_caller_cannot_change_it_either(cached) -> None:
    cached.chat(HELLO, options=COLD, context=DANA).response.message.content = "changed"
    assert cached.chat(HELLO, options=COLD, context=DANA).content == "The llama says hello."


def test_a_stream_is_served_from_the_cache_as_one_part(cached, double) -> None:
    whole = cached.chat(HELLO, options=COLD, context=DANA)
    stream = cached.chat(HELLO, options=COLD, context=DANA, stream=True)
    assert [part.message.content for part in stream] == [whole.content]
    assert stream.answer.cached
    assert len(double.generations) == 1


def test_a_near_match_is_served_only_past_the_guard(gateway_of, double) -> None:
    semantic = SemanticCache(lambda text: np.array([1.0, 0.0], dtype=np.float32))
    gateway = gateway_of(semantic_cache=semantic)
    double.models[LLAMA] = DoubleModel(LLAMA, reply=lambda body: "about " + body["messages"][-1]["content"])
    gateway.chat("What is the capital of France?", options=COLD, context=DANA)
    until(lambda: semantic._settings)
    near = gateway.chat("what's the capital of France", options=COLD, context=DANA)
    assert (near.cached, near.content) == (True, "about What is the capital of France?")
    assert not gateway.chat("what's the capital of Spain", options=COLD, context=DANA).cached


def test_eighty_percent_of_a_zipf_replay_come_from_the_cache() -> None:
    rate, possible, generations = zipf_replay.replay(1500, distinct=100)
    assert rate == pytest.approx(possible)  # nothing repeated was ever asked again
    assert rate > 0.8
    assert generations == round(1500 * (1 - possible))
