"""A chat with `auto`: from the client's form through the gateway and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from router_ml.decide.selection.policy import Policy
from router_ml.http.access_log import note
from router_ml.http.body import lenient_json, parse_json, read_body
from router_ml.http.caller import Caller, caller_of
from router_ml.http.headers import decision_headers
from router_ml.http.ollama_chat import loaded
from router_ml.http.problems import Problem
from router_ml.http.reply import ChatCall, piece_of_wire
from router_ml.http.routed_models import AUTO
from router_ml.http.service import Service
from router_ml.http.streaming import Dialect, json_response, stream_bytes, while_connected
from router_ml.serve.stream import AsyncAnswerStream


class ChatEndpoint:
    """One API's chat path. A model of a host is called as the client asked, byte for byte."""

    def __init__(self, service: Service, dialect: Dialect) -> None:
        self._service, self._dialect = service, dialect

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises `Problem`, and what the gateway raises."""
        raw = await read_body(request, self._service.options)
        policy = self._service.models.policy(lenient_json(raw).get("model"))
        if policy is None:
            return await self._service.proxy.forward(request, raw)
        body = parse_json(raw)
        if not body.get("messages") and request.url.path == "/api/chat":
            return json_response(loaded(body, chat=True))  # asks for the model to be loaded; there is nothing to load
        call = self._dialect.call(body)
        caller = caller_of(request, call.session_id, call.user_id)
        return await self._routed(request, body, call, caller, self._policy(caller, policy))

    def _policy(self, caller: Caller, asked: Policy) -> Policy:
        return self._service.models.named(caller.policy) if caller.policy else asked

    async def _routed(
        self, request: Request, body: Mapping[str, Any], call: ChatCall, caller: Caller, policy: Policy
    ) -> Response:
        full_s = self._service.full_s()
        if full_s is not None:  # before deciding, which would delay the requests that can be served
            raise Problem("overloaded", "the queue of every model is full", retry_after_s=full_s)
        arguments = {**call.arguments(), "context": caller.context, "policy": policy}
        given = await while_connected(request, self._service.gateway.achat(**arguments, stream=call.stream))
        self._service.decided.remember(given.decision)
        model = given.model or str(body.get("model") or AUTO)
        headers = decision_headers(given.decision, given.model, given.think)
        note(request, model=model, decision_id=given.decision.decision_id)
        if isinstance(given, AsyncAnswerStream):
            events = self._dialect.events(body, model)
            return StreamingResponse(stream_bytes(events, given), headers=headers, media_type=self._dialect.media_type)
        return json_response(self._dialect.whole(body, model, piece_of_wire(given.reply.wire)), headers=headers)
