"""router-ml status: which bundle is in use, how good it is, and whether Ollama answers."""

from __future__ import annotations

import argparse
import json
from typing import Any

from router_ml.config import Settings, load_settings
from router_ml.errors import BundleError, RouterError
from router_ml.predictors.bundle import load_bundle
from router_ml.router import Router
from router_ml.shelf import active_bundle

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
    facts = {**_bundle_facts(settings), "policy": settings.policy, **_ollama_facts(settings)}
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in facts.items():
            print(f"{name:<26}{value}")
    return 0


def _bundle_facts(settings: Settings) -> dict[str, Any]:
    try:
        bundle = load_bundle(active_bundle(settings))
        router = Router.load(bundle.path, settings=settings)
    except (BundleError, RouterError) as error:
        return {"bundle": f"none usable, routing by rules: {error}"}
    metrics = bundle.manifest.get("metrics", {})
    known_by = {model.name: "outcomes" if model.name in router.learned else "priors" for model in router.models}
    facts: dict[str, Any] = {
        "bundle": f"{bundle.name} in {bundle.path}",
        "made": f"{bundle.manifest.get('created_at')} from data {str(bundle.manifest.get('data_sha256'))[:12]}",
        "encoder": router.degraded or "agrees with its reference on this processor",
        "models": ", ".join(f"{name} ({how})" for name, how in known_by.items()),
    }
    return facts | {name: metrics[name] for name in SHOWN if name in metrics}


def _ollama_facts(settings: Settings) -> dict[str, Any]:
    import ollama

    try:
        names = [str(model.model) for model in ollama.Client(host=settings.ollama_host, timeout=2.0).list().models]
    except Exception as error:  # refused, timed out, not Ollama at all: all the same to a status
        return {"ollama": f"no answer from {settings.ollama_host} ({type(error).__name__})"}
    return {"ollama": f"{settings.ollama_host} has {', '.join(names) or 'no models'}"}
