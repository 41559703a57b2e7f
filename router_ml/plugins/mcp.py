"""An MCP server: route, explain, feedback and status as tools.

Start it over standard input and output with `python -m router_ml.plugins.mcp`; a client's entry looks like

    {"mcpServers": {"router_ml": {"command": "python", "args": ["-m", "router_ml.plugins.mcp"]}}}
"""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import MCPServer

from router_ml.decide.router import Router
from router_ml.errors import RouterError
from router_ml.events.connect import open_store
from router_ml.events.event import FeedbackEvent
from router_ml.settings import Settings, load_settings


def build_server(router: Router | None = None, settings: Settings | None = None) -> MCPServer[Any]:
    """Return the server; the router and settings are those of the process unless given."""
    settings = settings or load_settings()
    router = router or Router.load_or_heuristic(settings=settings)
    server: MCPServer[Any] = MCPServer(
        "router_ml", instructions="Choose which language model should answer a query, before calling one."
    )

    def route(query: str, history: list[str] | None = None, policy: str = "balanced") -> dict[str, Any]:
        """Choose the model for a query: its name, the fallback order, complexity, expected success and latency."""
        return _answer(lambda: router.decide(query, {"history": history or []}, policy).as_dict())

    def explain(query: str, history: list[str] | None = None, policy: str = "balanced") -> dict[str, Any]:
        """Explain a decision: which features spoke for the complexity label, and what the alternatives were."""
        return _answer(lambda: router.explain(query, {"history": history or []}, policy).as_dict())

    def feedback(decision_id: str, score: float, comment: str | None = None) -> dict[str, Any]:
        """Record feedback on an answer, from 0 (bad) to 1 (good)."""
        return _answer(lambda: _record(settings, FeedbackEvent(decision_id, "score", score, comment)))

    def status() -> dict[str, Any]:
        """Say which bundle, policy and models are in use."""
        names = [model.name for model in router.models]
        problem = router.degraded or None
        return {"bundle": router.name, "policy": settings.policy, "models": names, "problem": problem}

    for tool in (route, explain, feedback, status):
        server.add_tool(tool)
    return server


def _answer(make: Any) -> dict[str, Any]:
    try:
        made: dict[str, Any] = make()
    except RouterError as error:
        return {"error": str(error)}
    return made


def _record(settings: Settings, event: FeedbackEvent) -> dict[str, Any]:
    store = open_store(settings.events or settings.state_dir, key_dir=settings.state_dir)
    try:
        store.append([event])
    finally:
        store.close()
    return {"recorded": event.decision_id, "score": event.score}


if __name__ == "__main__":
    build_server().run()
