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
    from router_ml.catalogue import Catalogue as Catalogue
    from router_ml.catalogue import load_catalogue as load_catalogue
    from router_ml.decide.api import aselect_model as aselect_model
    from router_ml.decide.api import select_model as select_model
    from router_ml.decide.api import select_models as select_models
    from router_ml.decide.router import Router as Router
    from router_ml.decide.selection.policy import Policy as Policy
    from router_ml.errors import AttemptsFailed as AttemptsFailed
    from router_ml.errors import BundleCorrupt as BundleCorrupt
    from router_ml.errors import BundleError as BundleError
    from router_ml.errors import BundleFormatError as BundleFormatError
    from router_ml.errors import BundleMissing as BundleMissing
    from router_ml.errors import CatalogueError as CatalogueError
    from router_ml.errors import ContextError as ContextError
    from router_ml.errors import DeadlineExceeded as DeadlineExceeded
    from router_ml.errors import EncoderError as EncoderError
    from router_ml.errors import ExperimentError as ExperimentError
    from router_ml.errors import GatewayError as GatewayError
    from router_ml.errors import InputError as InputError
    from router_ml.errors import NoModelAvailable as NoModelAvailable
    from router_ml.errors import Overloaded as Overloaded
    from router_ml.errors import PolicyError as PolicyError
    from router_ml.errors import QueryError as QueryError
    from router_ml.errors import RouterError as RouterError
    from router_ml.errors import RowError as RowError
    from router_ml.errors import SettingsError as SettingsError
    from router_ml.errors import StoreError as StoreError
    from router_ml.errors import StreamInterrupted as StreamInterrupted
    from router_ml.events.event import FeedbackEvent as FeedbackEvent
    from router_ml.events.event import Recorder as Recorder
    from router_ml.hosts.options import BreakerOptions as BreakerOptions
    from router_ml.hosts.options import GatewayOptions as GatewayOptions
    from router_ml.monitor.watch import open_watch as open_watch
    from router_ml.serve.answer import Answer as Answer
    from router_ml.serve.build import build_gateway as build_gateway
    from router_ml.serve.build import build_node as build_node
    from router_ml.serve.gateway import Gateway as Gateway
    from router_ml.serve.node import CoordinatorNode as CoordinatorNode
    from router_ml.settings import Settings as Settings
    from router_ml.settings import load_settings as load_settings
    from router_ml.types import Candidate as Candidate
    from router_ml.types import Context as Context
    from router_ml.types import Decision as Decision
    from router_ml.types import MachineState as MachineState
    from router_ml.types import ModelState as ModelState

__version__ = "0.2.0"

_PUBLIC = {
    "catalogue": "Catalogue load_catalogue",
    "decide.api": "aselect_model select_model select_models",
    "decide.router": "Router",
    "decide.selection.policy": "Policy",
    "errors": "AttemptsFailed BundleCorrupt BundleError BundleFormatError BundleMissing CatalogueError ContextError "
    "DeadlineExceeded EncoderError ExperimentError GatewayError InputError NoModelAvailable Overloaded PolicyError "
    "QueryError RouterError RowError SettingsError StoreError StreamInterrupted",
    "events.event": "FeedbackEvent Recorder",
    "hosts.options": "BreakerOptions GatewayOptions",
    "monitor.watch": "open_watch",
    "serve.answer": "Answer",
    "serve.build": "build_gateway build_node",
    "serve.gateway": "Gateway",
    "serve.node": "CoordinatorNode",
    "settings": "Settings load_settings",
    "types": "Candidate Context Decision MachineState ModelState",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = sorted(["__version__", *_HOMES])

moved.install()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"router_ml.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'router_ml' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
