"""router_ml chooses, for each query, the model that serves it best.

    from router_ml import select_model
    decision = select_model("find a free hour with Dana and mail her the agenda")
    decision.model, decision.complexity, decision.reason

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router_ml.catalogue import Catalogue, load_catalogue
    from router_ml.coordinator import CoordinatorNode
    from router_ml.default import aselect_model, select_model, select_models
    from router_ml.errors import RouterError
    from router_ml.gateway import Gateway
    from router_ml.router import Router
    from router_ml.schema import Candidate, Context, Decision, MachineState, ModelState
    from router_ml.selection.policy import Policy
    from router_ml.watch import open_watch
    from router_ml.wiring import build_gateway

_HOMES = {
    "Candidate": "schema",
    "Catalogue": "catalogue",
    "Context": "schema",
    "CoordinatorNode": "coordinator",
    "Decision": "schema",
    "Gateway": "gateway",
    "MachineState": "schema",
    "ModelState": "schema",
    "Policy": "selection.policy",
    "Router": "router",
    "RouterError": "errors",
    "aselect_model": "default",
    "build_gateway": "wiring",
    "load_catalogue": "catalogue",
    "open_watch": "watch",
    "select_model": "default",
    "select_models": "default",
}

__all__ = [
    "Candidate",
    "Catalogue",
    "Context",
    "CoordinatorNode",
    "Decision",
    "Gateway",
    "MachineState",
    "ModelState",
    "Policy",
    "Router",
    "RouterError",
    "aselect_model",
    "build_gateway",
    "load_catalogue",
    "open_watch",
    "select_model",
    "select_models",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"router_ml.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'router_ml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
