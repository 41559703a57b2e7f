"""The anthropic client against the server: messages, streams, tools, thinking and errors."""

from __future__ import annotations

import base64

import anthropic
import pytest

from tests.http.conftest import Running
from tests.http.test_ollama_client import HELLO, PIXEL, WEATHER
from tests.ollama_double import Fault, OllamaDouble
from tests.serve.conftest import MODELS

TOOL = {"name": "get_weather", "description": "weather", "input_schema": WEATHER["function"]["parameters"]}


@pytest.fixture
def client(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def test_a_message(client: anthropic.Anthropic, double: OllamaDouble) -> None:
    answer = client.messages.create(
        model="auto", max_tokens=50, system="be brief", messages=HELLO, extra_body={"top_k": 3}
    )
    assert answer.content[0].text == "The llama says hello."
    assert (answer.stop_reason, answer.usage.output_tokens, answer.model) == ("end_turn", 6, MODELS[0])
    sent = double.generations[-1].body
    assert sent["options"] == {"top_k": 3, "num_predict": 50}
    assert [m["role"] for m in sent["messages"]] == ["system", "user"]


def test_a_cut_message_says_so(client: anthropic.Anthropic) -> None:
    assert client.messages.create(model="auto", max_tokens=2, messages=HELLO).stop_reason == "max_tokens"


def test_the_beta_query_does_not_matter(client: anthropic.Anthropic) -> None:
    answer = client.beta.messages.create(model="auto", max_tokens=50, messages=HELLO)
    assert answer.content[0].text == "The llama says hello."


def test_a_streamed_message_adds_up(client: anthropic.Anthropic) -> None:
    with client.messages.stream(model="auto", max_tokens=50, messages=HELLO) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
        final = stream.get_final_message()
    assert final.content[0].text == "The llama says hello."
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 6)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_used_and_its_result_goes_back(
    client: anthropic.Anthropic, double: OllamaDouble, stream: bool
) -> None:
    if stream:
        with client.messages.stream(model="auto", max_tokens=50, messages=HELLO, tools=[TOOL]) as running:
            answer = running.get_final_message()
    else:
        answer = client.messages.create(model="auto", max_tokens=50, messages=HELLO, tools=[TOOL])
    use = answer.content[-1]
    assert (answer.stop_reason, use.name, use.input) == ("tool_use", "get_weather", {"city": "Paris"})
    asked = {"role": "assistant", "content": [{"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}]}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "18 degrees"}]}
    client.messages.create(model="auto", max_tokens=50, messages=[*HELLO, asked, {"role": "user", "content": [result]}])
    sent = double.generations[-1].body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool"]
    assert (sent[2]["content"], sent[2]["tool_name"]) == ("18 degrees", "get_weather")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_is_a_block_of_its_own(client: anthropic.Anthropic, server: Running, stream: bool) -> None:
    server.service.decider.models = (MODELS[2], *MODELS[:2])  # type: ignore[attr-defined]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    asked = {"model": "auto", "max_tokens": 2048, "messages": HELLO, "thinking": thinking}
    if stream:
        with client.messages.stream(**asked) as running:
            answer = running.get_final_message()
    else:
        answer = client.messages.create(**asked)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert answer.content[0].thinking == "Let me think.\n"


def test_an_image(client: anthropic.Anthropic, double: OllamaDouble) -> None:
    data = base64.b64encode(PIXEL).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "what is it?"}]
    client.messages.create(model="auto", max_tokens=50, messages=[{"role": "user", "content": blocks}])
    sent = double.generations[-1].body["messages"][0]
    assert (sent["content"], sent["images"]) == ("what is it?", [data])


def test_errors_have_their_own_classes(client: anthropic.Anthropic, double: OllamaDouble) -> None:
    with pytest.raises(anthropic.NotFoundError, match="auto:slow"):
        client.messages.create(model="auto:slow", max_tokens=50, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.messages.create(model="auto", max_tokens=50, messages=[])
    assert raised.value.body["error"]["type"] == "invalid_request_error"
    double.faults.set("*", Fault.ERROR_500)
    with pytest.raises(anthropic.InternalServerError):
        client.messages.create(model="auto", max_tokens=50, messages=HELLO)


def test_tokens_are_estimated(client: anthropic.Anthropic) -> None:
    few = client.messages.count_tokens(model="auto", messages=HELLO).input_tokens
    many = client.messages.count_tokens(model="auto", messages=[{"role": "user", "content": "word " * 1000}])
    assert 0 < few < 20
    assert 1000 < many.input_tokens < 1500
