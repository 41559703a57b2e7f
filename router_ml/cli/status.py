"""router-ml status: which bundle is in use, how good it is, where things are, and which models can be served."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from router_ml.bundles.format import load_bundle, manifest_metrics
from router_ml.bundles.registry import active_bundle, registry_folder
from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.router import Router
from router_ml.errors import BundleError, EncoderError
from router_ml.hosts.names import ModelNames
from router_ml.settings import (
    DEFAULT_HOST_TYPE,
    Settings,
    base_url,
    host_type,
    load_settings,
    without_credentials,
)

SHOWN = ("test/macro_f1", "test/accuracy", "test/ece", "test/heuristic_macro_f1")
_TIMEOUT_S = 2.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "status",
        help="the bundle in use, how good it is, and which models can be served",
        description="Says which bundle is in use, how good it was on its test rows, where bundles and events are, and "
        "which models of the catalogue no host has. Exit status 1 if no model can be served.",
    )
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.set_defaults(func=_status)


def _status(options: argparse.Namespace) -> int:
    settings = load_settings()
    bundle, catalogue = _bundle_facts(settings)
    facts = {
        **bundle,
        "registry": str(registry_folder(settings)),
        "state_dir": str(settings.state_dir),
        "policy": settings.policy,
        **_host_facts(settings, catalogue),
    }
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in _lines(facts):
            print(f"{name:<26}{value}")
    return 1 if len(facts["unserved"]) == len(catalogue) else 0


def _bundle_facts(settings: Settings) -> tuple[dict[str, Any], Catalogue]:
    try:
        bundle = load_bundle(active_bundle(settings))
        router = Router.load(bundle.path, settings=settings)
    except (BundleError, EncoderError) as error:
        return {"bundle": None, "problem": str(error)}, load_catalogue(settings.catalogue)
    metrics = manifest_metrics(bundle.manifest)
    learned = {arm.name for arm in router.arms if arm.key in router.learned}
    return {
        "bundle": bundle.name,
        "path": str(bundle.path),
        "created_at": bundle.manifest.get("created_at"),
        "data_sha256": bundle.manifest.get("data_sha256"),
        "problem": router.degraded or None,
        "models": [
            {"name": model.name, "known_by": "outcomes" if model.name in learned else "priors"}
            for model in router.models
        ],
        "metrics": {name: metrics[name] for name in SHOWN if name in metrics},
    }, router.catalogue


def _host_facts(settings: Settings, catalogue: Catalogue) -> dict[str, Any]:
    """Return what each host has, and the models of the catalogue that no host has."""
    names = ModelNames(catalogue)
    default = settings.ollama_host
    places = {model.name: [base_url(url) for url in model.hosts] or [default] for model in catalogue}
    hosts = {
        url: _installed(url, names)
        for url in dict.fromkeys([default, *(url for urls in places.values() for url in urls)])
    }
    held = {url: {names.canonical(name) for name in found["models"] or ()} for url, found in hosts.items()}
    return {
        "ollama": hosts[default],
        "hosts": list(hosts.values()),
        "unserved": [name for name, urls in places.items() if not any(name in held[url] for url in urls)],
    }


def _installed(url: str, names: ModelNames) -> dict[str, Any]:
    """Return the models of a host, or what is wrong with it."""
    if host_type(url)[0] != DEFAULT_HOST_TYPE:
        return _of_other_type(url, names)
    import httpx

    shown = without_credentials(url)
    key = os.environ.get("OLLAMA_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        loopback = (httpx.URL(url).host or "") in ("127.0.0.1", "localhost", "::1")
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers=headers, trust_env=not loopback) as client:
            entries = client.get("/api/tags").raise_for_status().json()["models"]
        return {"host": shown, "models": [str(e.get("model") or e.get("name")) for e in entries], "problem": None}
    except Exception as error:  # refused, timed out, not Ollama: the status does not distinguish them
        return {"host": shown, "models": None, "problem": type(error).__name__}


def _of_other_type(url: str, names: ModelNames) -> dict[str, Any]:
    import asyncio

    from router_ml.hosts.fleet import open_host

    async def own_names() -> list[str]:
        host = open_host(url, names, _TIMEOUT_S)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return [model.own_name for model in (await host.installed()).values()]
        finally:
            await host.close()

    found: dict[str, Any] = {"host": without_credentials(url), "models": None, "problem": None}
    try:
        return found | {"models": asyncio.run(own_names())}
    except Exception as error:  # unknown type, refused, timed out: all the same to a status
        return found | {"problem": str(error) or type(error).__name__}


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the facts as a person reads them."""
    if facts["bundle"] is None:
        yield "bundle", f"none usable, routing by rules: {facts['problem']}"
    else:
        yield "bundle", f"{facts['bundle']} in {facts['path']}"
        yield "made", f"{facts['created_at']} from data {str(facts['data_sha256'])[:12]}"
        yield "encoder", facts["problem"] or "agrees with its reference on this processor"
        yield "models", ", ".join(f"{model['name']} ({model['known_by']})" for model in facts["models"])
        yield from facts["metrics"].items()
    yield "bundle registry", facts["registry"]
    yield "state folder", facts["state_dir"]
    yield "policy", facts["policy"]
    for host in facts["hosts"]:
        if host["models"] is None:
            yield "host", f"no answer from {host['host']} ({host['problem']})"
        else:
            yield "host", f"{host['host']} has {', '.join(host['models']) or 'no models'}"
    if facts["unserved"]:
        yield "not on any host", ", ".join(facts["unserved"])
