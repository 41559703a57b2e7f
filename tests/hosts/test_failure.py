"""What each recorded error of the real server, and each error of the client, means to the chain."""

from __future__ import annotations

import json

import httpx
import ollama
import pytest

from router_ml.hosts.failure import HostError, classify
from tests.ollama_double import load_recordings

RECORDED = {
    "chat_missing": ("missing", None, False),
    "chat_bad_option": ("invalid", None, False),
    "chat_embed_model": ("rejected", "chat", False),
    "chat_think_unsupported": ("rejected", "thinking", False),
    "chat_tools_unsupported": ("rejected", "tools", False),
    "chat_overflow_noshift": ("rejected", None, False),
    "chat_overflow_notruncate": ("rejected", None, False),
    "chat_empty_body": ("invalid", None, False),
    "chat_no_model": ("rejected", None, False),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_errors(name: str) -> None:
    recording = next(r for r in load_recordings() if r.name == name)
    failure = classify(ollama.ResponseError(recording.body, recording.status))
    assert (failure.kind, failure.unsupported, failure.blames_model) == RECORDED[name]
    assert failure.status == recording.status


@pytest.mark.parametrize(
    ("error", "kind", "blames"),
    [
        (ConnectionError("Failed to connect to Ollama."), "refused", False),
        (httpx.ConnectError("refused"), "refused", False),
        (httpx.ConnectTimeout("slow"), "refused", False),
        (httpx.ReadError("reset"), "connection", True),
        (httpx.RemoteProtocolError("cut"), "connection", True),
        (TimeoutError(), "timeout", True),
        (ollama.ResponseError("unexpected EOF", -1), "server_error", True),
        (ollama.ResponseError('{"error":"boom"}', 500), "server_error", True),
        (ollama.ResponseError('{"error":"server busy, please try again."}', 503), "busy", False),
        (json.JSONDecodeError("x", "", 0), "malformed", True),
        (HostError("empty", "nothing"), "empty", False),
    ],
)
def test_errors_of_the_client(error: Exception, kind: str, blames: bool) -> None:
    failure = classify(error)
    assert (failure.kind, failure.blames_model) == (kind, blames)


def test_a_slow_load_is_no_failure_of_the_model() -> None:
    failure = classify(TimeoutError(), cold=True)
    assert failure.kind == "cold_timeout"
    assert not failure.blames_model
