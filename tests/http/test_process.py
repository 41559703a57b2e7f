"""`router-ml serve` and `router-ml keys` as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.http.test_ollama_client import HELLO
from tests.ollama_double import OllamaDouble
from tests.timing import PATIENCE_S, until

ROUTER_ML = (sys.executable, "-m", "router_ml")


def run(*arguments: str, state: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ROUTER_ML_STATE_DIR": str(state)}
    return subprocess.run(
        [*ROUTER_ML, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def _listens(url: str) -> bool:
    try:
        httpx.get(f"{url}/healthz", timeout=PATIENCE_S)
    except httpx.TransportError:
        return False
    return True


def test_it_serves_until_a_signal_and_loses_no_event(double: OllamaDouble, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*ROUTER_ML, "serve", "--port", str(port), "--ollama", double.url],
        env={**os.environ, "ROUTER_ML_STATE_DIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _listens(url) or process.poll() is not None, 120.0)
        answers = [
            httpx.post(
                f"{url}/api/chat", json={"model": "auto", "messages": HELLO, "stream": False}, timeout=PATIENCE_S
            )
            for _ in range(3)
        ]
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=PATIENCE_S)[1]
    finally:
        process.kill()
    assert [answer.status_code for answer in answers] == [200] * 3
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("message") == f"ready: {url}" for line in lines)
    written = run("events", "export", "--what", "events", "--out", "-", state=tmp_path).stdout
    ids = [answer.headers["x-router-ml-decision-id"] for answer in answers]
    assert all(written.count(decision_id) >= 2 for decision_id in ids)  # its decision and its outcome


def test_it_does_not_listen_on_the_network_without_keys(tmp_path: Path) -> None:
    ended = run("serve", "--host", "0.0.0.0", "--port", "0", state=tmp_path)
    assert ended.returncode == 2
    assert "router-ml keys add NAME" in ended.stderr


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--policy-file", "/nowhere.toml"]])
def test_wrong_options_are_one_line(tmp_path: Path, arguments: list[str]) -> None:
    ended = run("serve", *arguments, state=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    secret = run("keys", "add", "ann", "--policy", "fast", "--per-minute", "30", state=tmp_path).stdout.strip()
    assert secret.startswith("rml-")
    assert run("keys", "add", "ann", state=tmp_path).returncode == 2
    listed = run("keys", "list", state=tmp_path).stdout
    assert listed.split()[:5] == ["ann", "fast", "30", "a", "minute"]
    assert secret not in listed
    assert run("keys", "revoke", "ann", state=tmp_path).returncode == 0
    assert run("keys", "list", state=tmp_path).stdout == ""


def test_the_help_shows_how_to_point_each_client_at_it(tmp_path: Path) -> None:
    shown = run("serve", "--help", state=tmp_path).stdout
    for client in ("Open WebUI", "Continue", "Cline", "Claude Code", "Codex", "LangChain", "ollama run auto"):
        assert client in shown


def test_deciding_imports_no_server() -> None:
    code = (
        "import sys, router_ml; router_ml.select_model('check email'); import router_ml.cli; router_ml.cli.parser(); "
    )
    code += "print([m for m in ('starlette', 'uvicorn', 'jinja2', 'httptools') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout
    assert shown.strip() == "[]"
