"""An Ollama server as a host: what is read of it, and what is not believed."""

from __future__ import annotations

import gzip
import json
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ollama
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.hosts.failure import HostError
from router_ml.hosts.host import HostRequest
from router_ml.hosts.http import MAX_LIST_BYTES, MAX_REPLY_BYTES
from router_ml.hosts.names import ModelNames
from router_ml.hosts.ollama import OllamaHost
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import response_of
from tests.ollama_double import load_recordings

NAMES = ModelNames(load_catalogue())
LLAMA = "llama3.2:3b-instruct"
STREAMS = ("chat_stream", "chat_think_stream", "chat_tools_stream")
HELLO = HostRequest(LLAMA, {"messages": [{"role": "user", "content": "Hello"}]})
GOOD = {"model": LLAMA, "message": {"role": "assistant", "content": "ok"}, "done": True, "done_reason": "stop"}


class Server:
    """Answers every request with the same bytes."""

    def __init__(self) -> None:
        self.body = b""
        self.headers: dict[str, str] = {}
        self.seen: list[Any] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.seen.append(self.headers)
                self.send_response(200)
                for header in {**outer.headers, "Content-Length": str(len(outer.body))}.items():
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(outer.body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


async def _chat(server: Server, body: Any) -> Reply:
    server.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    host = OllamaHost(server.url, NAMES)
    try:
        return await host.chat(HELLO)
    finally:
        await host.close()


async def _installed(server: Server, body: Any) -> Any:
    server.body = body if isinstance(body, bytes) else json.dumps(body).encode()
    host = OllamaHost(server.url, NAMES)
    try:
        return await host.installed()
    finally:
        await host.close()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"text"', b"{}", b"[" * 50_000 + b"]" * 50_000, b"<html>",
        {**GOOD, "message": 5}, {**GOOD, "message": {"content": 5}}, {**GOOD, "model": 5},
        {**GOOD, "message": {"content": "", "tool_calls": [5]}},
        {**GOOD, "message": {"content": "", "tool_calls": [{"function": {"name": "f"}}]}},
    ],
)  # fmt: skip
async def test_what_is_no_chat_answer_is_malformed(server: Server, body: Any) -> None:
    with pytest.raises(HostError) as error:
        await _chat(server, body)
    assert error.value.kind == "malformed"


async def test_a_reply_is_read_no_further_than_its_limit(server: Server) -> None:
    with pytest.raises(HostError, match="larger than 32 MiB"):
        await _chat(server, b'{"message": {"content": "' + b"x" * (MAX_REPLY_BYTES + 1) + b'"}}')
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(HostError, match="larger than 8 MiB"):
        await _installed(server, gzip.compress(b'{"models": [' + b" " * 4 * MAX_LIST_BYTES + b"]}", 1))


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "br"])
async def test_a_compressed_reply_is_unpacked_no_further_than_its_limit(server: Server, encoding: str) -> None:
    packed = gzip.compress(b" " * 200_000_000, 1)
    server.headers["Content-Encoding"] = encoding
    tracemalloc.start()
    with pytest.raises(HostError, match=r"larger than|not asked for"):
        await _chat(server, packed)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 3 * MAX_REPLY_BYTES


async def test_a_compressed_reply_is_read(server: Server) -> None:
    server.headers["Content-Encoding"] = "gzip"
    assert (await _chat(server, gzip.compress(json.dumps(GOOD).encode()))).content == "ok"


async def test_figures_that_cannot_be_true_are_left_out(server: Server) -> None:
    odd = {"eval_count": -5, "prompt_eval_count": 10**30, "eval_duration": "x", "load_duration": -(10**18)}
    reply = await _chat(server, {**GOOD, **odd, "total_duration": 2 * 10**9})
    assert (reply.output_tokens, reply.prompt_tokens, reply.eval_s, reply.load_s) == (None, None, None, None)
    assert reply.total_s == pytest.approx(2.0)
    assert response_of(reply).message.content == "ok"


async def test_half_characters_are_replaced(server: Server) -> None:
    body = json.dumps({**GOOD, "message": {"role": "assistant", "content": "a\ud83d"}}).encode()
    assert (await _chat(server, body)).content == "a?"


async def test_an_error_of_megabytes_is_told_in_a_few_words(server: Server) -> None:
    with pytest.raises(HostError) as error:
        await _chat(server, {"error": "x" * 10**6})
    assert (error.value.kind, len(str(error.value.failure))) == ("server_error", 500 + len("server_error: "))


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ([1, "x", None, []], set()),
        ([{"name": 5}, {"name": None}, {"name": "x" * 1000}, {"name": "llama3.2", "size": "x"}], {LLAMA}),
        ([{"name": "y", "size": float("inf"), "capabilities": [[], {}, "tools"]}], {"y"}),
        ([{"name": f"m{i}"} for i in range(100_000)], {f"m{i}" for i in range(2_000)}),
    ],
)
async def test_lists_of_models_are_read_as_far_as_they_make_sense(server: Server, models: Any, names: Any) -> None:
    assert set(await _installed(server, {"models": models})) == names


@pytest.mark.parametrize("models", [None, 5, {}, "x"])
async def test_what_is_no_list_of_models_is_malformed(server: Server, models: Any) -> None:
    with pytest.raises(HostError, match="not a list of models"):
        await _installed(server, {"models": models})


async def test_what_is_loaded_is_read_with_its_window(server: Server) -> None:
    server.body = json.dumps({"models": [{"model": "llama3.2:3b", "context_length": 8192}, {"model": "b"}]}).encode()
    host = OllamaHost(server.url, NAMES)
    assert {name: entry.context_tokens for name, entry in (await host.running()).items()} == {LLAMA: 8192, "b": None}
    await host.close()


async def test_a_login_is_sent_and_not_shown(server: Server) -> None:
    server.body = b'{"models": []}'
    host = OllamaHost(server.url.replace("://", "://ann:secret@"), NAMES)
    await host.installed()
    await host.close()
    assert host.url == server.url
    assert server.seen[-1]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("recording", [r for r in load_recordings() if r.name in STREAMS])
def test_a_joined_stream_is_the_answer_the_client_would_read(recording: Any) -> None:
    wires = [json.loads(line) for line in recording.body.splitlines() if line.strip()]
    parts = [Reply.from_wire(wire) for wire in wires if "message" in wire]
    if not parts or not parts[-1].done:
        pytest.skip("no whole answer")
    whole = response_of(Reply.joined(parts))
    client = [ollama.ChatResponse.model_validate(wire) for wire in wires]
    assert whole.message.content == "".join(part.message.content or "" for part in client)
    assert whole.eval_count == client[-1].eval_count


@pytest.mark.parametrize(
    ("given", "mean"),
    [
        ([{"logprob": -0.5}, {"logprob": -1.5}], -1.0),
        ([{"logprob": 0}, {"logprob": -3.4028234663852886e38}], -15.0),  # "never" counts as -30
        ([{"logprob": 1e-6}], 0.0),  # a rounding error of the server
        ([], None),
        (None, None),
        ("logprobs", None),
        ([{"logprob": "x"}], None),
        ([{"logprob": True}], None),
        ([3], None),
    ],
)
async def test_the_mean_log_probability_is_over_the_tokens_listed(server: Server, given: Any, mean: Any) -> None:
    reply = await _chat(server, {**GOOD, "logprobs": given})
    assert reply.logprob_mean == mean
    hidden = reply.without_logprobs()
    assert "logprobs" not in hidden.wire
    assert hidden.content == reply.content
