"""Access control: host names and origins, API keys, and the number of concurrent requests."""

from __future__ import annotations

import base64
import ipaddress
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from router_ml.errors import SettingsError
from router_ml.http.access_log import note_scope
from router_ml.http.keys import KeyFile
from router_ml.http.options import ServerOptions
from router_ml.http.problems import Problem, api_of
from router_ml.shared_state import patience
from router_ml.shared_state.state import SharedState

log = logging.getLogger(__name__)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PROBES = frozenset({"/healthz", "/readyz"})  # need no key and are always served
_WITHOUT_KEY = _PROBES | {"/openapi.json"}


def problem_response(problem: Problem, path: str) -> Response:
    """Return a problem in the form of the API that the path belongs to."""
    api = api_of(path)
    media_type = "application/json; charset=utf-8" if api == "ollama" else "application/json"
    return Response(problem.encoded(api), problem.status(api), problem.headers(), media_type)


class HostGuard:
    """Refuses requests with a foreign Host header (DNS rebinding), and from origins that are not allowed."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app = app
        self._names = _LOOPBACK | {name.lower() for name in options.allow_hosts} | {options.host.lower()}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.allow_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        problem = self._problem(scope) if scope["type"] == "http" else None
        if scope["type"] == "websocket":
            return  # there are none; the server closes the connection
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await problem_response(problem, scope["path"])(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            return Problem("invalid", f"a request must have one Host header, found {len(hosts)}")
        host = hosts[0].decode("latin-1").lower()
        if not self._known(host, scope):
            return Problem("permission", "this server does not answer to that Host; start it with --allow-host NAME")
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not self._own(origin.lower(), host):
            return Problem("permission", "this Origin may not call; start the server with --allow-origin ORIGIN")
        followed_link = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and not followed_link:
            return Problem("permission", "a page of another site may not call this server")
        return None if _plain_path(scope) else Problem("invalid", "the path must be plain: no '..', '//' or backslash")

    def _known(self, host: str, scope: Scope) -> bool:
        name = _host_name(host)
        if name is None:
            return False
        if name in self._names and name not in ("0.0.0.0", "::"):
            return True
        server = scope.get("server") or ("",)  # the address of this very connection: no name that could be rebound
        return _is_address(name) and name == server[0]

    def _own(self, origin: str, host: str) -> bool:
        return origin in self._origins or origin in (f"http://{host}", f"https://{host}")


class KeyGuard:
    """Asks for an API key where the server needs them, and holds each key to its rate."""

    def __init__(self, app: ASGIApp, options: ServerOptions, keys: KeyFile, shared: SharedState) -> None:
        self._app = app
        self._needed, self._keys, self._shared = options.keys_needed, keys, shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        problem = await self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        response = problem_response(problem, scope["path"])
        if problem.kind == "authentication" and (scope["path"] == "/" or scope["path"].startswith("/dashboard/")):
            response.headers["www-authenticate"] = 'Basic realm="router-ml: any name, the API key as password"'
        await response(scope, receive, send)

    async def _problem(self, scope: Scope) -> Problem | None:
        shown = _shown(Headers(scope=scope))
        try:
            key = self._keys.find(shown) if shown else None
        except SettingsError as error:
            log.error("%s", error)
            return Problem("internal", "the API keys cannot be read; the server's log says why")
        if key is None:
            if not self._needed or scope["path"] in _WITHOUT_KEY:
                return None
            what = "this API key is not known" if shown else "an API key is needed: Authorization: Bearer KEY"
            return Problem("authentication", what, code="invalid_api_key")
        scope["router_ml.key"] = key
        note_scope(scope, user=key.user)
        patience.begin()
        wait_s = 0.0 if key.per_minute is None else await self._shared.wait_s(key.user, key.per_minute)
        if wait_s:
            return Problem("rate_limit", f"{key.per_minute} requests a minute are allowed", retry_after_s=wait_s)
        return None


class Admission:
    """Limits the number of requests served at once; further ones are refused with `Retry-After`."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        if scope["type"] != "http" or scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        if self._inside >= self._limit:
            problem = Problem("overloaded", f"{self._limit} requests are being served already", retry_after_s=1.0)
            await problem_response(problem, scope["path"])(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1


def _shown(headers: Headers) -> str | None:
    """Return the key in `Authorization` (a browser sends it as the password) or `x-api-key`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(token, validate=True).decode().partition(":")[2]
        except (ValueError, UnicodeDecodeError):
            return None
    return headers.get("x-api-key")


def _host_name(host: str) -> str | None:
    """Return the host name in a Host header without its port, or None if there is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return None
    odd = parts.username is not None or parts.path or parts.query or parts.fragment
    return None if odd else parts.hostname


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _plain_path(scope: Scope) -> bool:
    path, raw = str(scope["path"]), bytes(scope.get("raw_path") or b"").lower()
    parts: Iterable[str] = path.split("/")[1:]
    odd = any(part in (".", "..") for part in parts) or "//" in path or "\\" in path
    return (
        path.startswith("/") and not odd and path.isprintable() and not any(m in raw for m in (b"%2f", b"%5c", b"%00"))
    )
