"""router_ml chooses, for each query, the model that serves it best.

    from router_ml import select_model
    decision = select_model("find a free hour with Dana and mail her the agenda")
    decision.model, decision.complexity, decision.reason

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from router_ml import moved

if TYPE_CHECKING:
    from router_ml.catalogue import Catalogue, load_catalogue
    from router_ml.decide.api import aselect_model, select_model, select_models
    from router_ml.decide.router import Router
    from router_ml.decide.selection.policy import Policy
    from router_ml.errors import RouterError
    from router_ml.monitor.watch import open_watch
    from router_ml.serve import Gateway
    from router_ml.serve.build import build_gateway
    from router_ml.serve.node import CoordinatorNode
    from router_ml.types import Candidate, Context, Decision, MachineState, ModelState

moved.install()

_HOMES = {
    "Candidate": "types",
    "Catalogue": "catalogue",
    "Context": "types",
    "CoordinatorNode": "serve.node",
    "Decision": "types",
    "Gateway": "serve.gateway",
    "MachineState": "types",
    "ModelState": "types",
    "Policy": "decide.selection.policy",
    "Router": "decide.router",
    "RouterError": "errors",
    "aselect_model": "decide.api",
    "build_gateway": "serve.build",
    "load_catalogue": "catalogue",
    "open_watch": "monitor.watch",
    "select_model": "decide.api",
    "select_models": "decide.api",
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
