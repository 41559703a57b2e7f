"""Forks, dropped gateways, the end of the interpreter, and an environment that points nowhere."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from router_ml.errors import SettingsError
from router_ml.events.connect import open_store
from router_ml.events.event import OutcomeEvent
from router_ml.events.store import EventFilter
from router_ml.hosts.http import http_client
from router_ml.serve import Gateway
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.serve.conftest import MODELS
from tests.serve.deciders import FixedDecider, catalogue_of
from tests.timing import until

HELLO = [{"role": "user", "content": "Hello"}]
LLAMA = MODELS[0]


def _in_child(work: Callable[[], object], patience_s: float = 60.0) -> bytes:
    """What a forked child's work gave, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(work()).encode())
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write)
    limit = time.monotonic() + patience_s
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > limit:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    said = os.read(read, 10_000)
    os.close(read)
    return said


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads: that is the point


def test_a_gateway_answers_in_a_forked_process_and_goes_on_in_the_parent(gateway) -> None:
    gateway.chat(HELLO)
    assert _in_child(lambda: [gateway.chat(HELLO).model for _ in range(3)]) == str([LLAMA] * 3).encode()
    assert gateway.chat(HELLO).model == LLAMA


def test_a_fork_while_requests_run_leaves_child_and_parent_served(gateway, double) -> None:
    double.models[LLAMA] = DoubleModel(LLAMA, decode_tokens_per_s=20.0, parallel=8)
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(gateway.chat(HELLO).model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(double.generations) == 4)
    streamed = _in_child(lambda: "".join(part.message.content or "" for part in gateway.chat(HELLO, stream=True)))
    for thread in threads:
        thread.join(60)
    assert (streamed, answers) == (b"Here is the answer.", [LLAMA] * 4)


def test_closing_a_gateway_in_a_forked_process_is_no_trouble(gateway) -> None:
    gateway.chat(HELLO)
    assert _in_child(lambda: (gateway.close(), gateway.close())) == b"(None, None)"
    assert gateway.chat(HELLO).model == LLAMA


def _open() -> tuple[int, int]:
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors as Linux shows them")
def test_a_gateway_that_nobody_holds_leaves_no_thread_and_no_descriptor(double, recording) -> None:
    closed: list[bool] = []

    def once() -> None:
        gateway = Gateway(
            FixedDecider(*MODELS), catalogue_of(*MODELS), default_host=double.url, recorder=recording,
            closers=[lambda: closed.append(True)],
        )  # fmt: skip
        gateway.chat(HELLO)

    once()
    until(lambda: len(closed) == 1)
    before = _open()
    for _ in range(5):
        once()
    until(lambda: len(closed) == 6)
    until(lambda: _open()[0] <= before[0] and _open()[1] <= before[1] + 2)
    assert len(recording.of(OutcomeEvent)) == 6


def _run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key.lower() not in ("all_proxy", "no_proxy")}
    return subprocess.run([sys.executable, "-c", code], env={**kept, **env}, capture_output=True, text=True, timeout=60)


BUILD = "from router_ml.serve.build import build_gateway\nfrom router_ml.decide.router import Router\n"


def test_events_of_a_gateway_local_to_a_function_are_stored(tmp_path) -> None:
    code = BUILD + "def main():\n    build_gateway(decider=Router.heuristic()).chat('Hello')\nmain()\n"
    with OllamaDouble() as double:
        run = _run(code, OLLAMA_HOST=double.url, ROUTER_ML_STATE_DIR=str(tmp_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert len(list(open_store(tmp_path).read(EventFilter()))) == 3


@pytest.mark.parametrize(
    "env",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        {"ALL_PROXY": "socks://127.0.0.1:9/"},
        {"SSL_CERT_FILE": "/no/such/file.pem"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_proxies_and_certificates_are_no_concern_of_a_host_on_this_machine(tmp_path, env) -> None:
    code = BUILD + "print(build_gateway(decider=Router.heuristic()).chat('Hello').message.content)"
    with OllamaDouble() as double:
        run = _run(code, OLLAMA_HOST=double.url, ROUTER_ML_STATE_DIR=str(tmp_path), **env)
    assert (run.returncode, run.stdout.strip()) == (0, "Qwen two says hello."), run.stderr


@pytest.mark.parametrize(
    ("name", "value", "url", "says"),
    [
        ("ALL_PROXY", "socks://user:secret@127.0.0.1:9/", "http://example.com:11434", "NO_PROXY"),
        ("ALL_PROXY", "socks5://127.0.0.1:9/", "http://example.com:11434", "ALL_PROXY"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_setting_to_correct(monkeypatch, name, value, url, says) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=says) as error:
        http_client(url, None)
    assert "secret" not in str(error.value)
