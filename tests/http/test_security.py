"""Who is let in, and what nobody gets past."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router_ml.errors import SettingsError
from router_ml.http.keys import KeyFile
from router_ml.http.options import ServerOptions
from tests.http.conftest import Running
from tests.http.test_ollama_client import HELLO
from tests.ollama_double import OllamaDouble
from tests.timing import PATIENCE_S, best

CHAT = {"model": "auto", "messages": HELLO}
PATHS = (
    "/", "/api/version", "/api/tags", "/api/ps", "/api/show", "/api/chat", "/api/generate", "/api/embed", "/api/pull",
    "/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/messages", "/v1/decide", "/metrics", "/feedback",
    "/healthz", "/decisions/x", "/dashboard/stream",
)  # fmt: skip
FOREIGN_HOSTS = (
    "evil.example", "evil.example:11435", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.169.254",
    "[::2]", "2130706433", "0x7f000001", "0.0.0.0", "user@127.0.0.1", "127.0.0.1/x", "", "127.0.0.1:x",
    "127.0.0.1, evil",
)  # fmt: skip
FOREIGN_ORIGINS = (
    "http://evil.example",
    "null",
    "http://127.0.0.1:1",
    "https://localhost",
    "file://",
    "http://127.0.0.1.evil",
)


def test_names_that_were_rebound_to_this_machine_are_refused(server: Running, double: OllamaDouble) -> None:
    before = len(double.seen)
    refused = 0
    with server.client() as client:
        for path in PATHS:
            for method in ("GET", "POST"):
                for host in FOREIGN_HOSTS:
                    answer = client.request(method, path, headers={"host": host})
                    assert answer.status_code in (400, 403), (path, host)
                    assert "x-router-ml-model" not in answer.headers
                    refused += 1
    assert refused >= 500
    assert not double.generations
    assert all(seen.path in ("/api/tags", "/api/ps") for seen in double.seen[before:])


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_page_of_another_origin_is_refused(server: Running, double: OllamaDouble, origin: str) -> None:
    with server.client() as client:
        answer = client.post("/api/chat", json=CHAT, headers={"origin": origin, "content-type": "text/plain"})
        preflight = client.options("/api/chat", headers={"origin": origin, "access-control-request-method": "POST"})
    assert (answer.status_code, preflight.status_code) == (403, 403)
    assert "access-control-allow-origin" not in {**answer.headers, **preflight.headers}
    assert not double.generations


def test_an_image_tag_of_another_site_is_refused(server: Running) -> None:
    with server.client() as client:
        other = {"sec-fetch-site": "cross-site"}
        assert client.get("/api/tags", headers=other).status_code == 403
        assert client.get("/api/tags", headers={**other, "sec-fetch-mode": "navigate"}).status_code == 403
        followed = client.get("/", headers={**other, "sec-fetch-mode": "navigate", "accept": "text/html"})
    assert followed.status_code == 200
    assert "frame-ancestors 'none'" in followed.headers["content-security-policy"]


def test_a_page_of_our_own_and_named_origins_may_call(server_of: Callable[..., Running]) -> None:
    server = server_of(allow_origins=("https://chat.example",), allow_hosts=("router.lan",))
    with server.client() as client:
        own = client.get("/api/tags", headers={"origin": server.url})
        named = client.get("/api/tags", headers={"origin": "https://chat.example"})
        by_name = client.get("/api/tags", headers={"host": "router.lan:80"})
        preflight = client.options(
            "/v1/chat/completions", headers={"origin": "https://chat.example", "access-control-request-method": "POST"}
        )
    assert [a.status_code for a in (own, named, by_name, preflight)] == [200, 200, 200, 200]
    assert "access-control-allow-origin" not in own.headers
    assert named.headers["access-control-allow-origin"] == "https://chat.example"


def raw(server: Running, request: bytes, wait_s: float = 3.0) -> bytes:
    """What the server sends back to raw bytes until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as sock:
        sock.sendall(request)
        found = b""
        try:
            while data := sock.recv(65536):
                found += data
        except (TimeoutError, ConnectionError):
            pass
    return found


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\nabcd",
        b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /api/tags HTTP/1.0\r\n\r\n",
        b"GET /api/../api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /api/%2e%2e/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET //evil.example/api/tags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /api%2ftags HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /api/tags\x00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /api/tags HTTP/1.1\r\nHost : localhost\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/api/tags HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)  # fmt: skip
def test_ambiguous_requests_are_not_served(server: Running, double: OllamaDouble, request_bytes: bytes) -> None:
    answer = raw(server, request_bytes, wait_s=0.7)
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert not double.generations


def test_paths_that_are_not_named_do_not_pass(server: Running, double: OllamaDouble) -> None:
    with server.client() as client:
        for path in ("/api/secret", "/v2/x", "/api/chat/x", "/admin", "/api/blobs", "/api/pull/x"):
            assert client.post(path, json={}).status_code == 404
    assert all(seen.path in ("/api/tags", "/api/ps") for seen in double.seen)


def test_a_path_passes_where_it_is_named(server_of: Callable[..., Running], double: OllamaDouble) -> None:
    with server_of(allow_paths=("/api/new",)).client() as client:
        assert client.post("/api/new", json={}).text == "404 page not found"
    assert double.seen[-1].path == "/api/new"


def test_a_large_body_is_refused_before_it_is_read(server_of: Callable[..., Running]) -> None:
    server = server_of(body_limit_bytes=1000)
    with server.client() as client:
        whole = client.post("/v1/chat/completions", content=b"x" * 1001)
        chunked = client.post("/v1/chat/completions", content=iter([b"x" * 600, b"x" * 600]))
        fits = client.post("/v1/chat/completions", json=CHAT)
    assert (whole.status_code, chunked.status_code, fits.status_code) == (413, 413, 200)
    assert whole.json()["error"]["type"] == "invalid_request_error"


def test_large_headers_are_refused(server_of: Callable[..., Running]) -> None:
    server = server_of(header_limit_bytes=4096)
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    answer = raw(server, head + b"X-A: " + b"a" * 5000, wait_s=PATIENCE_S)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_client_that_never_sends_its_headers_is_dropped(server_of: Callable[..., Running]) -> None:
    server = server_of(header_s=0.3)

    def dropped_after_s() -> float:
        began_s = time.monotonic()
        assert raw(server, b"GET /healthz HTTP/1.1\r\nHost: loc", wait_s=PATIENCE_S) == b""
        return time.monotonic() - began_s

    assert best(dropped_after_s, 2.0) < 2.0


def test_a_client_that_never_sends_its_body_is_told_so(server_of: Callable[..., Running]) -> None:
    server = server_of(body_idle_s=0.2)
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
    assert raw(server, head, wait_s=PATIENCE_S).startswith(b"HTTP/1.1 408")


def test_credentials_of_the_client_stay_here(server: Running, double: OllamaDouble) -> None:
    secret = {"authorization": "Bearer sk-secret", "x-api-key": "sk-secret", "cookie": "a=sk-secret"}
    with server.client() as client:
        answer = client.post("/api/chat", json={"model": "qwen3:8b", "messages": HELLO}, headers=secret)
    assert answer.status_code == 200
    assert "sk-secret" not in repr(double.seen)


def test_redirects_of_a_host_are_not_followed(server_of: Callable[..., Running]) -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest")
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    host = HTTPServer(("127.0.0.1", 0), Redirecting)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    try:
        server = server_of(hosts=(f"http://127.0.0.1:{host.server_port}",))
        with server.client() as client:
            assert client.post("/api/embed", json={"model": "x"}).status_code == 302
    finally:
        host.shutdown()
        host.server_close()


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def test_only_the_hash_of_a_key_is_kept_in_a_file_of_its_owner(keys: KeyFile) -> None:
    secret = keys.add("ann", policy="fast", per_minute=5)
    text = keys.path.read_text()
    assert secret not in text
    assert secret.removeprefix("rml-") not in text
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    found = keys.find(secret)
    assert found is not None
    assert (found.user, found.policy, found.per_minute) == ("ann", "fast", 5)
    assert keys.find(secret + "x") is None


def test_a_key_file_others_can_read_is_refused(keys: KeyFile) -> None:
    keys.add("ann")
    keys.path.chmod(0o644)
    os.utime(keys.path, (1, 1))
    with pytest.raises(SettingsError, match="chmod 600"):
        KeyFile(keys.path).all()


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{"user": 1}]}', '{"keys": 3}'])
def test_a_damaged_key_file_lets_nobody_in(keys: KeyFile, text: str) -> None:
    keys.path.write_text(text)
    keys.path.chmod(0o600)
    with pytest.raises(SettingsError, match="key file"):
        keys.find("rml-x")


def test_a_revoked_key_is_no_key_from_then_on(server_of: Callable[..., Running], keys: KeyFile) -> None:
    secret = keys.add("ann")
    server = server_of(require_keys=True, keys_file=keys.path)
    with server.client(headers={"authorization": f"Bearer {secret}"}) as client:
        assert client.post("/api/chat", json=CHAT).status_code == 200
        keys.revoke("ann")
        assert client.post("/api/chat", json=CHAT).status_code == 401


def test_without_a_key_nothing_but_the_probes_answers(server_of: Callable[..., Running], keys: KeyFile) -> None:
    secret = keys.add("ann")
    server = server_of(require_keys=True, keys_file=keys.path)
    with server.client() as client:
        for path in ("/api/tags", "/v1/models", "/metrics", "/decisions/x", "/admin/log-level"):
            assert client.get(path).status_code == 401, path
        for path in ("/api/chat", "/feedback", "/v1/decide", "/v1/systemone"):
            assert client.post(path, json=CHAT, headers={"authorization": "Bearer rml-wrong"}).status_code == 401, path
        assert client.get("/healthz").status_code == 200
        assert client.get("/api/tags", headers={"x-api-key": secret}).status_code == 200
        refused = client.post("/v1/messages", json={})
    assert refused.json()["error"]["type"] == "authentication_error"


def test_a_key_decides_user_policy_and_session(server_of: Callable[..., Running], keys: KeyFile) -> None:
    secret = keys.add("ann", policy="accurate")
    server = server_of(require_keys=True, keys_file=keys.path)
    claimed = {"x-router-ml-user": "bob", "x-router-ml-policy": "fast", "x-session-id": "s"}
    with server.client(headers={"authorization": f"Bearer {secret}", **claimed}) as client:
        client.post("/api/chat", json=CHAT)
    _, context, policy, _, _ = server.service.decider.seen[-1]  # type: ignore[attr-defined]
    assert (context.extra["user_id"], policy.name, context.session_id) == ("ann", "accurate", "ann:s")


def test_a_key_is_held_to_its_rate(server_of: Callable[..., Running], keys: KeyFile) -> None:
    secret = keys.add("ann", per_minute=2)
    server = server_of(require_keys=True, keys_file=keys.path)
    with server.client(headers={"authorization": f"Bearer {secret}"}) as client:
        answers = [client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 30
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("host", "needed"),
    [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("10.0.0.5", True)],
)
def test_keys_are_needed_beyond_the_loopback_interface(host: str, needed: bool) -> None:
    assert ServerOptions(host=host).keys_needed is needed


def test_a_host_password_is_in_no_answer_log_or_event(
    server_of: Callable[..., Running], double: OllamaDouble, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("DEBUG", logger="router_ml")
    server = server_of(hosts=(double.url.replace("://", "://ann:hunter2@"),))
    with server.client() as client:
        said = [client.post("/api/chat", json={**CHAT, "model": m, "stream": False}) for m in ("auto", "qwen3:8b")]
        told = [client.get(path) for path in ("/readyz", "/metrics", "/api/tags", "/api/version")]
    assert all("hunter2" not in answer.text + repr(answer.headers) for answer in (*said, *told))
    assert "hunter2" not in caplog.text
    assert server.service.watch.writer.flush(PATIENCE_S)
    assert not any(b"hunter2" in path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file())


def test_problems_are_in_the_form_of_the_api(server: Running) -> None:
    with server.client() as client:
        forms = {path: client.post(path, content=b'{"model": "auto"').json() for path in
                 ("/v1/decide", "/feedback")}  # fmt: skip
        anthropic = client.post("/v1/messages", json={"model": "auto"}).json()
    assert set(forms["/v1/decide"]["error"]) == {"message", "type", "param", "code"}
    assert isinstance(forms["/feedback"]["error"], str)
    assert anthropic["type"] == "error"
    json.dumps(forms)
