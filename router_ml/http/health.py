"""Health and readiness, metrics, and the log level."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.body import parse_json, read_body
from router_ml.http.problems import Problem
from router_ml.http.service import Service
from router_ml.http.streaming import json_response
from router_ml.monitor.prometheus import CONTENT_TYPE

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class Health:
    """`/healthz`, `/readyz`, `/metrics` and `/admin/log-level`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def alive(self, request: Request) -> Response:
        """Report that the process serves requests."""
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Return 200 if a host answers and a learned bundle is active, else 503 and which of the two is missing."""
        hosts = await self._service.proxy.get_each("/api/version")
        degraded = getattr(self._service.decider, "degraded", "")
        parts = {
            "hosts": {"answering": len(hosts), "of": len(self._service.proxy.hosts)},
            "bundle": {
                "name": getattr(self._service.decider, "name", None),
                "problem": degraded or None,
                "refused": getattr(self._service.decider, "refused", "") or None,
            },
        }
        shared = self._service.shared
        parts["shared"] = {
            "state": "local" if shared.alone or shared.problem else "redis",
            "replicas": shared.replicas,
            "problem": shared.problem or None,
        }
        mirror = self._service.mirror
        if mirror is not None:
            parts["files"] = {"problem": mirror.problem or None, "refused": mirror.refused or None}
        ready = bool(hosts) and not degraded
        return json_response({"status": "ready" if ready else "not ready", **parts}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Return all metrics in Prometheus' text format."""
        backends = self._service.gateway.status()["backends"]
        text = await asyncio.to_thread(self._service.watch.prometheus, backends)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def log_level(self, request: Request) -> Response:
        """Read the level of the log, or set it with `{"level": "DEBUG"}`."""
        logger = logging.getLogger("router_ml")
        if request.method == "PUT":
            level = parse_json(await read_body(request, self._service.options)).get("level")
            if level not in _LEVELS:
                raise Problem("invalid", f"level must be one of {', '.join(_LEVELS)}")
            logger.setLevel(level)
        return json_response({"level": logging.getLevelName(logger.getEffectiveLevel())})
