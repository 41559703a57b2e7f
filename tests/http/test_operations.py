"""Health, figures, logs, feedback and decisions of a running server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import pytest

from tests.http.conftest import Running
from tests.http.test_ollama_client import HELLO
from tests.timing import PATIENCE_S

CHAT = {"model": "auto", "messages": HELLO, "stream": False}
TIERS = {
    "type": "choice",
    "instructions": "which tier?",
    "criteria": {"SIMPLE": None, "MEDIUM": None, "COMPLEX": "hard"},
}


def test_the_server_is_alive_and_ready(server: Running) -> None:
    with server.client() as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json()["hosts"] == {"answering": 1, "of": 1}


def test_rules_in_place_of_a_bundle_are_not_ready(server_of: Callable[..., Running]) -> None:
    from router_ml.catalogue import load_catalogue
    from router_ml.decide.router import Router

    server = server_of(decider=Router.heuristic(load_catalogue(), why="no bundle"))
    with server.client() as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "no bundle" in answer.json()["bundle"]["problem"]


def test_metrics_count_what_was_served(server: Running) -> None:
    with server.client() as client:
        for _ in range(3):
            client.post("/api/chat", json=CHAT)
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gen_ai_request_model="llama3.2:3b-instruct"} 3' in answer.text


def test_a_request_is_one_line_of_json_without_its_text(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="router_ml.http.access")
    secret = [{"role": "user", "content": "my password is hunter2"}]
    with server.client() as client:
        answer = client.post(
            "/api/chat?q=hunter2",
            json={**CHAT, "messages": secret},
            headers={"x-request-id": "r-1", "x-router-ml-user": "u"},
        )
        odd = client.get("/healthz", headers={"x-request-id": "no\tgood id"})
    lines = [json.loads(record.getMessage()) for record in caplog.records if record.name == "router_ml.http.access"]
    line = next(row for row in lines if row["path"] == "/api/chat")
    assert (line["request_id"], line["method"], line["status"]) == ("r-1", "POST", 200)
    assert line["decision_id"] == answer.headers["x-router-ml-decision-id"]
    assert line["ms"] > 0
    assert "hunter2" not in caplog.text
    assert answer.headers["x-request-id"] == "r-1"
    assert odd.headers["x-request-id"] not in ("", "no\tgood id")


def test_the_level_of_the_log_changes_while_it_runs(server: Running) -> None:
    before = logging.getLogger("router_ml").level
    try:
        with server.client() as client:
            assert client.put("/admin/log-level", json={"level": "DEBUG"}).json() == {"level": "DEBUG"}
            assert client.get("/admin/log-level").json() == {"level": "DEBUG"}
            assert client.put("/admin/log-level", json={"level": "LOUD"}).status_code == 400
        assert logging.getLogger("router_ml").level == logging.DEBUG
    finally:
        logging.getLogger("router_ml").setLevel(before)


@pytest.mark.parametrize(("said", "score"), [({"thumb": "up"}, 1.0), ({"thumb": False}, 0.0), ({"score": 0.25}, 0.25)])
def test_feedback_reaches_the_decision(server: Running, said: dict[str, object], score: float) -> None:
    with server.client() as client:
        decision_id = client.post("/api/chat", json=CHAT).headers["x-router-ml-decision-id"]
        given = client.post("/feedback", json={"decision_id": decision_id, "comment": "so so", **said})
        assert server.service.watch.writer.flush(PATIENCE_S)
        found = client.get(f"/decisions/{decision_id}").json()
    assert given.json() == {"decision_id": decision_id, "score": score, "known": True}
    assert [row["score"] for row in found["feedback"]] == [score]
    assert found["decision"]["model"] == "llama3.2:3b-instruct"
    assert found["outcomes"][0]["ok"] is True


@pytest.mark.parametrize(
    "body",
    [{}, {"decision_id": "x"}, {"decision_id": "x", "score": 2}, {"decision_id": "x", "score": True},
     {"decision_id": "x", "thumb": "left"}, {"decision_id": "x", "thumb": "up", "score": 1},
     {"decision_id": "x\n", "score": 1}, {"decision_id": "x" * 65, "score": 1}, {"decision_id": 3, "score": 1},
     {"decision_id": "x", "score": 1, "comment": 3}],
)  # fmt: skip
def test_odd_feedback_is_refused(server: Running, body: dict[str, object]) -> None:
    with server.client() as client:
        assert client.post("/feedback", json=body).status_code == 400


def test_an_unknown_decision_is_not_found(server: Running) -> None:
    with server.client() as client:
        assert client.get("/decisions/nope").status_code == 404


def test_a_decision_without_any_call(server: Running) -> None:
    with server.client() as client:
        answer = client.post("/v1/decide", json={"query": "Hello", "policy": "fast", "context": {"n_tools": 2}})
        by_messages = client.post(
            "/v1/decide", json={"messages": [*HELLO, {"role": "assistant", "content": "Hi"}, *HELLO]}
        )
        wrong = client.post("/v1/decide", json={"query": "Hello", "policy": "../../etc/passwd.toml"})
    query, context, policy, _, _ = server.service.decider.seen[0]  # type: ignore[attr-defined]
    assert (query, context["n_tools"], policy.name) == ("Hello", 2, "fast")
    assert answer.json()["model"] == "llama3.2:3b-instruct"
    assert answer.headers["x-router-ml-decision-id"] == answer.json()["decision_id"]
    assert len(server.service.decider.seen[1][1]["history"]) == 2  # type: ignore[attr-defined]
    assert (by_messages.status_code, wrong.status_code) == (200, 404)


@pytest.mark.parametrize(
    "state", ["Hello", HELLO, {"messages": HELLO}, {"query": "Hello"}, {"user_request": "Hello", "other": 3}]
)
def test_tiers_are_answered_with_probabilities(server: Running, state: object) -> None:
    with server.client() as client:
        answer = client.post(
            "/v1/systemone", json={"model": "auto", "state": state, "questions": {"tier": TIERS}}
        ).json()
    tier = answer["answers"]["tier"]
    assert (tier["type"], tier["choice"]) == ("choice", "SIMPLE")
    assert tier["probabilities"] == {"SIMPLE": 1.0, "MEDIUM": 0.0, "COMPLEX": 0.0}
    assert tier["confidence"] == 1.0
    assert server.service.decider.seen[-1][0] == "Hello"  # type: ignore[attr-defined]


def test_models_and_roles_are_answered_by_utility(server: Running) -> None:
    criteria = {"qwen3:8b": "large", "qwen2.5:3b-instruct": "small"}
    question = {"type": "choice", "instructions": "which model?", "criteria": criteria}
    with server.client() as client:
        answer = client.post("/v1/systemone", json={"state": "Hello", "questions": {"m": question}}).json()["answers"][
            "m"
        ]
    # utilities .8 and .9: a lead of .1 is one temperature, so the odds are e to 1
    assert answer["probabilities"]["qwen2.5:3b-instruct"] == pytest.approx(0.7310585786)
    assert answer["choice"] == "qwen2.5:3b-instruct"
    assert answer["confidence"] == pytest.approx(2 * 0.7310585786 - 1)


def test_a_scale_of_labels_is_a_score(
    server_of: Callable[..., Running], router_that_says: Callable[..., object]
) -> None:
    server = server_of(decider=router_that_says("moderate", 0.7))
    question = {"type": "score", "instructions": "how hard?", "criteria": ["simple", "moderate", "complex"]}
    with server.client() as client:
        answer = client.post("/v1/systemone", json={"state": "Hello", "questions": {"q": question}}).json()["answers"][
            "q"
        ]
    assert answer["score"] == pytest.approx(1.0)  # .1, .7, .1 on 0, 1, 2, spread over the three
    assert answer["probabilities"]["1"] == pytest.approx(0.7 / 0.9, abs=1e-6)
    assert answer["legend"] == {"0": "simple", "1": "moderate", "2": "complex"}


@pytest.mark.parametrize(
    "question",
    [{"type": "noul", "instructions": "is it spam?"},
     {"type": "choice", "instructions": "who?", "criteria": {"ann": None, "bob": None}},
     {"type": "choice", "instructions": "who?", "criteria": {"simple": None, "bob": None}},
     {"type": "choice", "instructions": "who?", "criteria": {"simple": None}}],
)  # fmt: skip
def test_any_other_question_is_said_to_be_none_of_ours(server: Running, question: dict[str, object]) -> None:
    with server.client() as client:
        answer = client.post("/v1/systemone", json={"state": "Hello", "questions": {"q": question}})
    assert answer.status_code == 422
    assert "models of the catalogue" in answer.json()["error"]["message"]


def test_a_large_state_is_refused(server: Running) -> None:
    with server.client() as client:
        answer = client.post("/v1/systemone", json={"state": "x" * 70_000, "questions": {"tier": TIERS}})
    assert answer.status_code == 413


def test_a_browser_gets_the_page_and_other_clients_what_they_know_from_ollama(server: Running) -> None:
    with server.client() as client:
        client.post("/api/chat", json=CHAT)
        page = client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
        plain = client.get("/")
        explained = client.post("/dashboard/explain", data={"query": "Hello", "policy": "fast"})
        unknown = client.post("/dashboard/explain", data={"query": "Hello", "policy": "/etc/x.toml"})
    assert "llama3.2:3b-instruct" in page.text
    assert plain.text == "Ollama is running"
    assert "llama3.2:3b-instruct" in explained.text
    assert (unknown.status_code, "unknown policy" in unknown.text) == (200, True)
