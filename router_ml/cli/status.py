"""router-ml status: which bundle is in use, how good it is, and whether Ollama answers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from router_ml.bundles.format import load_bundle
from router_ml.bundles.registry import active_bundle
from router_ml.decide.router import Router
from router_ml.errors import BundleError, RouterError
from router_ml.settings import Settings, load_settings

SHOWN = ("test/macro_f1", "test/accuracy", "test/ece", "test/heuristic_macro_f1")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "status",
        help="the bundle in use, how good it is, and whether Ollama answers",
        description="Says which bundle is in use, how good it was on its test rows, and whether Ollama answers.",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_status)


def _status(options: argparse.Namespace) -> int:
    settings = load_settings()
    facts = {**_bundle_facts(settings), "policy": settings.policy, "ollama": _ollama_facts(settings)}
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in _told(facts):
            print(f"{name:<26}{value}")
    return 0


def _bundle_facts(settings: Settings) -> dict[str, Any]:
    try:
        bundle = load_bundle(active_bundle(settings))
        router = Router.load(bundle.path, settings=settings)
    except (BundleError, RouterError) as error:
        return {"bundle": None, "problem": str(error)}
    metrics = bundle.manifest.get("metrics", {})
    return {
        "bundle": bundle.name,
        "path": str(bundle.path),
        "created_at": bundle.manifest.get("created_at"),
        "data_sha256": bundle.manifest.get("data_sha256"),
        "problem": router.degraded or None,
        "models": [
            {"name": model.name, "known_by": "outcomes" if model.name in router.learned else "priors"}
            for model in router.models
        ],
        "metrics": {name: float(metrics[name]) for name in SHOWN if name in metrics},
    }


def _ollama_facts(settings: Settings) -> dict[str, Any]:
    import ollama

    try:
        names = [str(model.model) for model in ollama.Client(host=settings.ollama_host, timeout=2.0).list().models]
    except Exception as error:  # refused, timed out, not Ollama at all: all the same to a status
        return {"host": settings.ollama_host, "models": None, "problem": type(error).__name__}
    return {"host": settings.ollama_host, "models": names, "problem": None}


def _told(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The facts as a person reads them."""
    if facts["bundle"] is None:
        yield "bundle", f"none usable, routing by rules: {facts['problem']}"
    else:
        yield "bundle", f"{facts['bundle']} in {facts['path']}"
        yield "made", f"{facts['created_at']} from data {str(facts['data_sha256'])[:12]}"
        yield "encoder", facts["problem"] or "agrees with its reference on this processor"
        yield "models", ", ".join(f"{model['name']} ({model['known_by']})" for model in facts["models"])
        yield from facts["metrics"].items()
    yield "policy", facts["policy"]
    host = facts["ollama"]
    if host["models"] is None:
        yield "ollama", f"no answer from {host['host']} ({host['problem']})"
    else:
        yield "ollama", f"{host['host']} has {', '.join(host['models']) or 'no models'}"
