"""What the endpoints share: gateway, router, watch, hosts and options."""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from dataclasses import dataclass

from cachetools import LRUCache

from router_ml.catalogue import Catalogue, load_catalogue
from router_ml.decide.reload import LiveRouter
from router_ml.decide.router import Router
from router_ml.events.event import Recorders
from router_ml.hosts.options import GatewayOptions
from router_ml.http.dashboard.recent import RecentRequests
from router_ml.http.keys import KeyFile
from router_ml.http.options import ServerOptions
from router_ml.http.proxy import Proxy
from router_ml.http.routed_models import RoutedModels
from router_ml.monitor.watch import Watch, open_watch
from router_ml.serve.build import build_gateway, found_on_hosts, gateway_options, live_router
from router_ml.serve.choose import Decider
from router_ml.serve.gateway import Gateway
from router_ml.settings import Settings, base_url
from router_ml.shared_state.connect import open_shared_state
from router_ml.shared_state.mirror import Mirror, open_mirror
from router_ml.shared_state.state import SharedState
from router_ml.types import Decision

_REMEMBERED = 1_000  # older ones are in the event store


class RecentDecisions:
    """The latest decisions by id. Thread-safe."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._decisions: LRUCache[str, Decision] = LRUCache(size)
        self._lock = threading.Lock()

    def remember(self, decision: Decision) -> None:
        """Store a decision."""
        with self._lock:
            self._decisions[decision.decision_id] = decision

    def get(self, decision_id: str) -> Decision | None:
        """Return the decision of that id, or None."""
        with self._lock:
            return self._decisions.get(decision_id)

    def reason(self, decision_id: str) -> str:
        """Return the reason of a decision, or "" if it is not known any more."""
        decision = self.get(decision_id)
        return decision.reason if decision else ""


@dataclass(frozen=True)
class Service:
    """Everything one server works with."""

    gateway: Gateway
    decider: Decider
    catalogue: Catalogue
    watch: Watch
    settings: Settings
    options: ServerOptions
    models: RoutedModels
    proxy: Proxy
    keys: KeyFile
    decided: RecentDecisions
    recent: RecentRequests
    stopping: threading.Event  # set once the server stops
    shared: SharedState  # with the other replicas
    mirror: Mirror | None = None  # of the files that all replicas have

    def full_s(self) -> float | None:
        """Seconds until a model may have a free slot if every queue is full, else None.

        A model that is not in memory has no place on a host where another one's queue is full."""
        limits = self.gateway.options
        rows = [row for row in self.gateway.status()["backends"] if row["available"]]
        full = [row for row in rows if row["running"] >= limits.parallel and row["waiting"] >= limits.max_waiting]
        crowded = {row["host"] for row in full}
        if not full or any(r not in full and (r["resident"] or r["host"] not in crowded) for r in rows):
            return None
        return min(float(row["queue_s"]) for row in full)

    def close(self) -> None:
        """End what runs and write what waits."""
        self.gateway.close()
        self.watch.close()
        if self.mirror is not None:
            self.mirror.close()


def open_service(
    settings: Settings,
    options: ServerOptions,
    *,
    decider: Decider | None = None,
    catalogue: Catalogue | None = None,
    gateway_limits: GatewayOptions | None = None,
) -> Service:
    """Build the service from settings and options; objects that are passed replace those it would build.

    Raises `SettingsError`, `CatalogueError` and `PolicyError`."""
    hosts = tuple(base_url(url) for url in options.hosts) or (settings.ollama_host,)
    settings = dataclasses.replace(settings, ollama_host=hosts[0])
    mirror = open_mirror(settings)
    if mirror is not None:  # first: a new replica begins with what the others have
        mirror.sync()
        mirror.start()
    decider = decider or live_router(settings, catalogue or found_on_hosts(settings, hosts))
    served = _hosted(catalogue or _known(decider, settings), hosts)
    models = RoutedModels(served, settings.policy, options.policy_files)  # first: a bad policy file starts nothing
    recent, watch = RecentRequests(), open_watch(settings)
    if mirror is not None and isinstance(decider, LiveRouter):
        mirror.listen(decider.reloader.check)
    watch = dataclasses.replace(watch, recorder=Recorders((watch.recorder, recent)))
    limits = gateway_limits or gateway_options(settings)
    shared = open_shared_state(settings)
    gateway = build_gateway(settings, decider=decider, catalogue=served, watch=watch, options=limits, shared=shared)
    if isinstance(decider, LiveRouter):
        decider.on_change = functools.partial(_use_catalogue, weakref.ref(gateway), hosts)
    return Service(
        gateway=gateway,
        decider=decider,
        catalogue=served,
        watch=watch,
        settings=settings,
        options=options,
        models=models,
        proxy=Proxy(_every_host(served, hosts), limits, watch.recorder, shared),
        keys=KeyFile(options.keys_file or settings.state_dir / "keys.json"),
        decided=RecentDecisions(),
        recent=recent,
        stopping=threading.Event(),
        shared=shared,
        mirror=mirror,
    )


def _use_catalogue(gateway: weakref.ref[Gateway], hosts: tuple[str, ...], router: Router) -> None:
    living = gateway()
    if living is not None:
        living.use_catalogue(_hosted(router.catalogue, hosts))


def _known(decider: Decider, settings: Settings) -> Catalogue:
    own = getattr(decider, "catalogue", None)
    return own if isinstance(own, Catalogue) else load_catalogue(settings.catalogue)


def _hosted(catalogue: Catalogue, hosts: tuple[str, ...]) -> Catalogue:
    """Return the catalogue with all of these hosts for every model that names none of its own."""
    if len(hosts) == 1:
        return catalogue
    models = (m if m.hosts else dataclasses.replace(m, hosts=hosts) for m in catalogue.models)
    return dataclasses.replace(catalogue, models=tuple(models))


def _every_host(catalogue: Catalogue, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the hosts that speak Ollama's API: a prefix such as `openai+` stands for another one."""
    own = (base_url(url) for model in catalogue.models for url in model.hosts)
    return tuple(dict.fromkeys(url for url in (*hosts, *own) if url.startswith(("http://", "https://"))))
