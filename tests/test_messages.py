"""Messages of every library are read alike; sizes follow the script; harness text is told from a person's words."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ollama
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import QueryError
from router_ml.harness import user_text
from router_ml.messages import alternating, check_bounded, clean_text, estimate_tokens, read_messages
from router_ml.types import Turn

langchain = pytest.importorskip("langchain_core.messages")


@dataclass
class _Spoken:
    role: str
    content: str


class _Typed(pydantic.BaseModel):
    role: str
    content: str


@pytest.mark.parametrize(
    "messages",
    [
        "hi",
        ["hi"],
        ["user: hi"],
        [("user", "hi")],
        [("human", [{"type": "text", "text": "hi"}])],
        {"role": "user", "content": "hi"},
        [{"role": "USER", "content": "hi"}],
        [{"content": "hi"}],
        [{"type": "human", "content": "hi"}],
        [{"type": "human", "data": {"content": "hi", "additional_kwargs": {}}}],
        [{"lc": 1, "type": "constructor", "id": ["langchain", "HumanMessage"], "kwargs": {"content": "hi"}}],
        [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        [{"role": "user", "parts": [{"text": "hi"}]}],
        [{"from": "human", "value": "hi"}],
        {"messages": [{"role": "user", "content": "hi"}]},
        SimpleNamespace(role="user", content="hi"),
        [_Spoken("user", "hi")],
        [_Typed(role="user", content="hi")],
        [ollama.Message(role="user", content="hi")],
        [langchain.HumanMessage("hi")],
        [langchain.HumanMessageChunk("hi")],
        [langchain.message_to_dict(langchain.HumanMessage("hi"))],
        [langchain.HumanMessage("hi").model_dump()],
        [langchain.HumanMessage([{"type": "text", "text": "hi"}])],
        [langchain.ChatMessage(role="user", content="hi")],
    ],
)
def test_a_users_message_of_every_form(messages: Any) -> None:
    read = read_messages(messages)
    assert (read.query, [m.role for m in read.messages], read.history) == ("hi", ["user"], ())


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (langchain.AIMessageChunk("x"), "assistant"),
        (langchain.SystemMessage("x"), "system"),
        (langchain.ToolMessage("x", tool_call_id="1"), "tool"),
        ({"role": "developer", "content": "x"}, "system"),
        ({"role": "function", "name": "f", "content": "x"}, "tool"),
        ({"role": "model", "parts": [{"text": "x"}]}, "assistant"),
        ({"type": "function_call_output", "call_id": "1", "output": "x"}, "tool"),
        ({"role": "critic", "content": "x"}, "critic"),
    ],
)
def test_roles_have_one_name(message: Any, role: str) -> None:
    (read,) = read_messages([message]).messages
    assert (read.role, read.text) == (role, "x")


@pytest.mark.parametrize(
    "wrong", [5, [5], [None], [{}], [{"foo": "bar"}], [("a", "b", "c")], [("user", 5)], [object()]]
)
def test_what_is_no_message_is_told(wrong: Any) -> None:
    with pytest.raises(QueryError, match="message 0 must be"):
        read_messages(wrong)


def test_nothing_was_said() -> None:
    read = read_messages([])
    assert (read.query, read.history, read.tokens, read.in_tool_loop) == ("", (), 0, False)
    read = read_messages([{"role": "system", "content": "be brief"}, {"role": "assistant", "content": None}])
    assert (read.query, len(read.history)) == ("", 2)


_LOOK = {"type": "text", "text": "look"}


@pytest.mark.parametrize(
    ("message", "name", "kind"),
    [
        ({"role": "user", "content": "look", "images": ["photo.png"]}, "image", "image"),
        ({"role": "user", "content": "look", "images": [b"\x89PNG"]}, "image", "image"),
        (ollama.Message(role="user", content="look", images=[ollama.Image(value=b"x")]), "image", "image"),
        ({"role": "user", "content": [_LOOK, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
         "image", "image"),
        ({"role": "user", "content": [_LOOK, {"type": "image", "source": {"media_type": "image/png", "data": "AA"}}]},
         "image", "image"),
        ({"role": "user", "parts": [{"text": "look"}, {"inline_data": {"mime_type": "image/png", "data": "AA"}}]},
         "image", "image"),
        ({"role": "user", "content": [_LOOK, {"type": "file", "filename": "a.pdf", "base64": "AA"}]},
         "a.pdf", "document"),
        ({"role": "user", "content": [_LOOK, {"type": "file", "file": {"filename": "a.pdf", "file_data": "AA"}}]},
         "a.pdf", "document"),
        ({"role": "user", "content": [_LOOK, {"type": "input_file", "file_id": "1"}]}, "file", "document"),
        ({"role": "user", "content": [_LOOK, {"type": "document", "title": "a", "source": {"data": "AA"}}]},
         "a", "document"),
        ({"role": "user", "content": [_LOOK, {"type": "audio", "mime_type": "audio/wav"}]}, "audio", "audio"),
        ({"role": "user", "content": [_LOOK, {"type": "input_audio", "input_audio": {"data": "AA"}}]},
         "audio", "audio"),
    ],
)  # fmt: skip
def test_images_and_files_are_attachments(message: Any, name: str, kind: str) -> None:
    read = read_messages([message])
    assert (read.query, read.attachment, read.attachment_kind, read.has_images) == ("look", name, kind, kind == "image")
    assert read.tokens < 20  # the data of a file is no text


_CALL = {"id": "c1", "function": {"name": "get_mail", "arguments": {"q": "x" * 400}}}


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [_CALL], "model": "m"},
         {"role": "tool", "content": [{"type": "text", "text": "10:00"}], "tool_call_id": "c1"}),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "input": {"q": "x" * 400}}], "model": "m"},
         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "10:00"}]}),
        (langchain.AIMessage("", tool_calls=[{"name": "f", "args": {"q": "x" * 400}, "id": "c1"}],
                             response_metadata={"model_name": "m"}),
         langchain.ToolMessage("10:00", tool_call_id="c1")),
        ({"type": "function_call", "call_id": "c1", "name": "f", "arguments": "x" * 400, "model": "m"},
         {"type": "function_call_output", "call_id": "c1", "output": "10:00"}),
    ],
)  # fmt: skip
def test_a_tool_loop_knows_who_asked(call: Any, result: Any) -> None:
    read = read_messages([("user", "when is lunch?"), call, result])
    assert (read.query, read.history, read.in_tool_loop) == ("when is lunch?", (), True)
    assert read.asked_by is not None
    assert (read.asked_by.calls, read.asked_by.model) == (("c1",), "m")
    assert (read.messages[-1].text, read.messages[-1].answers) == ("10:00", "c1")
    assert read.tokens > 100  # the arguments count
    earlier, later = read_messages([("user", "when is lunch?")]), read_messages([("user", "when is supper?")])
    assert read.turn_key == earlier.turn_key != later.turn_key


def test_thoughts_and_every_tool_result_count() -> None:
    turns = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "thinking": "hmm " * 1000},
             {"role": "tool", "content": "mail " * 1000}]  # fmt: skip
    assert 2250 <= read_messages(turns).tokens <= 2300


def test_turns_without_roles_alternate_backwards_from_the_assistant() -> None:
    assert alternating(["", "", ""]) == ["assistant", "user", "assistant"]
    assert alternating(["", "user", "", "tool", ""]) == ["assistant", "user", "user", "tool", "assistant"]
    read = read_messages(["hi", "hello, what can I do?", "book it"])
    assert read.history == (Turn("user", "hi"), Turn("assistant", "hello, what can I do?"))
    assert read.query == "book it"


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("a" * 400, 100, 100),
        ("这是一个很长的文件内容。" * 100, 1100, 1200),
        ("これはとても長い文章です。" * 100, 1200, 1300),
        ("이것은 매우 긴 글입니다. " * 100, 1000, 1400),
        ("นี่คือข้อความยาว" * 100, 1500, 1700),
        ("Это очень длинный текст " * 100, 900, 1300),
        ("Füße und Straßen " * 100, 400, 500),
        ("😀" * 100, 100, 200),
    ],
)
def test_sizes_follow_the_script(text: str, low: int, high: int) -> None:
    assert low <= estimate_tokens(text) <= high


@given(st.text(st.characters(), max_size=60))
def test_clean_text_can_be_encoded(text: str) -> None:
    assert len(clean_text(text).encode()) >= len(text)
    assert clean_text(clean_text(text)) == clean_text(text)


_ASK = "what time is it"
_WRAPPED = {
    "reminder": "<system-reminder>\nif tests fail, fix them\n</system-reminder>\n" + _ASK,
    "two reminders": f"<system-reminder>a</system-reminder>{_ASK}<system-reminder>b</system-reminder>",
    "environment": f"{_ASK}\n<environment_details>\n# Open tabs\na.py\n</environment_details>",
    "task": f"<task>\n{_ASK}\n</task>\n<environment_details>x</environment_details>",
    "attributes": f'<attached_files count="2">\nplan, compare\n</attached_files>\n<user_query>{_ASK}</user_query>',
    "camel case": f"<editorContext>a.py</editorContext>\n<userRequest>\n{_ASK}\n</userRequest>",
    "context block": f"<context>\nlong text, then compare\n</context>\n\n{_ASK}",
    "open webui": "### Task:\nRespond to the user query using the provided context.\n\n### Output:\nBe clear.\n\n"
    f"<context>\n<source id='1'>plan</source>\n</context>\n\n{_ASK}",
    "llamaindex": "Context information is below.\n-----\nplan the trip\n-----\nGiven the context information and not "
    f"prior knowledge, answer the query.\nQuery: {_ASK}\nAnswer: ",
    "langchain": "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to "
    f"answer the question.\nQuestion: {_ASK} \nContext: plan, compare \nAnswer:",
    "question last": f"Answer based only on the following context:\nplan\n\nQuestion: {_ASK}",
}


@pytest.mark.parametrize("name", _WRAPPED)
def test_a_persons_words_are_found_in_harness_text(name: str) -> None:
    assert user_text(_WRAPPED[name]) == _ASK


@pytest.mark.parametrize(
    "text",
    ["is 3 < 4 or 5 > 4?", "fix <div>this</div> for me", "<system-reminder> never closed", "Question: who won?",
     "context: what does it mean?", "explain Vec<String> and HashMap<String, Vec<u8>>", ""],
)  # fmt: skip
def test_what_a_person_writes_stays(text: str) -> None:
    assert user_text(text) == text


def test_a_message_of_a_program_alone_says_nothing() -> None:
    reminder = {"role": "user", "content": "<system-reminder>the todo list is empty</system-reminder>"}
    assert read_messages([("user", _ASK), ("assistant", "noon"), reminder]).query == _ASK


@pytest.mark.parametrize("text_of", [lambda n: "<a_b>" * 2 * n, lambda n: "<a_b></a_b>" * n,
                                     lambda n: "context: question: " * (n // 2),
                                     lambda n: "".join(f"<a_{i}>" for i in range(n))])  # fmt: skip
def test_separating_takes_time_in_proportion(text_of: Callable[[int], str]) -> None:
    def processor_s(text: str) -> float:
        began_s = time.process_time()
        user_text(text)
        return time.process_time() - began_s

    eighth_s = max(processor_s(text_of(25_000)), 0.005)
    assert processor_s(text_of(200_000)) < 24 * eighth_s  # eight times the text; quadratic would be 64 times


def test_values_without_end_are_refused_at_once() -> None:
    tree: dict[str, Any] = {}
    tree.update(left=tree, right=tree)
    shared: Any = "x"
    for _ in range(40):
        shared = [shared, shared]
    began = time.process_time()
    for endless in (tree, shared, [tree]):
        with pytest.raises(ValueError, match="itself"):
            check_bounded(endless)
    assert time.process_time() - began < 1.0
    with pytest.raises(QueryError, match="arguments"):
        read_messages([("user", "x"), {"role": "assistant", "tool_calls": [{"function": {"arguments": tree}}]}])
    part: dict[str, Any] = {"type": "text"}
    part["content"] = [part, part]
    assert read_messages([{"role": "user", "content": [part, "hi"]}]).query == "hi"
