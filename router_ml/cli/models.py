"""router-ml models: the models to choose among, and what is known of each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from router_ml.catalogue import Model, model_entry
from router_ml.decide.router import Router
from router_ml.settings import load_settings
from router_ml.terminal import print_table
from router_ml.types import LABELS, Label

Expectation: TypeAlias = Mapping[Label, tuple[float, tuple[float, float]]]


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "models",
        help="the models to choose among, with their priors",
        description="Lists the models to choose among: where the chance of success of each comes from (prior: the "
        "catalogue alone; learned: own outcomes), that chance for the four labels with its 90 % interval, and the "
        "prior seconds. Beside a learned model, one with only a prior counts by the lower end of its interval.",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_models)


def _models(options: argparse.Namespace) -> int:
    router = Router.load_or_heuristic(settings=load_settings())
    found, learned = router.expectations(), router.learned
    if options.json:
        print(json.dumps([_facts(model, router) for model in router.models]))
        return 0
    rows = [("model", "role", "source", "capabilities", *LABELS)]
    print_table([*rows, *(_row(arm, found[arm.key], learned) for arm in router.arms)], left=range(8))
    print(
        "\nChance of success with its 90 % interval, and prior seconds. Source: 'prior' is an expectation of the "
        "catalogue, not a measurement; 'learned' rests on own outcomes."
    )
    return 0


def _facts(model: Model, router: Router) -> dict[str, Any]:
    arms, found = [arm.key for arm in router.arms if arm.name == model.name], router.expectations()
    learned = [key for key in arms if key in router.learned]
    success = {key: {label: _rounded(*found[key][label]) for label in LABELS} for key in arms}
    return {**model_entry(model), "learned": bool(learned), "learned_arms": learned, "success": success}


def _rounded(p: float, interval: tuple[float, float]) -> dict[str, Any]:
    return {"p": round(p, 4), "interval": [round(bound, 4) for bound in interval]}


def _row(model: Model, found: Expectation, learned: Collection[str]) -> tuple[str, ...]:
    can = "?" if model.capabilities is None else ",".join(sorted(model.capabilities)) or "text"
    cells = []
    for label in LABELS:
        p, (low, high) = found[label]
        cells.append(f"{p:.2f} ({low:.2f}-{high:.2f}) in {model.prior.latency_s[label]:.1f} s")
    return model.key, model.role or "-", "learned" if model.key in learned else "prior", can, *cells
