"""What is sent, whichever library made the messages and tools; and what is refused before anything is sent."""

from __future__ import annotations

import base64
import enum
import math
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from router_ml.errors import QueryError
from router_ml.serve.encode import MAX_DEPTH, json_ready
from router_ml.serve.request import build_request

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgAAIAAAUAAeImBZsAAAAASUVORK5CYII="
PNG = base64.b64decode(PIXEL)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(PNG)
    return path


@pytest.mark.parametrize("form", ["path", "Path", "bytes", "bytearray", "base64", "data URL", "ollama"])
def test_an_image_is_sent_as_base64_whatever_it_was(photo: Path, form: str) -> None:
    image = {
        "path": str(photo), "Path": photo, "bytes": PNG, "bytearray": bytearray(PNG), "base64": PIXEL,
        "data URL": f"data:image/png;base64,{PIXEL}", "ollama": ollama.Image(value=photo),
    }[form]  # fmt: skip
    turns = [{"role": "user", "content": "look", "images": [image]}, {"role": "assistant", "content": "a dot"}, *HELLO]
    request = build_request(turns)
    assert request.messages[0]["images"] == [PIXEL]
    assert request.has_images


@pytest.mark.parametrize(
    "image", ["/no/such/photo.png", Path("/no/such"), Path("/"), "", "no base64!", 5, None, {"a": 1}]
)
def test_an_image_that_cannot_be_read_is_named(image: object) -> None:
    with pytest.raises(QueryError, match=r"messages\[1\]\.images\[0\]"):
        build_request([*HELLO, {"role": "user", "content": "look", "images": [image]}])


def test_messages_of_langchain_and_openai_are_sent_as_ollama_takes_them() -> None:
    called = {"name": "get_weather", "args": {"city": "Rome"}, "id": "1"}
    turns = [
        SystemMessage("be brief"),
        ("human", "rain?"),
        AIMessage("", tool_calls=[called]),
        ToolMessage("dry", tool_call_id="1", name="get_weather"),
        HumanMessage([{"type": "text", "text": "and this?"}, {"type": "image_url", "image_url": {"url": PIXEL}}]),
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "2", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]},
        "well?",
    ]  # fmt: skip
    assert build_request(turns).messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "content": "dry", "tool_name": "get_weather"},
        {"role": "user", "content": "and this?", "images": [PIXEL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"at": 1}}}]},
        {"role": "user", "content": "well?"},
    )


def test_parts_that_cannot_be_sent_are_refused_not_skipped() -> None:
    for content in (
        {"type": "input_audio", "input_audio": {}},
        {"type": "image_url", "image_url": {"url": "https://x"}},
    ):
        with pytest.raises(QueryError, match=r"messages\[0\]\.content\[1\]"):
            build_request([{"role": "user", "content": ["look", content]}])


def test_the_url_of_an_image_never_names_a_file(photo: Path) -> None:
    for url in (str(photo), f"file://{photo}", photo):
        with pytest.raises(QueryError, match=r"messages\[0\]\.content\[0\]"):
            build_request([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])


class Colour(enum.StrEnum):
    RED = "red"


def test_numpy_enums_and_pydantic_become_plain_json() -> None:
    options = {"temperature": np.float32(0.5), "seed": np.int64(7), "stop": np.array(["a"]), "x": Colour.RED}
    assert build_request(HELLO, options=options).options == {"temperature": 0.5, "seed": 7, "stop": ["a"], "x": "red"}
    assert build_request(HELLO, options=ollama.Options(num_ctx=512)).options == {"num_ctx": 512}
    assert json_ready(ollama.Message(role="user", content="a\ud800"), "x") == {"role": "user", "content": "a\ufffd"}


def test_unpaired_surrogates_are_replaced_everywhere() -> None:
    request = build_request(
        [{"role": "user", "content": "hi \ud83d there"}],
        [{"type": "function", "function": {"name": "f", "description": "\udc00"}}],
        options={"stop": ["\ud83d"]},
    )
    assert "\ud83d" not in f"{request}"
    assert request.text == "hi \ufffd there"


class Person(pydantic.BaseModel):
    name: str


def test_a_pydantic_class_as_format_is_its_schema() -> None:
    schema = {"properties": {"name": {"title": "Name", "type": "string"}}, "required": ["name"], "title": "Person",
              "type": "object"}  # fmt: skip
    assert build_request(HELLO, format=Person).format == schema
    assert build_request(HELLO, format=pydantic.TypeAdapter(Person)).format == schema
    assert build_request(HELLO, format="json").format == "json"


class NoSchema:
    pass


def _no_schema(what: NoSchema) -> None:
    """Do it."""


def _itself() -> dict[str, Any]:
    value: dict[str, Any] = {"name": "f", "children": [{}, {}]}
    value["children"][0]["parent"] = value["children"][1]["parent"] = value
    return value


def _deep() -> Any:
    value: Any = "x"
    for _ in range(100_000):
        value = [value]
    return value


def _wide() -> Any:
    """Small in memory, endless when written out."""
    value: Any = ["x"]
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ({"options": {"temperature": math.nan}}, "options.temperature is nan"),
        ({"options": {"temperature": np.float64(math.inf)}}, "options.temperature is inf"),
        ({"options": {"stop": {"a"}}}, "options.stop is of type set"),
        ({"options": {"a": [1, object()]}}, r"options.a\[1\] is of type object"),
        ({"options": {(1, 2): 3}}, "options has a key of type tuple"),
        ({"options": "hot"}, "options"),
        ({"options": {"x": _itself()}}, "nested more than"),
        ({"options": {"x": _deep()}}, "nested more than"),
        ({"options": {"x": _wide()}}, "values"),
        ({"format": "xml"}, "format"),
        ({"format": NoSchema}, "format: the class NoSchema has no JSON schema"),
        ({"format": {"type": {1}}}, "format.type is of type set"),
        ({"keep_alive": object()}, "keep_alive is of type object"),
        ({"keep_alive": math.nan}, "keep_alive is nan"),
        ({"think": []}, "think"),
        ({"top_logprobs": "x"}, "top_logprobs"),
        ({"tools": [_no_schema]}, r"tools\[0\]: the function '_no_schema' cannot be described"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] has no function with a name"),
        ({"tools": [_itself()]}, r"tools\[0\].*nested"),
        ({"tools": 5}, "tools must be a list"),
        ({"temprature": 1}, "no argument 'temprature'"),
        ({"messages": [{"role": "user", "content": b"raw"}]}, r"messages\[0\].content is of type bytes"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": {1}}}}]}]},
         r"messages\[0\].tool_calls\[0\].function.arguments.a is of type set"),
        ({"messages": [{"role": "user", "content": "x", "images": "photo.png"}]}, "images must be a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_is_refused_with_its_place(call: dict[str, Any], place: str) -> None:
    with pytest.raises(QueryError, match=place):
        build_request(call.pop("messages", HELLO), **call)


def test_a_value_may_be_as_deep_as_the_limit_says() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert json_ready(value, "x") == value


def test_tools_of_every_kind_become_schemas() -> None:
    def add(a: int, b: int = 2) -> int:
        """Add two numbers.

        Args:
          a: the first
          b: the second
        """
        return a + b

    @tool
    def look(city: str) -> str:
        """Look outside."""
        return city

    bare = {"name": "send", "description": "Send it", "parameters": {"type": "object", "properties": {}}}
    request = build_request(
        HELLO, [add, look, bare, {"type": "function", "function": bare}, ollama.Tool(function=bare)]
    )
    functions = [sent["function"] for sent in request.tools]
    assert [function["name"] for function in functions] == ["add", "look", "send", "send", "send"]
    assert functions[0]["parameters"]["properties"]["a"] == {"type": "integer", "description": "the first"}
    assert functions[1]["parameters"]["required"] == ["city"]
    assert functions[2] == functions[3] == functions[4]


def test_a_function_that_changed_is_described_anew() -> None:
    def look(city: str) -> str:
        """Look outside."""
        return city

    (first,) = build_request(HELLO, [look]).tools
    assert build_request(HELLO, [look]).tools == (first,)
    look.__doc__ = "Look inside."
    (second,) = build_request(HELLO, [look]).tools
    assert (first["function"]["description"], second["function"]["description"]) == ("Look outside.", "Look inside.")
