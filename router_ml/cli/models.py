"""router-ml models: the models it chooses among, and what is known of each."""

from __future__ import annotations

import argparse
import json

from router_ml.catalogue import Model, model_entry
from router_ml.decide.router import Router
from router_ml.settings import load_settings
from router_ml.types import LABELS


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "models",
        help="the models to choose among, with their priors",
        description="Lists the models to choose among, with what is expected of each for the four labels.",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_models)


def _models(options: argparse.Namespace) -> int:
    router = Router.load_or_heuristic(settings=load_settings())
    if options.json:
        print(json.dumps([{**model_entry(model), "learned": model.name in router.learned} for model in router.models]))
        return 0
    print(f"{'model':<30}{'role':<10}{'known by':<10}{'can':<18}expected success and seconds per label")
    for model in router.models:
        print(_line(model, "outcomes" if model.name in router.learned else "priors"))
    return 0


def _line(model: Model, known_by: str) -> str:
    can = "?" if model.capabilities is None else ",".join(sorted(model.capabilities)) or "text"
    priors = "  ".join(
        f"{label} {model.prior.success[label]:.2f} {model.prior.latency_s[label]:.1f}s" for label in LABELS
    )
    return f"{model.name:<30}{model.role or '-':<10}{known_by:<10}{can:<18}{priors}"
