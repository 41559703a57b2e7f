"""One line of JSON for each request, without anything the caller wrote; and the ids by which requests are found."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("router_ml.http.access")

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_NOTES = "router_ml.notes"


def note(request: Request, **facts: Any) -> None:
    """Add facts (model, decision id) to the request's line."""
    note_scope(request.scope, **facts)


def note_scope(scope: Scope, **facts: Any) -> None:
    """Add fields to the access line of a request, given its ASGI scope."""
    scope.setdefault(_NOTES, {}).update(facts)


class AccessLog:
    """Outermost middleware: gives each request an id, times it, and writes its line once it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        facts: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "path": _path(scope)}
        scope[_NOTES] = facts
        sent = 0

        async def counted(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                MutableHeaders(raw=message["headers"])["x-request-id"] = request_id
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            took_ms = (time.perf_counter() - began) * 1e3
            log.info("%s", json.dumps({"at_s": round(time.time(), 3), **facts, "bytes": sent, "ms": round(took_ms, 2)}))


def _path(scope: Scope) -> str:
    return str(scope["path"])[:200]  # without the query: it may hold text of a user
