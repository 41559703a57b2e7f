"""What a query may be: anything that is text, answered quickly; nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.arm import arm_key
from router_ml.decide.api import select_model
from router_ml.decide.features.surface import NAMES, surface_features
from router_ml.decide.router import Router
from router_ml.errors import InputError, QueryError
from router_ml.messages import read_messages
from router_ml.types import LABELS, Context, Decision, Tool, Turn


@pytest.fixture(scope="module")
def router(tiny_bundle: Path) -> Router:
    return Router.load(tiny_bundle)


def _sound(decision: Decision) -> None:
    assert sum(decision.complexity_probabilities.values()) == pytest.approx(1.0, abs=1e-5)
    assert (
        max(decision.complexity_probabilities, key=decision.complexity_probabilities.__getitem__) == decision.complexity
    )
    assert decision.model == decision.ranked[0].model == str(decision)
    assert not decision.degraded
    json.dumps(decision.as_dict(), allow_nan=False)


NOTHING = [
    "",
    " ",
    "\n\t \r\n",
    "\x00",
    "\x00 \x00",
    "\ufeff",
    " \ufeff\x00 ",
    "\u200b",
    "\u3000\u2028",
    "\u200e\u200f",
]


@pytest.mark.parametrize("query", NOTHING)
def test_a_query_that_says_nothing_is_ambiguous(router: Router, query: str) -> None:
    decision = router.decide(query)
    _sound(decision)
    assert decision.complexity == "ambiguous"
    assert decision.complexity_probabilities["ambiguous"] > 0.9
    assert router.decide(query, policy="fast").model


def test_an_attachment_alone_says_something(router: Router) -> None:
    assert router.decide("", {"attachment": "a.pdf"}).complexity_probabilities["ambiguous"] != pytest.approx(0.97)


ODD = {
    "binary": bytes(range(256)).decode("latin-1"),
    "inner NUL": "check\x00email",
    "lone high surrogate": "check \ud83d email",
    "lone low surrogate": "\udc00",
    "surrogates only": "\ud800" * 50,
    "emoji": "📧👀❓",
    "emoji family": "👨‍👩‍👧‍👦 dinner?",
    "right to left": "ما هو الطقس غدا؟",
    "mixed directions": "call \u202eשלום\u202c now",
    "combining": "z͑̓̐a̷͝lgo" * 30,
    "punctuation": "?!...;;;---",
    "one character": "x",
    "digits": "0" * 500,
    "html": "<script>alert(1)</script>",
    "special tokens": "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "one long word": "a" * 5000,
    "newlines": "a\n" * 3000,
    "chinese": "帮我查一下明天北京的天气",
    "private use": "\ue000\uf8ff",
    "beyond the plane": "𝒸𝒽𝑒𝒸𝓀 𝑒𝓂𝒶𝒾𝓁",
}


@pytest.mark.parametrize("name", ODD)
def test_any_text_gets_a_learned_decision(router: Router, name: str) -> None:
    _sound(router.decide(ODD[name]))


@pytest.mark.parametrize("name", ["binary", "lone high surrogate", "emoji", "right to left", "one long word"])
def test_odd_text_in_the_context_does_no_harm(router: Router, name: str) -> None:
    odd = ODD[name]
    context = {"history": [odd, {"role": odd, "content": odd}], "tools": [odd, {"name": odd, "description": odd}],
               "attachment": odd, "session_id": odd}  # fmt: skip
    _sound(router.decide("check email", context))


def test_one_odd_query_does_not_degrade_its_neighbours(router: Router) -> None:
    for decision in router.decide_many(["check email", "\ud800", ""], [None, {"history": ["\udfff"]}, None]):
        _sound(decision)


@pytest.mark.parametrize("query", [None, 5, b"check email", ["check email"], {"text": "x"}, 1.5, object()])
def test_what_is_no_text_is_a_query_error(router: Router, query: Any) -> None:
    with pytest.raises(QueryError, match="must be a string"):
        router.decide(query)
    with pytest.raises(InputError):
        router.decide_many(["fine", query])


def test_many_queries_are_a_list(router: Router) -> None:
    with pytest.raises(QueryError, match="list"):
        router.decide_many("check email")
    with pytest.raises(QueryError, match="2 queries but 1 contexts"):
        router.decide_many(["a", "b"], [None])
    assert router.decide_many([]) == []


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200_000,
        "x" * 1_000_000,
        "é" * 1_000_000,
        "\n" * 1_000_000,
        "?" * 1_000_000,
        "x" + " " * 1_000_000 + "x",
    ],
)
def test_a_megabyte_is_answered_at_once(router: Router, text: str) -> None:
    router.decide("warm up")
    started = time.process_time()
    router.decide(text)
    router.decide(
        "and this", {"history": [text] * 3, "attachment": text, "tools": [{"name": "t", "description": text}]}
    )
    assert time.process_time() - started < 0.5


def test_thousands_of_tools_and_turns_are_answered_at_once(router: Router) -> None:
    tools = [{"name": f"tool{i}", "description": "does a thing", "parameters": {}} for i in range(5000)]
    started = time.process_time()
    router.decide("use them", {"tools": tools, "history": ["hello"] * 5000})
    assert time.process_time() - started < 1.0


_TEXT = st.text(st.characters(), max_size=80)
_CONTEXT = st.builds(
    Context,
    tools=st.lists(st.tuples(_TEXT, _TEXT).map(lambda pair: Tool(*pair)), max_size=3).map(tuple),
    n_tools=st.integers(3, 10**9),
    history=st.lists(st.builds(Turn, _TEXT, _TEXT), max_size=3).map(tuple),
    attachment=_TEXT,
    attachment_kind=st.sampled_from(["", "image", "audio", "document"]),
    prompt_tokens=st.none() | st.integers(0, 10**9),
)


@given(_TEXT, _CONTEXT)
def test_features_are_finite_and_small_whatever_the_text(text: str, context: Context) -> None:
    values = surface_features(text, context)
    assert len(values) == len(NAMES)
    assert all(0.0 <= value < 40.0 for value in values)


@given(_TEXT, _CONTEXT)
def test_any_text_in_any_context_gets_a_learned_decision(router: Router, text: str, context: Context) -> None:
    decision = router.decide(text, context)
    _sound(decision)
    assert decision.complexity in LABELS
    assert sorted(arm_key(c.model, c.think) for c in decision.ranked) == sorted(a.key for a in router.arms) or (
        decision.excluded
    )


class _Hostile:
    """An object that refuses to be looked at, and does not end when it is iterated."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("no text")


class _HostileDict(dict[str, Any]):
    def get(self, *key: Any) -> Any:
        raise RuntimeError("no keys")

    items = get


def _self_referring() -> dict[str, Any]:
    part: dict[str, Any] = {}
    part["content"] = part
    return part


_UNREADABLE = {
    "refuses attributes": _Hostile,
    "refuses keys": lambda: _HostileDict(role="user", content="x"),
    "holds itself": _self_referring,
    "millions of parts": lambda: [{"type": "text", "text": "a"}] * 2_000_000,
    "an integer of thousands of digits": lambda: 10**5000,
}


@pytest.mark.parametrize("place", ["history", "turn", "content", "parts", "attachment", "session_id", "context"])
@pytest.mark.parametrize("kind", _UNREADABLE)
def test_what_cannot_be_read_is_left_out_or_refused_at_once(router: Router, place: str, kind: str) -> None:
    value = _UNREADABLE[kind]()
    message = {"role": "user", "content": value}
    requests: dict[str, tuple[Any, Any]] = {
        "history": ("x", {"history": [value]}),
        "turn": ([value], None),
        "content": ([message], None),
        "parts": ([{"role": "user", "content": [value]}], {"history": [message]}),
        "attachment": ("x", {"attachment": value}),
        "session_id": ("x", {"session_id": value}),
        "context": ("x", value),
    }
    began_s = time.thread_time()
    with contextlib.suppress(InputError):
        assert select_model(*requests[place], router=router).model
    assert time.thread_time() - began_s < 1.0


def test_messages_and_parts_without_end_are_refused() -> None:
    for endless in (itertools.repeat("x"), itertools.repeat({"role": "user", "content": "x"})):
        with pytest.raises(QueryError, match="more than 100,000 messages"):
            read_messages(endless)
    shared = [{"type": "text", "content": [{"type": "text", "text": "a"}] * 5000}] * 5000
    with pytest.raises(QueryError, match="more than 10,000 parts"):
        read_messages([{"role": "user", "content": shared}])
