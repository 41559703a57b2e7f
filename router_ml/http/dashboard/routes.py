"""Routes of the page: the page itself, its live part as server-sent events, the decision box, static files."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from router_ml.decide.selection.policy import PRESETS
from router_ml.errors import RouterError
from router_ml.http.dashboard.view import PageSources, page_values, percent_text, seconds_text
from router_ml.types import Decision

FOLDER = Path(__file__).parent
MAX_QUERY_CHARS = 4000
_PERIOD_S = 1.0
_SILENCE_S = 10.0  # a message at least this often, so that ages on the page stay true
_POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Decide = Callable[[str, str], Awaitable[Decision]]  # query, policy


def dashboard_routes(sources: PageSources, decide: Decide) -> list[Route | Mount]:
    """Return the routes of the page. `decide` answers the box; it must not block the event loop."""
    templates = _templates()

    async def page(request: Request) -> Response:
        values = page_values(sources)
        return HTMLResponse(
            templates.get_template("page.html").render(presets=list(PRESETS), **values), headers=_POLICY
        )

    async def stream(request: Request) -> Response:
        live = templates.get_template("live.html")
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_messages(sources, live, request), media_type="text/event-stream", headers=headers)

    async def explain(request: Request) -> Response:
        form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
        query, policy = (form.get(name, [""])[0].strip()[:MAX_QUERY_CHARS] for name in ("query", "policy"))
        values: dict[str, Any] = {"decision": None, "problem": None, "query": query}
        if query:
            try:
                values["decision"] = await decide(query, policy or "balanced")
            except RouterError as error:
                values["problem"] = str(error)
        return HTMLResponse(templates.get_template("decision.html").render(values), headers=_POLICY)

    return [
        Route("/", page, methods=["GET"]),
        Route("/dashboard/stream", stream, methods=["GET"]),
        Route("/dashboard/explain", explain, methods=["POST"]),
        Mount("/dashboard/static", StaticFiles(directory=FOLDER / "static")),
    ]


async def _messages(sources: PageSources, live: jinja2.Template, request: Request) -> AsyncIterator[str]:
    """Yield the live part whenever a request was answered, and now and then anyway."""
    version, sent_s = -1, 0.0
    while not sources.stopping() and not await request.is_disconnected():
        if sources.recent.version != version or time.monotonic() - sent_s > _SILENCE_S:
            version, sent_s = sources.recent.version, time.monotonic()
            values = await asyncio.get_running_loop().run_in_executor(None, page_values, sources)
            yield _message(live.render(values))
        await asyncio.sleep(_PERIOD_S)


def _message(text: str) -> str:
    lines = "".join(f"data: {line}\n" for line in text.splitlines() if line.strip())
    return f"{lines}\n"


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(FOLDER / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(seconds=seconds_text, percent=percent_text, age=_age, as_json=_as_json)
    return environment


def _age(then_s: float, now_s: float) -> str:
    seconds = max(0.0, now_s - then_s)
    for unit_s, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _as_json(value: Any) -> str:
    """Return JSON for an attribute; the template escapes it."""
    return json.dumps(value, separators=(",", ":"))
