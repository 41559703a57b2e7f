"""All hosts and the models on them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from cachetools import LRUCache

from router_ml.catalogue import Catalogue
from router_ml.errors import SettingsError
from router_ml.hosts.backend import Backend
from router_ml.hosts.host import Host
from router_ml.hosts.host_state import HostState
from router_ml.hosts.names import ModelNames
from router_ml.hosts.ollama import OllamaHost
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.pace import active_share
from router_ml.hosts.rates import LiveRates
from router_ml.hosts.shared_gate import backend_key, shared_pair
from router_ml.moved import renamed
from router_ml.settings import base_url, host_type, without_credentials
from router_ml.shared_state.state import Figures, SharedState
from router_ml.types import MachineState, ModelState

HostFactory = Callable[[str, ModelNames, float], Host]  # arguments: address, model names, connect timeout in seconds

# By the prefix of an address ("kind+http://..."); without one it is an Ollama server.
HOST_TYPES: Mapping[str, HostFactory] = MappingProxyType({"ollama": OllamaHost})
_UNCATALOGUED = 64  # models outside the catalogue that are remembered, each on one host
_FAR_S = 1e6  # sorts what cannot be called behind everything else
_base_url = functools.lru_cache(1024)(base_url)  # a request looks up the hosts of every model twice


def open_host(
    url: str, names: ModelNames, connect_s: float, host_types: Mapping[str, HostFactory] = HOST_TYPES
) -> Host:
    """Return the host at an address, of the type that its prefix names. Raises `SettingsError` for an unknown type."""
    kind, address = host_type(url)
    if kind not in host_types:
        known = ", ".join(sorted(host_types))
        raise SettingsError(
            f"unknown host type {kind!r} in {without_credentials(url)}; use one of {known}, or no prefix"
        )
    return host_types[kind](address, names, connect_s)


class Fleet:
    """All hosts and backends. Lives in one event loop; `state` may be read from any thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_host: str,
        options: GatewayOptions,
        clock: Callable[[], float] = time.monotonic,
        host_types: Mapping[str, HostFactory] = HOST_TYPES,
        shared: SharedState | None = None,
    ) -> None:
        self._shared = shared
        if shared is not None:
            shared.listen(self._heard)
        self.catalogue = catalogue
        self.names = ModelNames(catalogue)
        self._default_host = base_url(default_host)
        self._options = options
        self._clock = clock
        self._host_types = host_types
        self._hosts: dict[str, HostState] = {}
        self._backends: dict[tuple[str, str], Backend] = {}
        self._uncatalogued: LRUCache[tuple[str, str], Backend] = LRUCache(_UNCATALOGUED)
        for model in catalogue.models:
            self.backends(model.name)

    def use(self, catalogue: Catalogue) -> None:
        """Serve another catalogue from now on; what was learned of hosts and of models it keeps stays."""
        self.catalogue = catalogue
        self.names.use(catalogue)
        for model in catalogue.models:
            self.backends(model.name)
        self.expire()

    @property
    def hosts(self) -> tuple[HostState, ...]:
        """Return every host."""
        return tuple(self._hosts.values())

    def backends(self, model: str) -> tuple[Backend, ...]:
        """Return the backends of a model, the one expected to start first at the front."""
        name = self.names.canonical(model)
        entry = self.catalogue.find(name)
        urls = (entry.hosts if entry else ()) or (self._default_host,)
        found = [self._backend(name, _base_url(url)) for url in urls]
        return tuple(sorted(found, key=self._start_s)) if len(found) > 1 else tuple(found)

    def knows(self, model: str) -> bool:
        """Return whether a model is in the catalogue, or installed on the default host."""
        name = self.names.canonical(model)
        if self.catalogue.find(name) is not None:
            return True
        tags = self._host(self._default_host).tags.value
        return tags is not None and name in tags

    async def refresh(self) -> None:
        """Refresh stale availability and residency, waiting at most as long as a request may."""
        stale = [
            host
            for host in self._hosts.values()
            if host.tags.age_s > self._options.availability_ttl_s or host.running.age_s > self._options.residency_ttl_s
        ]
        if stale:
            await asyncio.gather(*(host.refresh() for host in stale))

    look = renamed("look", "refresh")
    expire_looks = renamed("expire_looks", "expire")

    def state(self) -> MachineState:
        """Return a snapshot of every model of the catalogue: of several hosts, the one that would begin first."""
        return MachineState({model.name: self._best(self.backends(model.name)) for model in self.catalogue.models})

    def rows(self) -> list[dict[str, Any]]:
        """Return a JSON-ready row for every model on every host."""
        return [
            {
                "model": backend.model,
                "host": backend.host.url,
                "breaker": backend.breaker.state,
                "running": backend.gate.inside,
                "waiting": backend.gate.waiting,
                "service_s": backend.rates.service_s,
                "prompts_cut": backend.prompts_cut,
                **asdict(backend.state()),
            }
            for model in self.catalogue.models
            for backend in self.backends(model.name)
        ]

    def answered(self, backend: Backend, loaded: bool) -> None:
        """Note that a backend replied, so that models of this host whose connections broke may be tried at once."""
        backend.host.answered(backend.model, loaded)
        for other in self._backends.values():
            if other.host is backend.host and other is not backend:
                other.breaker.host_recovered()

    def tell(self, backend: Backend, figures: Figures) -> None:
        """Tell the other replicas what an answer measured."""
        if self._shared is not None:
            self._shared.tell(backend_key(backend.model, backend.host.url), figures)

    def _heard(self, key: str, figures: Figures) -> None:
        """Learn from an answer of another replica, in whichever thread."""
        for backend in tuple(self._backends.values()):
            if backend_key(backend.model, backend.host.url) == key:
                backend.rates.succeeded(*figures)
                backend.measured()

    def expire(self) -> None:
        """Forget what is installed and in memory, so that the next request refreshes it."""
        for host in self._hosts.values():
            host.tags.expire()
            host.running.expire()

    async def close(self) -> None:
        """Close every connection."""
        for host in self._hosts.values():
            await host.close()

    def _best(self, backends: Iterable[Backend]) -> ModelState:
        states = [backend.state() for backend in backends]
        return next((state for state in states if state.available), states[0])

    def _start_s(self, backend: Backend) -> float:
        load_s = 0.0 if backend.resident else backend.load_s or self._options.cold_load_s
        away = 0.0 if backend.unavailable() is None and not backend.host.down else _FAR_S
        return away + backend.queue_s() + load_s

    def _backend(self, model: str, url: str) -> Backend:
        entry = self.catalogue.find(model)
        known: Any = self._uncatalogued if entry is None else self._backends
        backend: Backend | None = known.get((model, url))
        if backend is None:
            options = self._options
            gate, breaker = shared_pair(
                backend_key(model, url),
                options.parallel,
                options.max_waiting,
                options.breaker,
                self._shared,
                self._clock,
            )
            backend = known[model, url] = Backend(
                model,
                self._host(url),
                breaker,
                gate,
                LiveRates(self._clock),
                entry.parameters_b if entry else None,
                active_share(model),
            )
        return backend

    def _host(self, url: str) -> HostState:
        host = self._hosts.get(url)
        if host is None:
            opened = open_host(url, self.names, self._options.connect_s, self._host_types)
            host = self._hosts[url] = HostState(opened, self._options, self._clock)
        return host
