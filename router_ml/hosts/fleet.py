"""Every model on every host: what is there, what is in memory, how busy and how well it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from router_ml.catalogue import Catalogue
from router_ml.hosts.breaker import Breaker
from router_ml.hosts.gate import Gate
from router_ml.hosts.names import ModelNames
from router_ml.hosts.ollama import ClientFactory, Installed, OllamaHost, default_client
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.rates import Average, LiveRates
from router_ml.hosts.refresh import Fresh
from router_ml.settings import base_url
from router_ml.types import MachineState, ModelState

_RESIDENCY_GOOD_FOR = 5.0  # times its lifetime; an older look says nothing

_LOOK_AFTER_404_S = 10.0  # it may be pulled again, or the 404 may have been a mistake


@dataclass(slots=True)
class Backend:
    """One model on one host."""

    model: str
    host: Host
    breaker: Breaker
    gate: Gate
    rates: LiveRates
    lacks: frozenset[str] = frozenset()  # capabilities a refusal taught us it has not
    cold_timeouts: int = 0  # times in a row that it was not done loading in time

    @property
    def wire_name(self) -> str:
        """The name this host knows the model by."""
        entry = self._entry
        return entry.own_name if entry else self.model

    @property
    def installed(self) -> bool | None:
        """Whether the host has it; None where the host never said."""
        tags = self.host.tags.value
        return None if tags is None else self.model in tags

    @property
    def resident(self) -> bool | None:
        """Whether it is in memory; None where nobody knows."""
        return self.host.resident(self.model)

    def capabilities(self, catalogue: Catalogue) -> frozenset[str] | None:
        """What the host says it can do, less what it was seen to refuse; None where only the catalogue knows."""
        entry = self._entry
        stated = entry.capabilities if entry else None
        if not self.lacks:
            return stated
        model = catalogue.find(self.model)
        known = stated if stated is not None else model.capabilities if model else None
        return (known if known is not None else frozenset({"tools", "thinking", "vision"})) - self.lacks

    @property
    def load_s(self) -> float | None:
        """Expected seconds of a load: as seen here, else by the model's size at this host's speed of loading."""
        seen = self.rates.load_s
        if seen is not None:
            return seen
        entry, pace = self._entry, self.host.load_s_per_gb.value
        return None if entry is None or entry.size_gb is None or pace is None else entry.size_gb * pace

    def loaded_in(self, load_s: float) -> None:
        """Learns how quickly this host loads."""
        entry = self._entry
        if entry is not None and entry.size_gb:
            self.host.load_s_per_gb.add(load_s / entry.size_gb)

    @property
    def _entry(self) -> Installed | None:
        return (self.host.tags.value or {}).get(self.model)

    def queue_s(self, fallback_service_s: float = 1.0) -> float:
        """Expected wait for a place."""
        return self.gate.wait_s(self.rates.service_s or fallback_service_s)

    def state(self) -> ModelState:
        """What a selector may know of it."""
        recent, calls = self.rates.recent()
        reason = ""
        if self.installed is False:
            reason = f"not installed on {self.host.url}"
        elif not self.breaker.admits():
            reason = f"resting after failures on {self.host.url}"
        return ModelState(
            available=not reason,
            resident=self.resident,
            queue_s=self.queue_s(),
            load_s=self.load_s,
            prompt_tokens_per_s=self.rates.prompt_tokens_per_s,
            decode_tokens_per_s=self.rates.decode_tokens_per_s,
            recent_success=recent,
            recent_calls=calls,
            reason=reason,
        )


class Host:
    """One host with its availability and residency."""

    def __init__(self, transport: OllamaHost, options: GatewayOptions, clock: Callable[[], float]) -> None:
        self.transport = transport
        self.url = transport.url
        self._options = options
        self.tags: Fresh[Mapping[str, Installed]] = Fresh(transport.installed, options.availability_ttl_s, clock)
        self.load_s_per_gb = Average(weight=0.3)
        self.running: Fresh[frozenset[str]] = Fresh(transport.running, options.residency_ttl_s, clock)

    def resident(self, model: str) -> bool | None:
        """Whether a model is in memory, by the latest look that is not too old."""
        names = self.running.value
        if names is None or self.running.age_s > self._options.residency_ttl_s * _RESIDENCY_GOOD_FOR:
            return None
        return model in names

    def missing(self, model: str) -> None:
        """The host said 404: the model is gone until the next look at what is installed, which comes soon."""
        self.tags.change(lambda tags: {name: entry for name, entry in tags.items() if name != model})
        self.tags.look_again_in(_LOOK_AFTER_404_S)

    def answered(self, model: str) -> None:
        """The model answered, so it is in memory, and installed."""
        self.running.change(lambda names: names | {model})

    async def look(self) -> None:
        """Refreshes what is stale, waiting no longer than a request may."""
        first = self.tags.value is None or self.running.value is None
        wait_s = self._options.probe_wait_s if first else self._options.residency_wait_s
        tags_wait_s = wait_s if self.tags.value is None else 0.0  # an old list serves until the new one is here
        await asyncio.gather(self.tags.get(tags_wait_s), self.running.get(wait_s))


class Fleet:
    """All hosts and backends. Lives in one event loop; `state` may be read from any thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        default_host: str,
        options: GatewayOptions,
        clock: Callable[[], float] = time.monotonic,
        client_factory: ClientFactory = default_client,
    ) -> None:
        self.catalogue = catalogue
        self.names = ModelNames(catalogue)
        self._default_host = base_url(default_host)
        self._options = options
        self._clock = clock
        self._client_factory = client_factory
        self._hosts: dict[str, Host] = {}
        self._backends: dict[tuple[str, str], Backend] = {}
        for model in catalogue.models:
            self.backends(model.name)

    @property
    def hosts(self) -> tuple[Host, ...]:
        return tuple(self._hosts.values())

    def backends(self, model: str) -> tuple[Backend, ...]:
        """The places a model runs at, the quickest to begin first."""
        name = self.names.canonical(model)
        entry = self.catalogue.find(name)
        urls = (entry.hosts if entry else ()) or (self._default_host,)
        found = [self._backend(name, base_url(url)) for url in urls]
        return tuple(sorted(found, key=self._start_s)) if len(found) > 1 else tuple(found)

    async def look(self) -> None:
        """Brings availability and residency up to date, as far as a request may wait for it."""
        stale = [h for h in self._hosts.values() if h.tags.age_s > self._options.availability_ttl_s
                 or h.running.age_s > self._options.residency_ttl_s]  # fmt: skip
        if stale:
            await asyncio.gather(*(host.look() for host in stale))

    def state(self) -> MachineState:
        """A snapshot of every model of the catalogue: of several hosts, the one that would begin first."""
        return MachineState({model.name: self._best(self.backends(model.name)) for model in self.catalogue.models})

    def rows(self) -> list[dict[str, Any]]:
        """A JSON-ready row for every model on every host."""
        return [
            {
                "model": backend.model,
                "host": backend.host.url,
                "breaker": backend.breaker.state,
                "running": backend.gate.inside,
                "waiting": backend.gate.waiting,
                "service_s": backend.rates.service_s,
                **asdict(backend.state()),
            }
            for model in self.catalogue.models
            for backend in self.backends(model.name)
        ]

    def probe_all(self) -> None:
        """Forgets what is installed and in memory, so that the next request looks again."""
        for host in self._hosts.values():
            host.tags.expire()
            host.running.expire()

    async def close(self) -> None:
        """Closes every connection."""
        for host in self._hosts.values():
            await host.transport.close()

    def _best(self, backends: Iterable[Backend]) -> ModelState:
        states = [backend.state() for backend in backends]
        return next((state for state in states if state.available), states[0])

    def _start_s(self, backend: Backend) -> float:
        load_s = 0.0 if backend.resident else backend.load_s or self._options.cold_load_s
        away = 0.0 if backend.installed is not False and backend.breaker.admits() else 1e6
        return away + backend.queue_s() + load_s

    def _backend(self, model: str, url: str) -> Backend:
        key = (model, url)
        backend = self._backends.get(key)
        if backend is None:
            gate = Gate(self._options.parallel, self._options.max_waiting)
            breaker = Breaker(self._options.breaker, self._clock)
            backend = Backend(model, self._host(url), breaker, gate, LiveRates(self._clock))
            self._backends[key] = backend
        return backend

    def _host(self, url: str) -> Host:
        host = self._hosts.get(url)
        if host is None:
            transport = OllamaHost(url, self.names, self._options.connect_s, self._client_factory)
            host = self._hosts[url] = Host(transport, self._options, self._clock)
        return host
