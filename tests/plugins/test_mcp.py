"""The MCP server answers a real MCP client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp", reason="mcp is not installed (extra plugins)")

from mcp.client import Client

from router_ml.bundles.registry import shipped_bundle
from router_ml.decide.router import Router
from router_ml.events.connect import open_store
from router_ml.events.event import FeedbackEvent
from router_ml.plugins.mcp import build_server
from router_ml.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


async def _call(settings: Settings, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    async with Client(build_server(Router.load(shipped_bundle()), settings)) as client:
        result = await client.call_tool(tool, arguments)
    found: dict[str, Any] = json.loads(result.content[0].text)
    return found


async def test_a_query_is_routed_in_its_history(settings: Settings) -> None:
    answer = await _call(settings, "route", {"query": "find a free hour with Dana and mail her the agenda"})
    assert answer["model"] == "qwen2.5:3b-instruct"
    assert answer["complexity"] == "complex"


async def test_a_decision_is_explained(settings: Settings) -> None:
    answer = await _call(settings, "explain", {"query": "book a flight"})
    assert answer["label"] == "ambiguous"
    assert answer["contributions"]


async def test_an_unknown_policy_is_an_error_that_says_what_to_do(settings: Settings) -> None:
    answer = await _call(settings, "route", {"query": "hi", "policy": "quick"})
    assert "balanced" in answer["error"]


async def test_feedback_reaches_the_event_store(settings: Settings) -> None:
    answer = await _call(settings, "feedback", {"decision_id": "d1", "score": 1.0})
    assert answer == {"recorded": "d1", "score": 1.0}
    store = open_store(settings.state_dir)
    events = [stored.event for stored in store.read()]
    store.close()
    assert [(e.decision_id, e.score) for e in events if isinstance(e, FeedbackEvent)] == [("d1", 1.0)]


async def test_status_names_the_models(settings: Settings) -> None:
    answer = await _call(settings, "status", {})
    assert "qwen3:8b" in answer["models"]
