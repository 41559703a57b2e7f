"""router-ml models: the models to choose among, and what is known of each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from typing import Any

from router_ml.catalogue import Model, model_entry
from router_ml.decide.router import Router
from router_ml.settings import load_settings
from router_ml.terminal import print_table
from router_ml.types import LABELS


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "models",
        help="the models to choose among, with their priors",
        description="Lists the models to choose among, with the priors of each for the four labels, and whether its "
        "predictions were learned from outcomes.",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_models)


def _models(options: argparse.Namespace) -> int:
    router = Router.load_or_heuristic(settings=load_settings())
    if options.json:
        print(json.dumps([_facts(model, router) for model in router.models]))
        return 0
    rows = [("model", "role", "source", "capabilities", *(f"prior {label}" for label in LABELS))]
    print_table([*rows, *(_row(arm, router.learned) for arm in router.arms)], left=range(8))
    print("\nPriors are expectations (success and seconds), not measurements; source: what the predictions rest on.")
    return 0


def _facts(model: Model, router: Router) -> dict[str, Any]:
    learned = [arm.key for arm in router.arms if arm.name == model.name and arm.key in router.learned]
    return {**model_entry(model), "learned": bool(learned), "learned_arms": learned}


def _row(model: Model, learned: Collection[str]) -> tuple[str, ...]:
    can = "?" if model.capabilities is None else ",".join(sorted(model.capabilities)) or "text"
    priors = (f"{model.prior.success[label]:.2f} in {model.prior.latency_s[label]:.1f} s" for label in LABELS)
    return model.key, model.role or "-", "learned" if model.key in learned else "prior", can, *priors
