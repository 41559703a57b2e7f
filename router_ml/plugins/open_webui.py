"""
title: router_ml
description: Sends every chat to router_ml, which chooses the model, and shows which one answered and why.
requirements: httpx
version: 0.1.0
license: Apache-2.0
"""

# A pipe of Open WebUI: paste this file under Admin > Functions, and set ROUTER_URL to where `router-ml serve` listens.
# It imports nothing of router_ml. Without it, Open WebUI can also use that address as an Ollama connection.

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import BaseModel


class Pipe:
    """Open WebUI finds this class by its name."""

    class Valves(BaseModel):
        """Settings, shown to administrators."""

        ROUTER_URL: str = "http://127.0.0.1:11435"
        API_KEY: str = ""
        SHOW_DECISION: bool = True

    def __init__(self) -> None:
        self.valves = self.Valves()

    def pipes(self) -> list[dict[str, str]]:
        """Return the models this pipe offers."""
        return [{"id": name, "name": f"router_ml {name}"} for name in ("auto", "auto:fast", "auto:accurate")]

    async def pipe(
        self, body: dict[str, Any], __user__: dict[str, Any] | None = None, __event_emitter__: Any = None
    ) -> AsyncIterator[str]:
        """Yield the answer's text; the decision appears as a status line above it."""
        request = {**body, "model": str(body.get("model", "auto")).rpartition(".")[2], "stream": True}
        headers = {"x-router-ml-user": str((__user__ or {}).get("id", ""))}
        if self.valves.API_KEY:
            headers["authorization"] = f"Bearer {self.valves.API_KEY}"
        url = f"{self.valves.ROUTER_URL.rstrip('/')}/v1/chat/completions"
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as client,
            client.stream("POST", url, json=request, headers=headers) as response,
        ):
            if response.status_code != 200:
                yield f"router_ml answered {response.status_code}: {(await response.aread()).decode()[:500]}"
                return
            await self._show(response.headers, __event_emitter__)
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    yield _text_of(json.loads(line.removeprefix("data: ")))

    async def _show(self, headers: Any, emit: Any) -> None:
        if emit is None or not self.valves.SHOW_DECISION:
            return
        model, reason = headers.get("x-router-ml-model", "?"), headers.get("x-router-ml-reason", "")
        await emit({"type": "status", "data": {"description": f"{model}: {reason}", "done": True}})


def _text_of(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")
