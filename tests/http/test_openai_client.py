"""The openai client against the server: chat completions, responses, models and errors."""

from __future__ import annotations

import base64
import json

import openai
import pytest

from tests.http.conftest import Running
from tests.http.test_ollama_client import HELLO, PIXEL, WEATHER
from tests.ollama_double import Fault, OllamaDouble
from tests.serve.conftest import MODELS

FUNCTION = {"type": "function", "name": "get_weather", "parameters": WEATHER["function"]["parameters"]}


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_chat_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="auto", messages=HELLO)
    assert answer.choices[0].message.content == "The llama says hello."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.model == MODELS[0]


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_completion_and_its_usage(client: openai.OpenAI, usage: bool) -> None:
    chunks = list(
        client.chat.completions.create(
            model="auto", messages=HELLO, stream=True, stream_options={"include_usage": usage}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == "The llama says hello."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert (chunks[-1].usage is not None) == usage


def test_headers_come_with_streams_too(client: openai.OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(model="auto", messages=HELLO, stream=True) as answer:
        assert answer.headers["x-router-ml-model"] == MODELS[0]
        assert answer.headers["x-router-ml-decision-id"]
        assert answer.headers["x-router-ml-complexity"] == "simple"
        assert float(answer.headers["x-router-ml-p-success"]) == 0.9


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(client: openai.OpenAI, double: OllamaDouble, stream: bool) -> None:
    given = client.chat.completions.create(model="auto", messages=HELLO, tools=[WEATHER], stream=stream)
    if stream:
        deltas = [chunk.choices[0] for chunk in given if chunk.choices]
        call, finish = next(d.delta.tool_calls[0] for d in deltas if d.delta.tool_calls), deltas[-1].finish_reason
    else:
        call, finish = given.choices[0].message.tool_calls[0], given.choices[0].finish_reason
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert finish == "tool_calls"
    asked = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": {
        "name": "get_weather", "arguments": call.function.arguments}}]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
    client.chat.completions.create(model="auto", messages=[*HELLO, asked, result])
    sent = double.generations[-1].body["messages"]
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert (sent[2]["role"], sent[2]["content"], sent[2]["tool_name"]) == ("tool", "18 degrees", "get_weather")


def test_options_format_and_effort_reach_the_host(client: openai.OpenAI, double: OllamaDouble) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    client.chat.completions.create(
        model="auto",
        messages=[{"role": "developer", "content": "be brief"}, *HELLO],
        temperature=0.5,
        max_completion_tokens=3,
        stop=["."],
        seed=7,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        reasoning_effort="none",
    )
    sent = double.generations[-1].body
    assert sent["options"] == {"temperature": 0.5, "num_predict": 3, "stop": ["."], "seed": 7}
    assert sent["format"] == schema
    assert sent["think"] is False
    assert sent["messages"][0]["role"] == "system"


def test_an_image_as_data_url(client: openai.OpenAI, double: OllamaDouble) -> None:
    url = f"data:image/png;base64,{base64.b64encode(PIXEL).decode()}"
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    client.chat.completions.create(model="auto", messages=[{"role": "user", "content": parts}])
    sent = double.generations[-1].body["messages"][0]
    assert (sent["content"], sent["images"]) == ("what is it?", [base64.b64encode(PIXEL).decode()])


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.png", "file:///etc/hostname", "/etc/hostname"])
def test_no_address_of_an_image_is_fetched(client: openai.OpenAI, double: OllamaDouble, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.BadRequestError, match="fetches nothing"):
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": [part]}])
    assert not double.generations


def test_errors_have_their_own_classes(client: openai.OpenAI, double: OllamaDouble) -> None:
    with pytest.raises(openai.NotFoundError, match="auto:slow"):
        client.chat.completions.create(model="auto:slow", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.chat.completions.create(model="nope", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="messages") as raised:
        client.chat.completions.create(model="auto", messages=[])
    assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        client.chat.completions.create(model="auto", messages=HELLO, n=2)
    double.faults.set("*", Fault.ERROR_500)
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="auto", messages=HELLO)


def test_a_broken_stream_raises(client: openai.OpenAI, double: OllamaDouble) -> None:
    double.faults.set("*", Fault.RESET_MID_STREAM)
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="auto", messages=HELLO, stream=True))


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list().data][:2] == ["auto", "auto:fast"]
    assert client.models.retrieve("auto").owned_by == "router_ml"


def test_a_completion_of_a_named_model_is_not_routed(client: openai.OpenAI, double: OllamaDouble) -> None:
    answer = client.chat.completions.create(model="qwen3:8b", messages=HELLO)
    assert answer.choices[0].message.content == "Qwen three says hello!"
    assert double.generations[-1].path == "/v1/chat/completions"


def test_a_response(client: openai.OpenAI, double: OllamaDouble) -> None:
    answer = client.responses.create(model="auto", instructions="be brief", input="Hello")
    assert answer.output_text == "The llama says hello."
    assert (answer.status, answer.usage.output_tokens) == ("completed", 6)
    assert [m["role"] for m in double.generations[-1].body["messages"]] == ["system", "user"]


def test_a_streamed_response_adds_up(client: openai.OpenAI) -> None:
    with client.responses.stream(model="auto", input="Hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "The llama says hello."
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_calls_a_function_and_gets_its_output(
    client: openai.OpenAI, double: OllamaDouble, stream: bool
) -> None:
    given = client.responses.create(model="auto", input="Hello", tools=[FUNCTION], stream=stream)
    answer = list(given)[-1].response if stream else given
    call = next(item for item in answer.output if item.type == "function_call")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
    asked = [{"role": "user", "content": "Hello"}, call.model_dump(exclude_none=True), output]
    client.responses.create(model="auto", input=asked)
    sent = double.generations[-1].body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool"]
    assert sent[2]["tool_name"] == "get_weather"


def test_thinking_is_a_reasoning_item(client: openai.OpenAI, server: Running) -> None:
    server.service.decider.models = (MODELS[2], *MODELS[:2])  # type: ignore[attr-defined]
    with client.responses.stream(model="auto", input="Hello") as stream:
        list(stream)
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output[0].summary[0].text == "Let me think.\n"


def test_a_stored_conversation_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="auto", input="Hello", previous_response_id="resp_1")


def test_a_question_about_tiers_is_answered_as_a_decision(client: openai.OpenAI) -> None:
    question = {"type": "choice", "name": "tier", "instructions": "which tier?",
                "choices": [{"value": "simple"}, {"value": "complex"}]}  # fmt: skip
    decision = client.decisions.create(model="auto", input="Hello", questions=[question])
    answer = decision.answers[0]
    assert (answer.type, answer.name, answer.choice) == ("choice", "tier", "simple")
    assert sum(p.probability for p in answer.probabilities) == pytest.approx(1.0)
