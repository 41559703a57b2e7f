"""The OpenAPI description of the endpoints that are our own."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from router_ml.http.streaming import json_response


async def openapi(request: Request) -> Response:
    """`/openapi.json`."""
    return json_response({"openapi": "3.1.0", "info": {"title": "router-ml", "version": "1"}, "paths": {}})
