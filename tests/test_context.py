"""Every shape a context may have, and every wrong one: a typed error that names the key."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import multiprocessing.reduction
import time
from types import SimpleNamespace
from typing import Any

import langchain_core.tools as langchain_tools
import numpy as np
import ollama
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.context import context_row, conversation_context, parse_context, shows_image
from router_ml.errors import ContextError
from router_ml.messages import read_messages
from router_ml.types import EMPTY_CONTEXT, Context, Tool, Turn

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "where"}, "day": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize("nothing", [None, {}])
def test_nothing_is_the_empty_context(nothing: Any) -> None:
    assert parse_context(nothing) is EMPTY_CONTEXT


def test_a_parsed_context_passes_through() -> None:
    context = Context(n_tools=3)
    assert parse_context(context) is context


@pytest.mark.parametrize(
    ("raw", "turn"),
    [
        ("call Dana", Turn("assistant", "call Dana")),
        ("user: call Dana", Turn("user", "call Dana")),
        ("Human: call Dana", Turn("user", "call Dana")),
        ("AI: which Dana?", Turn("assistant", "which Dana?")),
        ("at 10: stand-up", Turn("assistant", "at 10: stand-up")),
        ({"role": "assistant", "content": "Which one?"}, Turn("assistant", "Which one?")),
        ({"content": "no role"}, Turn("user", "no role")),
        ({"role": "user", "text": "as text"}, Turn("user", "as text")),
        ({"role": "assistant", "content": None, "tool_calls": []}, Turn("assistant", "")),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, Turn("user", "a b")),
        ({"role": "user", "content": b"caf\xc3\xa9"}, Turn("user", "café")),
        (("user", "a pair"), Turn("user", "a pair")),
        (["tool", "42"], Turn("tool", "42")),
        (SimpleNamespace(role="assistant", content="hi"), Turn("assistant", "hi")),
        (SimpleNamespace(type="human", content="hi"), Turn("user", "hi")),
        (SimpleNamespace(type="ai", content=[{"text": "part"}]), Turn("assistant", "part")),
        (SimpleNamespace(role="assistant", content=None, tool_calls=[1]), Turn("assistant", "")),
    ],
)
def test_turns_of_every_shape(raw: Any, turn: Turn) -> None:
    assert parse_context({"history": [raw]}).history == (turn,)


@pytest.mark.parametrize("raw", [5, None, {}, {"foo": "bar"}, ("a", "b", "c"), ("user", 5), object()])
def test_a_turn_without_content_is_refused(raw: Any) -> None:
    with pytest.raises(ContextError) as caught:
        parse_context({"history": [raw]})
    assert caught.value.field == "history"


def test_an_openai_tool_is_measured() -> None:
    (tool,) = parse_context({"tools": [WEATHER]}).tools
    assert (tool.name, tool.description) == ("get_weather", "Weather of a place")
    assert (tool.n_parameters, tool.n_required) == (2, 1)
    assert tool.parameter_text == "city: where; day: "
    assert tool.schema_chars > 100


@pytest.mark.parametrize(
    "raw",
    [
        WEATHER["function"],
        SimpleNamespace(model_dump=lambda **_: WEATHER),
    ],
)
def test_a_bare_schema_and_an_object_say_the_same_as_the_openai_form(raw: Any) -> None:
    assert parse_context({"tools": [raw]}).tools == parse_context({"tools": [WEATHER]}).tools


def test_names_and_ready_tools() -> None:
    context = parse_context({"tools": ["mail", Tool("calendar", "days")]})
    assert context.tools == (Tool("mail"), Tool("calendar", "days"))
    assert context.n_tools == 2


@pytest.mark.parametrize(
    "schema",
    [
        {"name": "x", "parameters": None},
        {"name": "x", "parameters": "none"},
        {"name": "x", "parameters": {"properties": ["a"], "required": "a"}},
        {"name": "x", "parameters": {"properties": {"a": "string"}}},
        {"name": "x", "description": 5},
    ],
)
def test_odd_schemas_are_taken_as_far_as_they_go(schema: Any) -> None:
    assert parse_context({"tools": [schema]}).tools[0].name == "x"


def test_a_schema_that_contains_itself_is_no_crash() -> None:
    loop: dict[str, Any] = {"name": "loop", "parameters": {"properties": {}}}
    loop["parameters"]["properties"]["again"] = loop
    with pytest.raises(ContextError) as caught:
        parse_context({"tools": [loop]})
    assert caught.value.field == "tools"


def test_an_attachment_that_contains_itself_is_no_crash() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ContextError) as caught:
        parse_context({"attachment": loop})
    assert caught.value.field == "attachment"


def test_a_schema_with_odd_keys_is_no_crash() -> None:
    assert parse_context({"tools": [{"name": "x", ("a", 1): 2}]}).tools[0].name == "x"


@pytest.mark.parametrize("tool", [5, None, {"description": "no name"}, {"function": {"name": 3}}, ["mail"]])
def test_a_tool_without_a_name_is_refused(tool: Any) -> None:
    with pytest.raises(ContextError) as caught:
        parse_context({"tools": [tool]})
    assert caught.value.field == "tools"


@pytest.mark.parametrize(
    ("raw", "name", "kind"),
    [
        (None, "", ""),
        (False, "", ""),
        ("", "", ""),
        ([], "", ""),
        (True, "file", "document"),
        ("report.pdf", "report.pdf", "document"),
        ("IMG_2041.HEIC", "IMG_2041.HEIC", "image"),
        ("photo of a receipt", "photo of a receipt", "image"),
        ("memo.m4a", "memo.m4a", "audio"),
        ({"name": "x.bin", "type": "image/png"}, "x.bin", "image"),
        ({"filename": "notes.txt"}, "notes.txt", "document"),
        ({"mime_type": "audio/ogg"}, "file", "audio"),
        (["a.pdf", "b.docx"], "a.pdf, b.docx", "document"),
        (["a.pdf", "b.png"], "a.pdf, b.png", "image"),
        ([{"name": "a.wav"}, True], "a.wav, file", "audio"),
    ],
)
def test_attachments_of_every_shape(raw: Any, name: str, kind: str) -> None:
    context = parse_context({"attachment": raw, "session_id": "s"})
    assert (context.attachment, context.attachment_kind) == (name, kind)


@pytest.mark.parametrize("wrong", ["text", 5, [], [("tools", [])], True, object()])
def test_a_context_that_is_no_mapping(wrong: Any) -> None:
    with pytest.raises(ContextError, match="dictionary"):
        parse_context(wrong)


@pytest.mark.parametrize("key", ["tools", "history"])
@pytest.mark.parametrize("wrong", ["text", b"bytes", 5, {"a": 1}, {1, 2}, True])
def test_lists_must_be_lists(key: str, wrong: Any) -> None:
    with pytest.raises(ContextError) as caught:
        parse_context({key: wrong})
    assert caught.value.field == key
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["n_tools", "prompt_tokens", "latency_budget_s"])
@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, -math.inf, "5", True, [5], 10**400])
def test_numbers_must_be_sane(key: str, wrong: Any) -> None:
    with pytest.raises(ContextError) as caught:
        parse_context({key: wrong})
    assert caught.value.field == key
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_budget_of_zero_is_refused_and_counts_of_zero_are_not() -> None:
    with pytest.raises(ContextError):
        parse_context({"latency_budget_s": 0})
    assert parse_context({"n_tools": 0, "prompt_tokens": 0}).prompt_tokens == 0


def test_n_tools_is_never_less_than_the_tools() -> None:
    assert parse_context({"tools": ["a", "b"], "n_tools": 1}).n_tools == 2
    assert parse_context({"tools": ["a"], "n_tools": 9}).n_tools == 9


def test_unknown_keys_are_kept_and_ignored() -> None:
    context = parse_context({"n_tools": 1, "user": {"id": 7}, "history": None})
    assert context.extra == {"user": {"id": 7}}
    assert context.history == ()


def test_session_ids_become_text() -> None:
    assert parse_context({"session_id": 42}).session_id == "42"


def test_contexts_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_context({"n_tools": 1}).n_tools = 2  # type: ignore[misc]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_KEYS = st.sampled_from(
    ["tools", "n_tools", "history", "attachment", "session_id", "latency_budget_s", "prompt_tokens", "other"]
)


@given(st.dictionaries(_KEYS, _JSON, max_size=8))
def test_whatever_json_holds_gives_a_context_or_a_typed_error(raw: dict[str, Any]) -> None:
    wrong: ContextError | None = None
    context = EMPTY_CONTEXT
    try:
        context = parse_context(raw)
    except ContextError as error:
        wrong = error
    assert wrong is None or wrong.field in raw
    assert context.n_tools >= len(context.tools)
    assert bool(context.attachment) == bool(context.attachment_kind)


_SPOKEN = st.text(max_size=20).filter(lambda text: ": " not in text)
_TOOLS = st.builds(Tool, st.text(max_size=9), st.text(max_size=9), *[st.integers(0, 99)] * 3)
_TURNS = st.builds(Turn, st.sampled_from(["", "user", "assistant", "tool"]), _SPOKEN)
_CONTEXTS = st.builds(
    Context,
    tools=st.lists(_TOOLS, max_size=3).map(tuple),
    history=st.lists(_TURNS, max_size=3).map(tuple),
    attachment_kind=st.sampled_from(["image", "audio", "document"]),
    attachment=st.just("the file"),
    latency_budget_s=st.none() | st.floats(0.1, 100.0),
    prompt_tokens=st.none() | st.integers(0, 10**6),
    has_images=st.booleans(),
)


@given(_CONTEXTS, st.integers(0, 9))
def test_a_context_survives_its_json_form(context: Context, more_tools: int) -> None:
    context = dataclasses.replace(context, n_tools=len(context.tools) + more_tools)
    assert parse_context(json.loads(json.dumps(context_row(context)))) == parse_context(context)


def test_the_json_form_of_schemas_has_the_same_features_without_session_and_strangers() -> None:
    tool = {"name": "mail", "parameters": {"properties": {"to": {"description": "who"}}, "required": ["to"]}}
    context = parse_context({"tools": [tool], "session_id": "s1", "user_id": "u1", "n_tools": 1})
    row = context_row(context)
    assert set(row) == {"tools"}
    assert parse_context(row).tools == context.tools


@pytest.mark.parametrize("parameters", [{"type": "object"}, "to", [["to", ["string"]]], [[]], ["type"], [5]])
def test_a_summed_up_tool_with_parameters_of_another_form_is_refused(parameters: Any) -> None:
    with pytest.raises(ContextError, match="parameter"):
        parse_context({"tools": [{"name": "mail", "schema_chars": 9, "parameters": parameters}]})


_LOOK = {"type": "text", "text": "look"}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "content": "look", "images": ["aGk="]},
        {"role": "user", "content": [_LOOK, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"image": "x"}]},
        ollama.Message(role="user", content="look", images=[ollama.Image(value=b"x")]),
        ("user", [{"type": "input_image"}]),
    ],
)
def test_images_in_the_conversation_are_seen(turn: Any) -> None:
    assert shows_image(turn)
    if not isinstance(turn, tuple):
        context = parse_context({"history": [turn, "assistant: a cat"]})
        assert context.has_images
        assert context.attachment == ""


@pytest.mark.parametrize(
    "turn",
    ["look", {"role": "user", "content": "image"}, {"role": "user", "content": "x", "images": []},
     {"role": "user", "content": [_LOOK]}, ("user", "hi"), 5],
)  # fmt: skip
def test_a_conversation_without_images(turn: Any) -> None:
    assert not shows_image(turn)


def test_a_slip_of_the_pen_in_a_key_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert parse_context({"toolz": ["mail"], "mood": "good", "user_id": "u"}).extra["toolz"] == ["mail"]
    assert [record.message for record in caplog.records] == [
        "context: the unknown key 'toolz' is ignored; did you mean 'tools'?"
    ]


def find_slot(person: str, minutes: int = 30, *, exact: bool = False) -> str:
    """Find a free slot in somebody's calendar."""
    return person * minutes * exact


class FindSlot(pydantic.BaseModel):
    """Find a free slot in somebody's calendar."""

    person: str
    minutes: int = 30


@pytest.mark.parametrize(
    ("tool", "name", "n_parameters", "n_required"),
    [
        (find_slot, "find_slot", 3, 1),
        (functools.partial(find_slot, minutes=5), "find_slot", 3, 1),
        (FindSlot, "FindSlot", 2, 1),
        (langchain_tools.tool(find_slot), "find_slot", 3, 1),
        (langchain_tools.StructuredTool.from_function(find_slot, args_schema=FindSlot), "find_slot", 2, 1),
        (ollama.Tool(**WEATHER), "get_weather", 2, 1),
        ({"name": "f", "input_schema": WEATHER["function"]["parameters"]}, "f", 2, 1),  # type: ignore[index]
        ({"name": "f", "inputSchema": WEATHER["function"]["parameters"]}, "f", 2, 1),  # type: ignore[index]
        ({"type": "web_search"}, "web_search", 0, 0),
        (len, "len", 1, 1),
    ],
)
def test_tools_of_every_library(tool: Any, name: str, n_parameters: int, n_required: int) -> None:
    (read,) = parse_context({"tools": [tool]}).tools
    assert (read.name, read.n_parameters, read.n_required) == (name, n_parameters, n_required)
    if "slot" in name.lower():
        assert read.description.startswith("Find a free slot")
        assert [(p.name, p.type, p.required) for p in read.parameters[:2]] == [
            ("person", "string", True),
            ("minutes", "integer", False),
        ]


def _endless() -> Any:
    tree: dict[str, Any] = {"type": "object", "properties": {}}
    tree["properties"] = {"left": tree, "right": tree}
    return tree


def _shared(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"tools": [{"name": "insert", "parameters": _endless()}]}, "'insert'.*20,000 values, or itself"),
        ({"tools": [{"name": "f", "parameters": {"properties": {"a": {"enum": _shared(40)}}}}]}, "20,000 values"),
        ({"tools": [{"name": "f", "x": [[]] * 30_000}]}, "20,000 values"),
        ({"tools": ["t"] * 10_001}, "10,001 tools are more than the 10,000"),
        ({"attachment": [_shared(40)]}, "list of these"),
        ({"history": [{"role": "assistant", "tool_calls": [{"function": {"arguments": _endless()}}]}]}, "history"),
        ({"history": ["x"] * 100_001}, "100,001 turns"),
        ({"session_id": _shared(40)}, "session_id must be a string"),
        ({"prompt_tokens": _shared(40)}, "prompt_tokens must be a number"),
    ],
)
def test_what_is_too_large_is_refused_at_once_and_told(raw: dict[str, Any], told: str) -> None:
    began = time.process_time()
    with pytest.raises(ContextError, match=told) as caught:
        parse_context(raw)
    assert time.process_time() - began < 0.2
    assert caught.value.field in raw
    assert len(str(caught.value)) < 250


def test_unknown_keys_may_hold_anything() -> None:
    node: dict[str, Any] = {"children": []}
    node["children"] = [{"parent": node}, {"parent": node}]
    began = time.process_time()
    parse_context({"node": node, "shared": _shared(40), **{f"key{i}": 1 for i in range(20_000)}})
    assert time.process_time() - began < 0.2


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"prompt_tokens": np.int64(100), "n_tools": np.int32(3), "latency_budget_s": np.float32(4.0)}
    context = parse_context(given)
    assert context == parse_context({"prompt_tokens": 100, "n_tools": 3, "latency_budget_s": 4.0})
    assert type(context.prompt_tokens) is int
    with pytest.raises(ContextError):
        parse_context({"n_tools": np.bool_(True)})


def test_a_context_can_be_copied_hashed_and_sent() -> None:
    context = parse_context({"tools": [WEATHER], "history": ["hi"], "user_id": "u"})
    for whole in (context, EMPTY_CONTEXT, Context()):
        assert copy.copy(whole) == copy.deepcopy(whole) == whole
        assert len({whole, copy.deepcopy(whole)}) == 1
        assert multiprocessing.reduction.ForkingPickler.dumps(whole)


def test_turns_without_roles_alternate_in_dictionaries_and_contexts_alike() -> None:
    history = ["find Dana", "found her", "mail her", "which address?"]
    roles = ["user", "assistant", "user", "assistant"]
    assert [turn.role for turn in parse_context({"history": history}).history] == roles
    built = Context(history=tuple(Turn("", text) for text in history))
    assert [turn.role for turn in parse_context(built).history] == roles


def test_unpaired_surrogates_are_cleaned_everywhere() -> None:
    odd = "a\ud83db"
    context = parse_context({"tools": [odd, {"name": odd, "description": odd, "parameters": {"properties": {odd: {}}}}],
                             "history": [odd, {"role": odd, "content": odd}], "attachment": [odd, {"name": odd}],
                             "session_id": odd})  # fmt: skip
    json.dumps(context_row(context), ensure_ascii=False).encode()
    assert context.session_id == "a\ufffdb"


def test_what_the_caller_gives_wins_over_the_conversation() -> None:
    image = {"role": "user", "content": "look", "images": ["a.png"]}
    conversation = read_messages([("user", "hi"), ("assistant", "hello"), image, ("tool", "x" * 4000)])
    context = conversation_context(conversation, {"user_id": "u"}, tools=[find_slot])
    assert (context.attachment, context.attachment_kind, context.has_images) == ("image", "image", True)
    assert context.history == (Turn("user", "hi"), Turn("assistant", "hello"))
    assert ([tool.name for tool in context.tools], context.n_tools) == (["find_slot"], 1)
    assert 1000 <= context.unread_tokens <= 1050
    given = {"history": ["user: other"], "attachment": "b.pdf", "tools": ["mail"]}
    context = conversation_context(conversation, given, tools=[find_slot])
    assert (context.attachment, context.attachment_kind) == ("b.pdf", "document")
    assert context.history == (Turn("user", "other"),)
    assert [tool.name for tool in context.tools] == ["mail"]
