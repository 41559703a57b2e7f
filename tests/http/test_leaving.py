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
from tests.timing import PATIENCE_S, best, until

LONG = " ".join(["word"] * 2000)


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    """Its models talk for twenty seconds."""
    models = [DoubleModel(name, LONG, decode_tokens_per_s=100.0) for name in MODELS]
    with OllamaDouble(models) as running:
        yield running


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

    def freed_after_s() -> float:
        sock = begin(server, path, {"model": model, "messages": HELLO, "stream": stream})
        until(lambda: MODELS[0] in double.scheduler.memory.loaded)
        until(lambda: double.scheduler.memory.loaded[MODELS[0]].busy == 1)
        time.sleep(0.1)
        sock.close()
        took_s = until(lambda: double.scheduler.memory.loaded[MODELS[0]].busy == 0)
        assert not double.generations[-1].finished
        return took_s

    assert best(freed_after_s, 0.2) < 0.2


def test_too_many_requests_are_refused_at_once(server_of: Callable[..., Running], double: OllamaDouble) -> None:
    server = server_of(max_requests=4)
    held = [begin(server, "/api/chat", {"model": "auto", "messages": HELLO}) for _ in range(4)]
    until(lambda: len(double.generations) == 4)
    with server.client() as client:
        client.get("/healthz")

        def refused_after_s() -> float:
            began_s = time.perf_counter()
            refused = client.post("/v1/chat/completions", json={"model": "auto", "messages": HELLO})
            took_s = time.perf_counter() - began_s
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            return took_s

        took_s = best(refused_after_s, 0.05)
        alive = client.get("/healthz")
    for sock in held:
        sock.close()
    assert alive.status_code == 200
    assert took_s < 0.05


def test_full_queues_refuse_at_the_door(server_of: Callable[..., Running], double: OllamaDouble) -> None:
    server = server_of(o_parallel=1, o_max_waiting=0)
    decider = server.service.decider
    held = begin(server, "/api/chat", {"model": "auto", "messages": HELLO})  # the others would have to be loaded
    until(lambda: len(double.generations) == 1)
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
        server = server_of(hosts=(double.url,), stop_s=PATIENCE_S)

        def read() -> str:
            body = {"model": "auto", "messages": HELLO}
            with httpx.stream("POST", f"{server.url}/api/chat", json=body, timeout=PATIENCE_S) as answer:
                return "".join(answer.iter_text())

        with concurrent.futures.ThreadPoolExecutor() as pool:
            reading = pool.submit(read)
            until(lambda: bool(double.generations))
            threading.Thread(target=server.stop).start()
            said = reading.result(PATIENCE_S)
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
    slow = [DoubleModel(MODELS[0], LONG, decode_tokens_per_s=100.0, parallel=4)]  # none ends before the last begins
    with OllamaDouble(slow) as one, OllamaDouble(slow) as two, OllamaDouble([]) as none:
        server = server_of(hosts=(none.url, one.url, two.url))
        held = [begin(server, "/api/chat", {"model": MODELS[0], "messages": HELLO}) for _ in range(4)]
        statuses = [sock.recv(12) for sock in held]
        for sock in held:
            sock.close()
        assert statuses == [b"HTTP/1.1 200"] * 4
        assert (len(one.generations), len(two.generations)) == (2, 2)
        assert not none.generations


def test_parts_of_a_stream_are_sent_at_once(server_of: Callable[..., Running]) -> None:
    spoken = DoubleModel(MODELS[0], " ".join(["word"] * 100), decode_tokens_per_s=1000.0)
    with OllamaDouble([spoken]) as double:
        server = server_of(hosts=(double.url,))
        with server.client() as client:

            def answered_after_s() -> float:
                began_s = time.perf_counter()
                client.post("/api/chat", json={"model": MODELS[0], "messages": HELLO})
                return time.perf_counter() - began_s

            took_s = best(answered_after_s, 1.0)
    assert took_s < 1.0  # a hundred parts, each of which waited for 40 ms where small packets were held back


def test_a_taken_port_is_an_error_that_says_so(server: Running) -> None:
    with pytest.raises(SettingsError, match="choose another --port"):
        listen(ServerOptions(port=server.port))
