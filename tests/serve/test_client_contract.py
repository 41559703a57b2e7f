"""A gateway takes the calls of the ollama client: the same arguments send the same request and give the same answer.

The calls are those that the client's own documentation and example programs make."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import ollama
import pydantic
import pytest

from router_ml.serve import Gateway
from tests.ollama_double import DoubleModel, OllamaDouble, Reply
from tests.serve.conftest import PATIENT
from tests.serve.deciders import FixedDecider, catalogue_of

MODEL = "all-rounder:1b"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgAAIAAAUAAeImBZsAAAAASUVORK5CYII="
SKY = [{"role": "user", "content": "Why is the sky blue?"}]


class Friend(pydantic.BaseModel):
    name: str
    age: int
    is_available: bool


class Friends(pydantic.BaseModel):
    friends: list[Friend]


class Picture(pydantic.BaseModel):
    summary: str
    friends: list[Friend]
    time_of_day: Literal["Morning", "Evening"]
    text_content: str | None = None


def add_two_numbers(a: int, b: int) -> int:
    """
    Add two numbers

    Args:
      a (int): The first number
      b (int): The second number

    Returns:
      int: The sum of the two numbers
    """
    return int(a) + int(b)


def get_conditions(city: str) -> str:
    """
    Get the weather conditions for a city
    """
    return f"sunny in {city}"


SUBTRACT = {
    "type": "function",
    "function": {
        "name": "subtract_two_numbers",
        "description": "Subtract two numbers",
        "parameters": {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {"type": "integer", "description": "The first number"},
                "b": {"type": "integer", "description": "The second number"},
            },
        },
    },
}
NAMES_ALONE = [{"type": "function", "function": {"name": name}} for name in ("browser.search", "browser.open")]
HISTORY = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "The air scatters blue light most."},
    {"role": "user", "content": "What is the weather in Tokyo?"},
    {"role": "assistant", "content": "Warm and humid,\n    at about 30°C."},
    {"role": "user", "content": "And in Kyoto?"},
]
ASKED = ollama.Message(
    role="assistant",
    thinking="I should add.",
    tool_calls=[{"function": {"name": "add_two_numbers", "arguments": {"a": 3, "b": 1}}}],
)
CALLS: dict[str, dict[str, Any]] = {
    "a question": {"messages": SKY},
    "a history": {"messages": HISTORY},
    "log probabilities": {"messages": SKY, "logprobs": True, "top_logprobs": 3},
    "a schema as format": {"messages": SKY, "format": Friends.model_json_schema(), "options": {"temperature": 0}},
    "json as format": {"messages": SKY, "format": "json"},
    "functions and schemas as tools": {"messages": SKY, "tools": [add_two_numbers, SUBTRACT]},
    "a tool's result": {
        "messages": [*SKY, ASKED, {"role": "tool", "content": "4", "tool_name": "add_two_numbers"}],
    },
    "a tool's result, with tools and thinking": {
        "messages": [*SKY, ASKED, {"role": "tool", "content": "4", "tool_name": "add_two_numbers"}],
        "tools": [add_two_numbers, get_conditions],
        "think": True,
    },
    "tools of the client": {"messages": SKY, "tools": [ollama.web_search, ollama.web_fetch], "think": True},
    "tools that are names alone": {"messages": SKY, "tools": NAMES_ALONE, "think": True},
    "thinking": {"messages": SKY, "think": True},
    "no thinking": {"messages": SKY, "think": False},
    "little thinking": {"messages": SKY, "think": "low"},
    "much thinking": {"messages": SKY, "think": "high"},
    "options": {"messages": SKY, "options": {"temperature": 0.2, "seed": 1, "stop": ["\n"], "num_predict": 20}},
    "options as an object": {"messages": SKY, "options": ollama.Options(temperature=0.2, num_ctx=2048)},
    "keep alive": {"messages": SKY, "keep_alive": "5m"},
    "keep alive in seconds": {"messages": SKY, "keep_alive": 60},
    "empty parts": {"messages": [{"role": "user", "content": "hi", "images": [], "tool_calls": None}]},
    "nothing but white space": {"messages": [{"role": "user", "content": " "}]},
}


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    capabilities = frozenset({"completion", "tools", "thinking", "vision"})
    with OllamaDouble([DoubleModel(MODEL, capabilities=capabilities)]) as running:
        yield running


@pytest.fixture
def client(double: OllamaDouble) -> ollama.Client:
    return ollama.Client(host=double.url)


@pytest.fixture
def gateway(double: OllamaDouble) -> Iterator[Gateway]:
    with Gateway(FixedDecider(MODEL), catalogue_of(MODEL), default_host=double.url, options=PATIENT) as made:
        yield made


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(base64.b64decode(PIXEL))
    return path


Same = Callable[..., None]


@pytest.fixture
def same(double: OllamaDouble, client: ollama.Client, gateway: Gateway) -> Same:
    """Makes a call through the client and through the gateway, whole and streamed, and compares them."""

    def compare(**call: Any) -> None:
        ours, theirs = gateway.chat(**call), client.chat(model=MODEL, **call)
        assert ours.message == theirs.message
        assert ours["message"]["content"] == ours.content == theirs["message"]["content"]
        assert (ours.done_reason, ours.get("logprobs", [])) == (theirs.done_reason, theirs.get("logprobs", []))
        streams = gateway.chat(stream=True, **call), client.chat(model=MODEL, stream=True, **call)
        parts = [[part.message for part in stream] for stream in streams]
        assert parts[0] == parts[1]
        bodies = [{"tools": [], **seen.body} for seen in double.generations]
        assert bodies[0] == bodies[1]
        assert bodies[2] == bodies[3]

    return compare


@pytest.mark.parametrize("name", CALLS)
def test_a_call_of_the_client_is_the_same_through_the_gateway(same: Same, name: str) -> None:
    same(**CALLS[name])


@pytest.mark.parametrize("form", ["path", "Path", "bytes", "base64"])
def test_images_are_too(same: Same, photo: Path, form: str) -> None:
    image = {"path": str(photo), "Path": photo, "bytes": photo.read_bytes(), "base64": PIXEL}[form]
    shown = {"role": "user", "content": "What is in this image? Be concise.", "images": [image]}
    same(messages=[shown], format=Picture.model_json_schema(), options={"temperature": 0})


def test_images_of_earlier_turns_are_too(same: Same, photo: Path) -> None:
    same(messages=[{"role": "user", "content": "look", "images": [photo]}, *HISTORY[1:]])


async def test_coroutines_get_the_same(double: OllamaDouble, gateway: Gateway) -> None:
    client = ollama.AsyncClient(host=double.url)
    ours, theirs = await gateway.achat(messages=SKY), await client.chat(MODEL, messages=SKY)
    assert ours["message"]["content"] == theirs["message"]["content"]
    streams = await gateway.achat(messages=SKY, stream=True), await client.chat(MODEL, messages=SKY, stream=True)
    assert [part["message"]["content"] async for part in streams[0]] == [
        part["message"]["content"] async for part in streams[1]
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_loop_of_tools_runs_to_its_end(double: OllamaDouble, gateway: Gateway, stream: bool) -> None:
    def reply(body: Any) -> Reply:
        if body["messages"][-1]["role"] == "tool":
            return Reply(f"It is {body['messages'][-1]['content']}.")
        return Reply(thinking="I should add.", tool_calls=({"name": "add_two_numbers", "arguments": {"a": 3, "b": 1}},))

    double.models[MODEL] = DoubleModel(MODEL, reply=reply, capabilities=frozenset({"completion", "tools", "thinking"}))
    messages: list[Any] = [{"role": "user", "content": "What is three plus one?"}]
    for _ in range(2):
        answer = gateway.chat(messages, tools=[add_two_numbers], think=True, stream=stream)
        for part in answer if stream else [answer]:
            if part.message.tool_calls:
                messages.append(part.message)
            for call in part.message.tool_calls or ():
                output = add_two_numbers(**call.function.arguments)
                messages.append({"role": "tool", "content": str(output), "tool_name": call.function.name})
    last = answer.answer if stream else answer
    assert (last.content, len(double.generations)) == ("It is 4.", 2)
