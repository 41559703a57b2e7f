"""The ollama client against the server, as its users call it."""

from __future__ import annotations

import base64
from collections.abc import Callable

import ollama
import pytest

from tests.http.conftest import Running
from tests.ollama_double import Fault, OllamaDouble
from tests.serve.conftest import MODELS

HELLO = [{"role": "user", "content": "Hello"}]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def client(server: Running) -> ollama.Client:
    return ollama.Client(host=server.url)


def test_routed_models_are_listed_before_those_of_the_host(client: ollama.Client) -> None:
    names = [model.model for model in client.list().models]
    assert names == ["auto", "auto:fast", "auto:balanced", "auto:accurate", *MODELS]


def test_a_routed_model_shows_its_capabilities_and_context_length(client: ollama.Client) -> None:
    shown = client.show("auto")
    assert "completion" in (shown.capabilities or [])
    assert "tools" in (shown.capabilities or [])
    info = shown.modelinfo or {}
    assert info[f"{info['general.architecture']}.context_length"] >= 4096


def test_a_chat_is_answered_by_the_chosen_model(client: ollama.Client) -> None:
    answer = client.chat("auto", messages=HELLO)
    assert answer.message.content == "The llama says hello."
    assert answer.model == MODELS[0]
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "stop", 6)


def test_a_chat_streams_by_default_on_the_wire(server: Running) -> None:
    with server.client() as client:
        answer = client.post("/api/chat", json={"model": "auto", "messages": HELLO})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["x-router-ml-model"] == MODELS[0]
    assert answer.text.count("\n") == 6


def test_a_stream_says_the_same_as_the_whole_answer(client: ollama.Client) -> None:
    parts = list(client.chat("auto", messages=HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "The llama says hello."
    assert [part.done for part in parts[-2:]] == [False, True]
    assert parts[-1].eval_count == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_comes_back(client: ollama.Client, stream: bool) -> None:
    given = client.chat("auto", messages=HELLO, tools=[WEATHER], stream=stream)
    parts = list(given) if stream else [given]
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [(call.function.name, dict(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Paris"})
    ]


def test_an_image_reaches_the_model(client: ollama.Client, double: OllamaDouble) -> None:
    client.chat("auto", messages=[{"role": "user", "content": "what is it?", "images": [PIXEL]}])
    assert double.generations[-1].body["messages"][0]["images"] == [base64.b64encode(PIXEL).decode()]


def test_the_name_of_a_file_of_the_server_is_no_image(server: Running, double: OllamaDouble) -> None:
    turn = {"role": "user", "content": "what is it?", "images": ["/etc/hostname"]}
    with server.client() as client:
        answer = client.post("/api/chat", json={"model": "auto", "messages": [turn]})
    assert answer.status_code == 400
    assert "base64" in answer.json()["error"]
    assert not double.generations


def test_an_unknown_policy_is_a_model_that_is_not_there(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="auto:slow") as raised:
        client.chat("auto:slow", messages=HELLO)
    assert raised.value.status_code == 404


def test_a_missing_model_is_missing_as_the_host_says(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="'nope' not found") as raised:
        client.chat("nope", messages=HELLO)
    assert raised.value.status_code == 404


def test_every_model_failing_is_an_error_with_a_status(client: ollama.Client, double: OllamaDouble) -> None:
    double.faults.set("*", Fault.ERROR_500)
    with pytest.raises(ollama.ResponseError) as raised:
        client.chat("auto", messages=HELLO)
    assert raised.value.status_code in (502, 503)


def test_a_stream_that_breaks_off_ends_with_an_error_line(client: ollama.Client, double: OllamaDouble) -> None:
    double.faults.set("*", Fault.RESET_MID_STREAM)
    with pytest.raises(ollama.ResponseError):
        list(client.chat("auto", messages=HELLO, stream=True))


def test_a_prompt_decides_on_the_model(client: ollama.Client, double: OllamaDouble) -> None:
    assert client.generate("auto", prompt="Hello", suffix="!").response == "The llama says hello."
    assert double.generations[-1].body["suffix"] == "!"
    assert double.generations[-1].model == MODELS[0]


@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), (0, "unload")])
def test_loading_auto_has_nothing_to_load(client: ollama.Client, keep_alive: int | None, reason: str) -> None:
    assert client.generate("auto", keep_alive=keep_alive).done_reason == reason
    assert client.chat("auto", messages=[], keep_alive=keep_alive).done_reason == reason


def test_embeddings_need_a_named_model(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="name the embedding model"):
        client.embed("auto", input="Hello")


def test_managing_models_is_off_by_default(client: ollama.Client, double: OllamaDouble) -> None:
    for work in (lambda: client.pull("x"), lambda: client.delete("qwen3:8b"), lambda: client.copy("a", "b")):
        with pytest.raises(ollama.ResponseError, match="--manage-models") as raised:
            work()
        assert raised.value.status_code == 403
    assert not any(seen.path in ("/api/pull", "/api/delete", "/api/copy") for seen in double.seen)


def test_managing_models_passes_where_it_is_on(server_of: Callable[..., Running], double: OllamaDouble) -> None:
    server = server_of(manage_models=True)
    with pytest.raises(ollama.ResponseError):  # the double has no such path
        ollama.Client(host=server.url).pull("x")
    assert double.seen[-1].path == "/api/pull"


async def test_the_async_client_streams(server: Running) -> None:
    client = ollama.AsyncClient(host=server.url)
    parts = [part async for part in await client.chat("auto", messages=HELLO, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == "The llama says hello."


def test_policy_files_are_models(server_of: Callable[..., Running], tmp_path: object) -> None:
    import pathlib

    file = pathlib.Path(str(tmp_path)) / "thrifty.toml"
    file.write_text('preset = "fast"\nmin_p_success = 0.2\n')
    server = server_of(policy_files=(file,))
    assert "auto:thrifty" in [model.model for model in ollama.Client(host=server.url).list().models]
    ollama.Client(host=server.url).chat("auto:thrifty", messages=HELLO)
    policy = server.service.decider.seen[-1][2]  # type: ignore[attr-defined]
    assert (policy.name, policy.min_p_success) == ("thrifty", 0.2)


def test_headers_choose_policy_budget_session_and_user(server: Running) -> None:
    given = {
        "x-router-ml-policy": "accurate",
        "x-router-ml-budget-s": "2.5",
        "x-claude-code-session-id": "s1",
        "x-router-ml-user": "ann",
    }
    with server.client() as client:
        client.post("/api/chat", json={"model": "auto", "messages": HELLO}, headers=given)
        wrong = client.post(
            "/api/chat", json={"model": "auto", "messages": HELLO}, headers={"x-router-ml-policy": "/etc/x.toml"}
        )
    _, context, policy, _, _ = server.service.decider.seen[-1]  # type: ignore[attr-defined]
    assert policy.name == "accurate"
    assert (context.latency_budget_s, context.session_id, context.extra["user_id"]) == (2.5, "s1", "ann")
    assert wrong.status_code == 404
