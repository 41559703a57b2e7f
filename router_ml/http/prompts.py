"""Endpoints other than chat: prompts, embeddings, model management, and paths that pass through."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from router_ml.arm import is_think
from router_ml.decide.selection.policy import Policy
from router_ml.events.event import decision_event
from router_ml.hosts.names import ModelNames
from router_ml.http.access_log import note
from router_ml.http.body import lenient_json, parse_json, read_body
from router_ml.http.caller import caller_of
from router_ml.http.headers import decision_headers
from router_ml.http.ollama_chat import loaded
from router_ml.http.problems import Problem
from router_ml.http.proxy import TAGS_TTL_S
from router_ml.http.service import Service
from router_ml.http.streaming import encoded, json_response
from router_ml.types import Candidate, Decision


class PromptEndpoints:
    """Requests pass to a host unchanged, except that `auto` is replaced by the name of the chosen model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._names = ModelNames(service.catalogue)

    async def pass_on(self, request: Request) -> Response:
        """Pass the request to the host and return the host's answer."""
        return await self._service.proxy.forward(request, await read_body(request, self._service.options))

    async def manage(self, request: Request) -> Response:
        """Pass on pull, push, create, copy and delete if that is allowed. Large files are streamed."""
        if not self._service.options.manage_models:
            raise Problem("permission", "managing models through the router is off; start it with --manage-models")
        return await self._service.proxy.manage(request)

    async def generate(self, request: Request) -> Response:
        """Serve `/api/generate` and `/v1/completions`; for `auto` the model is chosen by the prompt."""
        raw = await read_body(request, self._service.options)
        body = lenient_json(raw)
        policy = self._service.models.policy(body.get("model"))
        if policy is None:
            return await self._service.proxy.forward(request, raw)
        prompt = body.get("prompt")
        if not prompt and request.url.path == "/api/generate":
            return json_response(loaded(body, chat=False))
        if not isinstance(prompt, str):
            raise Problem("invalid", f"prompt must be a text, found {type(prompt).__name__}")
        return await self._routed(request, parse_json(raw), prompt, policy)

    async def embed(self, request: Request) -> Response:
        """Serve embeddings by the named model: vectors of different models are not comparable, so none is chosen."""
        raw = await read_body(request, self._service.options)
        if self._service.models.policy(lenient_json(raw).get("model")) is not None:
            raise Problem(
                "invalid", "auto gives no embeddings: name the embedding model, vectors of two cannot be compared"
            )
        return await self._service.proxy.forward(request, raw)

    async def _routed(self, request: Request, body: Mapping[str, Any], prompt: str, policy: Policy) -> Response:
        service = self._service
        caller = caller_of(request)
        chosen = service.models.named(caller.policy) if caller.policy else policy
        context = {**caller.context, **({"attachment": "image"} if body.get("images") else {})}
        if is_think(body.get("think")):
            context["think"] = body["think"]
        machine = service.gateway.machine()
        decision = await asyncio.to_thread(service.decider.decide, prompt, context, chosen, machine)
        service.decided.remember(decision)
        service.watch.recorder.record(decision_event(decision, unit=caller.session_id, text=prompt))
        arm, entry = await self._installed(decision)
        model, own_name = arm.model, str(entry.get("model") or entry.get("name") or arm.model)
        stated = entry.get("capabilities")
        think = arm.think if not isinstance(stated, list) or "thinking" in stated else None
        note(request, model=model, decision_id=decision.decision_id)
        return await service.proxy.forward(
            request,
            encoded({**({} if think is None else {"think": think}), **body, "model": own_name}),
            decision_id=decision.decision_id,
            headers=decision_headers(decision, model, context.get("think", think)),
        )

    async def _installed(self, decision: Decision) -> tuple[Candidate, Mapping[str, Any]]:
        """Return the best arm of a model that a host has, and the host's entry of it; else the best arm."""
        listed = await self._service.proxy.models(TAGS_TTL_S)
        own = {self._names.canonical(str(m.get("model") or m.get("name"))): m for m in listed}
        return next(((c, own[c.model]) for c in decision.ranked if c.model in own), (decision.candidate, {}))
