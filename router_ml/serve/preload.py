"""Loads models into memory: when asked to, and ahead of the next request where that is enabled."""

from __future__ import annotations

import asyncio
import logging

from router_ml.hosts.fleet import Fleet
from router_ml.hosts.options import GatewayOptions
from router_ml.serve.demand import Demand
from router_ml.serve.request import OptionPins

log = logging.getLogger(__name__)


class Preloader:
    """Lives in one event loop."""

    def __init__(self, fleet: Fleet, pins: OptionPins, options: GatewayOptions) -> None:
        self._fleet, self._pins, self._options = fleet, pins, options
        self._demand = Demand()
        self.running: asyncio.Task[None] | None = None

    async def load(self, model: str) -> None:
        """Load a model with the options its requests have, so that none of them reloads it.

        Raises `HostError` and `TimeoutError`."""
        backend = self._fleet.backends(model)[0]
        async with asyncio.timeout(self._options.deadline_s):
            await backend.host.host.load(backend.wire_name, self._pins.of(model), self._options.keep_alive)
        self._fleet.answered(backend, loaded=True)

    def wanted(self, model: str) -> None:
        """Count a request for the model that would serve it if all were in memory: what is not loaded because it is
        not in memory would never be."""
        self._demand.chose(model)
        self._fleet.backends(model)[0].host.stays.wanted(model)

    def consider(self) -> None:
        """Begin to load the likely next model, where that is enabled and nothing runs."""
        if not self._options.preload or (self.running is not None and not self.running.done()):
            return
        backends = [b for model in self._fleet.catalogue.models for b in self._fleet.backends(model.name)]
        # The request this follows still holds its place.
        if sum(backend.gate.inside for backend in backends) > 1:
            return
        wanted = self._demand.next_to_load({b.model: b.resident for b in backends if b.unavailable() is None})
        if wanted is not None:
            self.running = asyncio.get_running_loop().create_task(self._load_quietly(wanted))

    async def _load_quietly(self, model: str) -> None:
        try:
            await self.load(model)
        except Exception as error:
            log.info("%s was not loaded ahead of time: %s", model, error)
