"""The page at `/`, fed from the running service; other clients get the same text as from Ollama."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from router_ml.errors import PolicyError
from router_ml.http.dashboard.routes import dashboard_routes
from router_ml.http.dashboard.view import PageSources
from router_ml.http.headers import without_credentials
from router_ml.http.service import Service
from router_ml.types import Decision


def page_routes(service: Service) -> list[Route | Mount]:
    """Return the routes of the page; that of `/` comes first."""

    async def decide(query: str, policy: str) -> Decision:
        known = service.models.policies.get(policy)
        if known is None:
            raise PolicyError(f"unknown policy {policy!r:.60}; there are {', '.join(service.models.policies)}")
        return await asyncio.to_thread(service.decider.decide, query, None, known, service.gateway.machine())

    page, *others = dashboard_routes(_sources(service), decide)
    assert isinstance(page, Route)
    show = page.endpoint

    async def root(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ollama is running")
        shown: Response = await show(request)
        return shown

    return [Route("/", root, methods=["GET"]), *others]


def _sources(service: Service) -> PageSources:
    return PageSources(
        hosts=lambda: [
            {**row, "host": without_credentials(row["host"])} for row in service.gateway.status()["backends"]
        ],
        snapshot=service.watch.metrics.snapshot,
        firing=service.watch.alerts.firing,
        rollout=service.watch.rollout.state,
        recent=service.recent,
        reason=service.decided.reason,
        bundle=lambda: str(getattr(service.decider, "name", "")),
        policy=lambda: service.models.default.name,
        stopping=service.stopping.is_set,
    )
