"""The composition root: settings in, a working gateway out."""

from __future__ import annotations

import atexit
import functools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.router import Router
from router_ml.events.event import Recorder
from router_ml.hosts.options import GatewayOptions
from router_ml.monitor.watch import Watch, open_watch, open_writer
from router_ml.serve import Decider, Gateway
from router_ml.serve.answer import Answer
from router_ml.serve.answer_cache.exact import ExactCache
from router_ml.serve.node import CoordinatorNode
from router_ml.settings import Settings, load_settings


def build_gateway(
    settings: Settings | None = None,
    *,
    decider: Decider | None = None,
    catalogue: Catalogue | None = None,
    recorder: Recorder | None = None,
    watch: Watch | None = None,
    options: GatewayOptions | None = None,
    **overrides: Any,
) -> Gateway:
    """A gateway as the settings describe it: the active bundle's router (or the rules), the catalogue's models at
    their hosts, events into the event store, live metrics and alerts, experiments as their board has them.

    What is given replaces what would be built; `overrides` go to `Gateway` as they are. Give `watch=open_watch(...)` to
    keep hold of live metrics and alerts. With a `recorder` of your own there are neither, nor experiments unless
    you give an `assigner`, too.

    Raises `SettingsError` and `CatalogueError`; a missing bundle or store is no error."""
    settings = settings or load_settings()
    if decider is None:
        decider = Router.load_or_heuristic(settings=settings, remember=settings.decision_cache_size)
    if catalogue is None:
        known = getattr(decider, "catalogue", None)
        catalogue = known if isinstance(known, Catalogue) else load_catalogue(settings.catalogue)
    closers: list[Callable[[], object]] = []
    assigner = None
    if recorder is None:
        watch = watch or open_watch(settings)
        watch.start()
        recorder, assigner = watch.recorder, watch.rollout.assign
        closers.append(watch.close)
    arguments: dict[str, Any] = {
        "default_host": settings.ollama_host,
        "policy": settings.policy,
        "options": options or gateway_options(settings),
        "recorder": recorder,
        "assigner": assigner,
        "decider_of": bundle_routers(settings),
        "cache": answer_cache(settings),
        "closers": closers,
    }
    gateway = Gateway(decider, catalogue, **{**arguments, **overrides})
    atexit.register(_close, weakref.ref(gateway))  # what waits to be written is written, close or no close
    gateway.warm_up()
    return gateway


def _close(gateway: weakref.ref[Gateway]) -> None:
    living = gateway()
    if living is not None:
        living.close()


def build_node(settings: Settings | None = None, **overrides: Any) -> CoordinatorNode:
    """A coordinator's node that decides as the settings say and writes each decision into the event store.

    `overrides` go to `CoordinatorNode` as they are; give `machine=gateway.machine` where a gateway runs."""
    settings = settings or load_settings()
    if "recorder" not in overrides:
        writer = open_writer(settings)
        atexit.register(writer.close)
        overrides["recorder"] = writer
    decider = overrides.pop("decider", None) or Router.load_or_heuristic(settings=settings)
    return CoordinatorNode(decider, **{"policy": settings.policy, "stick_margin": settings.stick_margin, **overrides})


def gateway_options(settings: Settings) -> GatewayOptions:
    """The gateway's options as the settings have them."""
    return GatewayOptions(
        deadline_s=settings.deadline_s,
        last_resort=settings.last_resort,
        parallel=settings.parallel,
        stick_margin=settings.stick_margin,
        preload=settings.preload,
    )


def answer_cache(settings: Settings) -> ExactCache[Answer] | None:
    """The cache of answers, or None where it is off, as it is by default."""
    return ExactCache(max_entries=settings.answer_cache_size) if settings.answer_cache_size else None


def bundle_routers(settings: Settings) -> Callable[[str], Router]:
    """Routers of bundles by folder, each loaded once: what the arms of an experiment run."""

    @functools.lru_cache(maxsize=4)
    def router_of(bundle: str) -> Router:
        return Router.load(Path(bundle), settings=settings, remember=settings.decision_cache_size)

    return router_of
