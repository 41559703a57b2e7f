"""The models that can be called: the router's own models and those of the hosts, in the form of each API."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.body import lenient_json, read_body
from router_ml.http.service import Service
from router_ml.http.streaming import json_response


class ModelEndpoints:
    """Lists of models, and what is known of each."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def tags(self, request: Request) -> Response:
        """Serve `/api/tags`: the routed names come first."""
        own = [self._service.models.tag(name) for name in self._service.models.names]
        return json_response({"models": [*own, *await self._service.proxy.models()]})

    async def ps(self, request: Request) -> Response:
        """Serve `/api/ps`: the loaded models of all hosts."""
        if len(self._service.proxy.hosts) == 1:
            return await self._service.proxy.forward(request, b"")
        found = await self._service.proxy.get_each("/api/ps")
        return json_response({"models": [model for answer in found for model in answer.get("models") or ()]})

    async def show(self, request: Request) -> Response:
        """Serve `/api/show`, by `model` or `name`."""
        raw = await read_body(request, self._service.options)
        body = lenient_json(raw)
        name = body.get("model") or body.get("name")
        if self._service.models.policy(name) is not None:
            return json_response(self._service.models.shown(str(name)))
        return await self._service.proxy.forward(request, raw)

    async def v1_models(self, request: Request) -> Response:
        """Serve `/v1/models`, in Anthropic's form if its header is present."""
        models = self._service.models
        theirs = [str(m.get("model") or m.get("name")) for m in await self._service.proxy.models()]
        if "anthropic-version" in request.headers:
            data = [_anthropic(name) for name in (*models.names, *theirs)]
            return json_response(
                {"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]}
            )
        listed = [
            *map(models.openai, models.names),
            *(models.openai(name) | {"owned_by": "library"} for name in theirs),
        ]
        return json_response({"object": "list", "data": listed})

    async def v1_model(self, request: Request) -> Response:
        """Serve `/v1/models/{id}`."""
        name = request.path_params["model"]
        if self._service.models.policy(name) is None:
            return await self._service.proxy.forward(request, b"")
        anthropic = "anthropic-version" in request.headers
        return json_response(_anthropic(name) if anthropic else self._service.models.openai(name))


def _anthropic(name: str) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"}
