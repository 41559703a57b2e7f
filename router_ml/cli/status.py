"""router-ml status: which bundle is in use, how good it is, where things are, and which models can be served."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

from router_ml.bundles.format import load_bundle, manifest_metrics
from router_ml.bundles.registry import active_bundle, read_active, registry_folder
from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.cli.events import event_store
from router_ml.decide.router import Router
from router_ml.errors import BundleError, EncoderError, StoreError
from router_ml.events.exploration import exploration_cost
from router_ml.events.store import EventFilter
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
_RECENT_S = 7 * 86_400.0


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
        "previous": _previous(settings),
        "state_dir": str(settings.state_dir),
        "policy": settings.policy,
        **_host_facts(settings, catalogue),
        "exploration": _exploration_facts(settings),
    }
    if options.json:
        print(json.dumps(facts))
    else:
        for name, value in _lines(facts):
            print(f"{name:<26}{value}")
    return 1 if len(facts["unserved"]) == len(catalogue) else 0


def _previous(settings: Settings) -> str | None:
    """Return the bundle that a rollback returns to, or None."""
    try:
        active = read_active(registry_folder(settings))
    except BundleError:
        return None
    return None if active is None else active.previous


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


def _exploration_facts(settings: Settings) -> dict[str, Any] | None:
    """Return what exploration did and cost in the last week; None where no decision was recorded."""
    try:
        store = event_store(settings)
    except StoreError:
        return None
    try:
        recent = EventFilter(("decision",), since_s=time.time() - _RECENT_S)
        found = exploration_cost(event for _, event in store.read(recent))
    except StoreError:
        return None
    finally:
        store.close()
    if not found.decisions:
        return None
    return {
        "days": _RECENT_S / 86_400.0,
        "decisions": found.decisions,
        "explored": found.explored,
        "share": found.share,
        "utility_lost_per_1000": found.utility_lost_per_1000,
        "added_s_per_1000": found.added_s_per_1000,
    }


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
    import httpx  # deferred: the other commands need no client

    from router_ml.hosts.http import api_key_headers, is_loopback

    shown = without_credentials(url)
    headers, local = api_key_headers(), is_loopback(url)
    try:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers=headers, trust_env=not local) as client:
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
    if facts["previous"]:
        yield "served before", f"{facts['previous']}; 'router-ml rollback' returns to it"
    yield "state folder", facts["state_dir"]
    yield "policy", facts["policy"]
    if (explored := facts["exploration"]) is not None:
        yield "explored", _explored_line(explored)
    for host in facts["hosts"]:
        if host["models"] is None:
            yield "host", f"no answer from {host['host']} ({host['problem']})"
        else:
            yield "host", f"{host['host']} has {', '.join(host['models']) or 'no models'}"
    if facts["unserved"]:
        yield "not on any host", ", ".join(facts["unserved"])


def _explored_line(facts: dict[str, Any]) -> str:
    line = f"{facts['share']:.1%} of {facts['decisions']:,} decisions in {facts['days']:.0f} days"
    if not facts["explored"]:
        return line + "; a policy's `exploration` sets the share"
    lost, added_s = facts["utility_lost_per_1000"], facts["added_s_per_1000"]
    return line + f"; expected cost for 1,000: {lost:.1f} of utility (a right answer is 1), {added_s:+.0f} s"
