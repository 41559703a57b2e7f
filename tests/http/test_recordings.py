"""A model named by its own name: the host's bytes come back as a real server sent them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.http.conftest import Running
from tests.ollama_double import OllamaDouble, Recording, load_recordings

OURS = {"tags", "v1_models"}  # these lists begin with the router's own models


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble(recorded=True) as running:
        yield running


@pytest.mark.parametrize("recording", load_recordings(), ids=lambda r: r.name)
def test_bytes_of_a_host_come_back_unchanged(recording: Recording, server: Running) -> None:
    with server.client() as client:
        answer = client.request(
            recording.method,
            recording.path,
            content=recording.raw_request,
            headers={"content-type": "application/json"} if recording.raw_request else {},
        )
    if recording.name in OURS:
        key = "models" if recording.name == "tags" else "data"
        theirs = [
            entry for entry in answer.json()[key] if not str(entry.get("id") or entry.get("name")).startswith("auto")
        ]
        names = [entry.get("id") or entry.get("name") for entry in theirs]
        assert names == [
            entry.get("id") or entry.get("name") for entry in httpx.Response(200, text=recording.body).json()[key]
        ]
        return
    assert answer.content == recording.body.encode()
    assert answer.status_code == recording.status
    assert answer.headers["content-type"] == recording.content_type


def test_a_stream_is_passed_on_part_by_part(server: Running) -> None:
    recording = next(r for r in load_recordings() if r.name == "chat_stream")
    with server.client() as client, client.stream("POST", "/api/chat", content=recording.raw_request) as answer:
        parts = list(answer.iter_raw())
    assert len(parts) > 1
    assert b"".join(parts) == recording.body.encode()


def test_a_bypassed_request_is_recorded_with_the_tokens_of_its_final_object(
    server_of: Callable[..., Running], double: OllamaDouble
) -> None:
    server = server_of()
    recording = next(r for r in load_recordings() if r.name == "chat_stream")
    with server.client() as client:
        answer = client.post("/api/chat", content=recording.raw_request)
        metrics = client.get("/metrics").text
    assert answer.headers["x-router-ml-reason"] == "named by the caller"
    assert 'gen_ai_request_model="llama3.2:3b-instruct-q4_k_m"} 1' in metrics
    outcome = server.service.recent.latest(1)[0]
    assert (outcome.decision_id, outcome.ok) == (answer.headers["x-router-ml-decision-id"], True)
    assert 'gen_ai_token_type="output"} 6' in "".join(
        line for line in metrics.splitlines() if line.startswith("gen_ai_client_token_usage_sum")
    )
