"""One request, fitted to the model that was chosen."""

from __future__ import annotations

import itertools
from typing import Any

import ollama
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.errors import QueryError
from router_ml.hosts.names import ModelNames
from router_ml.serve.request import OptionPins, adapt, build_request

CATALOGUE = load_catalogue()
HELLO = ({"role": "user", "content": "Hello"},)
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def _adapt(
    model: str, capabilities: frozenset[str] | None = None, **form: object
) -> tuple[dict[str, object], tuple[str, ...]]:
    return adapt(build_request(HELLO, **form), CATALOGUE[model], capabilities, OptionPins(), model)


def test_thinking_is_asked_only_of_models_that_think() -> None:
    assert _adapt("qwen3:8b", think=True) == ({"messages": list(HELLO), "think": True}, ())
    assert _adapt("qwen2.5:3b-instruct", think=True) == ({"messages": list(HELLO)}, ("think",))


def test_switching_thinking_off_is_passed_on() -> None:
    arguments, changed = _adapt("qwen2.5:3b-instruct", think=False)
    assert arguments["think"] is False
    assert changed == ()


def test_the_servers_word_on_capabilities_counts_more_than_the_catalogues() -> None:
    capabilities = frozenset({"completion", "thinking"})  # as recorded in tags.json
    arguments, changed = _adapt("qwen3:8b", capabilities, tools=[TOOL])
    assert "tools" not in arguments
    assert changed == ("tools",)


def test_a_window_is_raised_and_never_lowered() -> None:
    pins = OptionPins()
    sent = []
    for size, temperature in ((4096, 0.1), (2048, 0.2), (8192, 0.3)):
        sent.append(pins.fit("m", {"num_ctx": size, "temperature": temperature}))
        pins.worked("m", sent[-1][0])
    assert [options["num_ctx"] for options, _ in sent] == [4096, 4096, 8192]
    assert [options["temperature"] for options, _ in sent] == [0.1, 0.2, 0.3]
    assert [imposed for _, imposed in sent] == [(), ("num_ctx",), ()]


def test_options_of_one_caller_never_reach_another() -> None:
    pins = OptionPins()
    pins.worked("m", {"num_ctx": 512, "num_gpu": 0, "num_thread": 1, "temperature": 1.0})
    assert pins.fit("m", {}) == ({}, ())
    assert pins.fit("m", {"num_gpu": 4}) == ({"num_gpu": 4}, ())
    assert pins.of("m") == {}


@pytest.mark.parametrize("value", ["huge", -1, 10**9, None])
def test_a_value_no_model_answered_with_harms_nobody_else(value: object) -> None:
    pins = OptionPins()
    pins.fit("m", {"num_ctx": value})
    assert pins.fit("m", {})[0] == {}
    pins.worked("m", {"num_ctx": 2048})
    pins.fit("m", {"num_ctx": value})
    assert pins.fit("m", {"num_ctx": 1024})[0] == {"num_ctx": 2048}


def test_what_was_imposed_is_reported() -> None:
    pins = OptionPins({"m": {"num_ctx": 4096, "temperature": 0.0}})
    options, changed = pins.fit("m", {"num_ctx": 32768, "temperature": 1.0})
    assert options == {"num_ctx": 4096, "temperature": 1.0}
    assert changed == ("num_ctx",)
    assert pins.fit("m", None) == ({"num_ctx": 4096, "temperature": 0.0}, ("num_ctx",))


def test_text_and_history_are_those_of_the_last_user_turn() -> None:
    request = build_request(
        (
            {"role": "system", "content": "be brief"},
            ollama.Message(role="user", content="find Dana"),
            {"role": "assistant", "content": "", "tool_calls": []},
            {"role": "user", "content": "and mail her"},
            {"role": "tool", "content": "{}"},
        )
    )
    assert request.text == "and mail her"
    assert len(request.conversation.history) == 3


@pytest.mark.parametrize("messages", [(), (5,), ({"content": "no role"},), 5, b"Hello"])
def test_what_no_model_could_take_is_refused(messages: tuple[object, ...]) -> None:
    with pytest.raises(QueryError):
        build_request(messages)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("llama3.2:latest", "llama3.2:3b-instruct"),
        ("LLAMA3.2:3B", "llama3.2:3b-instruct"),
        ("llama3.2:3b-instruct-q4_K_M", "llama3.2:3b-instruct"),
        ("registry.ollama.ai/library/qwen3:8b", "qwen3:8b"),
        ("qwen3", "qwen3:8b"),
        ("mistral:latest", "mistral"),
    ],
)
def test_names_are_normalised_against_aliases_and_tags(spelling: str, name: str) -> None:
    assert ModelNames(CATALOGUE).canonical(spelling) == name


@pytest.mark.parametrize(
    ("messages", "tools", "names"),
    [
        (({"role": "user", "content": 5},), (), "content"),
        (({"role": "user", "content": "hi"},), ("x",), "tool"),
        (({"role": "user", "content": "hi"},), ({"type": "function", "function": "f"},), "function"),
    ],
)
def test_what_the_client_would_refuse_is_reported_to_the_caller(messages: tuple, tools: tuple, names: str) -> None:
    with pytest.raises(QueryError, match=names):
        build_request(messages, tools)


def test_a_quotation_of_the_request_is_recognised() -> None:
    turns = [{"role": "user", "content": "mail the secret plan to Dana"}]
    request = build_request(turns, [{"name": "send_secret_mail"}])
    for message in ("oops: mail the secret plan to Dana", "near 'the secret plan'", "no parser for send_secret_mail"):
        assert request.is_quoted_in(message)
    assert not request.is_quoted_in('option "temperature" must be of type float32')
    assert build_request("1234").is_quoted_in("bad input: 1234")
    assert not build_request("hi").is_quoted_in("nothing of this")


@pytest.mark.parametrize("place", ["messages", "tools", "images", "tool_calls"])
def test_an_iterator_without_end_is_refused(place: str) -> None:
    endless: Any = itertools.repeat("x")
    turn = {"role": "user", "content": "x"}
    given = {place: endless} if place in ("messages", "tools") else {"messages": [turn | {place: endless}]}
    with pytest.raises(QueryError, match="more than"):
        build_request(**{"messages": [turn], **given})
