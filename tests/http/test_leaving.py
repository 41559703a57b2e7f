"""A client that leaves ends its generation, a stop lets answers finish, and too many callers are told at once."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from router_ml.errors import SettingsError
from router_ml.http.options import ServerOptions
from router_ml.http.server import listen
from tests.http.conftest import Running
from tests.http.test_ollama_client import HELLO
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.serve.conftest import MODELS

LONG = " ".join(["word"] * 2000)


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    """Its models talk for twenty seconds."""
    models = [DoubleModel(name, LONG, decode_tokens_per_s=100.0) for name in MODELS]
    with OllamaDouble(models) as running:
        yield running


def until(condition: Callable[[], bool], limit_s: float) -> float:
    """Seconds until a condition holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it never came to hold"
        time.sleep(0.005)
    return time.monotonic() - began


def begin(server: Running, path: str, body: dict[str, object]) -> socket.socket:
    """A raw request whose answer nobody reads."""
    data = json.dumps(body).encode()
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return sock


@pytest.mark.parametrize("model", ["auto", MODELS[0]])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_client_that_leaves_frees_its_slot(
    server_of: Callable[..., Running], double: OllamaDouble, path: str, stream: bool, model: str
) -> None:
    server = server_of()
    sock = begin(server, path, {"model": model, "messages": HELLO, "stream": stream})
    until(lambda: MODELS[0] in double.scheduler.memory.loaded, 3.0)
    until(lambda: double.scheduler.memory.loaded[MODELS[0]].busy == 1, 3.0)
    time.sleep(0.1)
    sock.close()
    assert until(lambda: double.scheduler.memory.loaded[MODELS[0]].busy == 0, 3.0) < 0.2
    assert not double.generations[-1].finished


def test_too_many_requests_are_refused_at_once(server_of: Callable[..., Running]) -> None:
    server = server_of(max_requests=4)
    held = [begin(server, "/api/chat", {"model": "auto", "messages": HELLO}) for _ in range(4)]
    time.sleep(0.3)
    with server.client() as client:
        client.get("/healthz")
        took_s = []
        for _ in range(3):  # a busy neighbour makes one slower, never quicker
            began = time.perf_counter()
            refused = client.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO})
            took_s.append(time.perf_counter() - began)
        alive = client.get("/healthz")
    for sock in held:
        sock.close()
    assert (refused.status_code, alive.status_code) == (503, 200)
    assert int(refused.headers["retry-after"]) >= 1
    assert min(took_s) < 0.05


def test_full_queues_refuse_at_the_door(server_of: Callable[..., Running], double: OllamaDouble) -> None:
    server = server_of(o_parallel=1, o_max_waiting=0)
    decider = server.service.decider
    held = begin(server, "/api/chat", {"model": "auto", "messages": HELLO})  # the others would have to be loaded
    until(lambda: len(double.generations) == 1, 5.0)
    decided = len(decider.seen)  # type: ignore[attr-defined]
    with server.client() as client:
        refused = client.post("/v1/messages", json={"model": "auto", "messages": HELLO, "max_tokens": 5})
    held.close()
    assert refused.status_code == 529
    assert refused.json()["error"]["type"] == "overloaded_error"
    assert int(refused.headers["retry-after"]) >= 1
    assert len(decider.seen) == decided  # type: ignore[attr-defined]


def test_a_stop_lets_a_stream_finish(server_of: Callable[..., Running]) -> None:
    quick = DoubleModel(MODELS[0], " ".join(["word"] * 80), decode_tokens_per_s=100.0)
    with OllamaDouble([quick]) as double:
        server = server_of(hosts=(double.url,), stop_s=5.0)

        def read() -> str:
            with httpx.stream("POST", f"{server.url}/api/chat", json={"model": "auto", "messages": HELLO}) as answer:
                return "".join(answer.iter_text())

        with concurrent.futures.ThreadPoolExecutor() as pool:
            reading = pool.submit(read)
            until(lambda: bool(double.generations), 3.0)
            threading.Thread(target=server.stop).start()
            said = reading.result(10)
    assert json.loads(said.splitlines()[-1])["done"] is True


def test_nobody_finds_the_host_and_is_told_so(server_of: Callable[..., Running]) -> None:
    server = server_of(hosts=("http://127.0.0.1:9",))
    with server.client() as client:
        routed = client.post("/api/chat", json={"model": "auto", "messages": HELLO})
        named = client.post("/v1/chat/completions", json={"model": "qwen3:8b", "messages": HELLO})
        ready = client.get("/readyz")
    assert routed.status_code in (502, 503)
    assert "Ollama" in named.json()["error"]["message"]
    assert (named.status_code, ready.status_code) == (502, 503)


def test_named_models_are_spread_over_the_hosts_that_have_them(server_of: Callable[..., Running]) -> None:
    slow = [DoubleModel(MODELS[0], "one two three four five", decode_tokens_per_s=20.0)]
    with OllamaDouble(slow) as one, OllamaDouble(slow) as two, OllamaDouble([]) as none:
        server = server_of(hosts=(none.url, one.url, two.url))
        with server.client() as client, concurrent.futures.ThreadPoolExecutor() as pool:
            body = {"model": MODELS[0], "messages": HELLO, "stream": False}
            statuses = list(pool.map(lambda _: client.post("/api/chat", json=body).status_code, range(4)))
        assert statuses == [200] * 4
        assert (len(one.generations), len(two.generations)) == (2, 2)
        assert not none.generations


def test_parts_of_a_stream_are_sent_at_once(server_of: Callable[..., Running]) -> None:
    spoken = DoubleModel(MODELS[0], " ".join(["word"] * 20), decode_tokens_per_s=1000.0)
    with OllamaDouble([spoken]) as double:
        server = server_of(hosts=(double.url,))
        with server.client() as client:
            took_s = []
            for _ in range(5):
                began = time.perf_counter()
                client.post("/api/chat", json={"model": MODELS[0], "messages": HELLO})
                took_s.append(time.perf_counter() - began)
    assert min(took_s) < 0.2  # twenty parts, each of which waited for 40 ms where small packets were held back


def test_a_taken_port_is_an_error_that_says_so(server: Running) -> None:
    with pytest.raises(SettingsError, match="choose another --port"):
        listen(ServerOptions(port=server.port))
