"""The application: which path goes where, and what surrounds every request."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from router_ml.http.access_log import AccessLog
from router_ml.http.anthropic_messages import AnthropicMessages, CountTokens
from router_ml.http.chat import ChatEndpoint
from router_ml.http.decisions import DecisionEndpoints
from router_ml.http.feedback import FeedbackEndpoint
from router_ml.http.health import Health
from router_ml.http.models import ModelEndpoints
from router_ml.http.ollama_chat import OllamaChat
from router_ml.http.openai_chat import OpenAIChat
from router_ml.http.openai_responses import OpenAIResponses
from router_ml.http.openapi import openapi
from router_ml.http.options import ServerOptions
from router_ml.http.page import page_routes
from router_ml.http.problems import problem_of
from router_ml.http.prompts import PromptEndpoints
from router_ml.http.security import Admission, HostGuard, KeyGuard, problem_response
from router_ml.http.service import Service

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]

_GONE = 499  # the client left; only the access log shows this status


def build_app(service: Service) -> ASGIApp:
    """Build the whole server, from the outermost middleware to the endpoints."""
    options = service.options
    layers = [
        Middleware(AccessLog),
        Middleware(HostGuard, options=options),
        *_cors(options),
        Middleware(KeyGuard, options=options, keys=service.keys, shared=service.shared),
        Middleware(Admission, limit=options.max_requests),
    ]
    return Starlette(
        routes=_routes(service),
        middleware=layers,
        exception_handlers={HTTPException: _no_such_path},
        lifespan=_lifespan(service),
    )


def _routes(service: Service) -> list[Route | Mount]:
    models, prompts, health = ModelEndpoints(service), PromptEndpoints(service), Health(service)
    decisions = DecisionEndpoints(service)
    return [
        *page_routes(service),
        _route("GET", "/api/version", prompts.pass_on),
        _route("GET", "/api/tags", models.tags),
        _route("GET", "/api/ps", models.ps),
        _route("POST", "/api/show", models.show),
        _route("POST", "/api/chat", ChatEndpoint(service, OllamaChat())),
        _route("POST", "/api/generate", prompts.generate),
        _route("POST", "/api/embed", prompts.embed),
        _route("POST", "/api/embeddings", prompts.embed),
        *(_route("POST", f"/api/{verb}", prompts.manage) for verb in ("pull", "push", "create", "copy")),
        _route("DELETE", "/api/delete", prompts.manage),
        _route("HEAD POST", "/api/blobs/{digest}", prompts.manage),
        _route("POST", "/v1/chat/completions", ChatEndpoint(service, OpenAIChat())),
        _route("POST", "/v1/responses", ChatEndpoint(service, OpenAIResponses())),
        _route("POST", "/v1/completions", prompts.generate),
        _route("POST", "/v1/embeddings", prompts.embed),
        _route("GET", "/v1/models", models.v1_models),
        _route("GET", "/v1/models/{model:path}", models.v1_model),
        _route("POST", "/v1/messages", ChatEndpoint(service, AnthropicMessages())),
        _route("POST", "/v1/messages/count_tokens", CountTokens(service)),
        _route("POST", "/v1/decide", decisions.decide),
        _route("POST", "/v1/systemone", decisions.systemone),
        _route("POST", "/v1/decisions", decisions.openai),
        _route("GET", "/decisions/{decision_id}", decisions.lookup),
        _route("POST", "/feedback", FeedbackEndpoint(service)),
        _route("GET", "/healthz", health.alive),
        _route("GET", "/readyz", health.ready),
        _route("GET", "/metrics", health.metrics),
        _route("GET PUT", "/admin/log-level", health.log_level),
        _route("GET", "/openapi.json", openapi),
        *(_route("GET POST", path, prompts.pass_on) for path in service.options.allow_paths),
    ]


def _route(methods: str, path: str, endpoint: Endpoint) -> Route:
    return Route(path, _answering(endpoint), methods=methods.split())


def _answering(endpoint: Endpoint) -> Endpoint:
    """Wrap an endpoint so that its errors are answered in the form of the API that was called."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:
            problem = problem_of(error)
            if problem.kind == "internal":
                log.exception("a request to %s failed", request.url.path)
            return problem_response(problem, request.url.path)

    return answer


async def _no_such_path(request: Request, error: Exception) -> Response:
    """Answer an unknown path as Ollama's server does."""
    assert isinstance(error, HTTPException)
    text = {404: "404 page not found", 405: "405 method not allowed"}.get(error.status_code, str(error.detail))
    return Response(text, error.status_code, {**(error.headers or {}), "content-type": "text/plain"})


def _cors(options: ServerOptions) -> list[Middleware]:
    if not options.allow_origins:
        return []
    exposed = [f"x-router-ml-{name}" for name in ("model", "decision-id", "complexity", "arm", "reason")]
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(options.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=exposed,
        )
    ]


def _lifespan(service: Service) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.proxy.close()

    return lifespan
