"""What is known of one host: whether it takes connections, what is installed, what is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from router_ml.hosts.failure import HostError, classify
from router_ml.hosts.host import Host, Installed, Running
from router_ml.hosts.options import GatewayOptions
from router_ml.hosts.pace import Pace
from router_ml.hosts.refresh import Fresh
from router_ml.hosts.stay import Stays, keep_alive_s

T = TypeVar("T")

_RESIDENCY_VALID_TTLS = 5.0  # times its lifetime; an older listing is ignored
_REFRESH_AFTER_404_S = 10.0  # it may be pulled again, or the 404 may have been a mistake
_POLL_FIRST_S, _POLL_MAX_S = 0.05, 0.4  # between two checks of a host that takes no connections
_POLL_FOR_S = 60.0  # after the last request that wanted the host
_CHECK_VALID_S = 0.25  # a host that refused a connection so short a time ago is not checked again at once


class HostState:
    """One host with its availability and residency. Lives in one event loop.

    A refused connection is a fact of the host: it is `down` for all its models until a check or a reply succeeds. While
    requests want it, one task checks it every few tenths of a second."""

    def __init__(self, host: Host, options: GatewayOptions, clock: Callable[[], float]) -> None:
        self.host = host
        self.url = host.url
        self._options = options
        self._clock = clock
        self.tags: Fresh[Mapping[str, Installed]] = Fresh(
            lambda: self._listed(host.installed), options.availability_ttl_s, clock
        )
        self.running: Fresh[Mapping[str, Running]] = Fresh(
            lambda: self._listed(host.running), options.residency_ttl_s, clock
        )
        self.pace = Pace(clock)
        self.stays = Stays(clock, keep_alive_s(options.keep_alive))
        self.seen_up = False
        self._down_since: float | None = None
        self._checked_at = float("-inf")
        self._wanted_at = float("-inf")
        self._back = asyncio.Event()
        self._poll: asyncio.Task[None] | None = None
        self._checking: asyncio.Task[None] | None = None

    @property
    def down(self) -> bool:
        """Whether it refused the latest connection."""
        return self._down_since is not None

    @property
    def down_s(self) -> float:
        """Return for how many seconds it has taken no connections; 0 if it takes them."""
        return 0.0 if self._down_since is None else self._clock() - self._down_since

    def resident(self, model: str) -> bool | None:
        """Return whether a model is in memory, by the latest refresh that is not stale; None if unknown."""
        names = self.running.value
        if names is None or self.running.age_s > self._options.residency_ttl_s * _RESIDENCY_VALID_TTLS:
            return None
        return model in names

    def context_tokens(self, model: str) -> int | None:
        """Return the window a model was loaded with, by the latest listing; None if the host did not report it."""
        entry = (self.running.value or {}).get(model)
        return entry.context_tokens if entry else None

    def requests_per_load(self, model: str) -> float:
        """Return how many requests would share a load of a model now."""
        return self.stays.requests(model, len(self.running.value or ()))

    def missing(self, model: str) -> None:
        """Note a 404: the model counts as missing until the next listing of installed models, which follows soon."""
        self.tags.change(lambda tags: {name: entry for name, entry in tags.items() if name != model})
        self.tags.expire_in(_REFRESH_AFTER_404_S)

    def answered(self, model: str, loaded: bool) -> None:
        """Note that a model replied, so that it is in memory; where it had to be `loaded`, another may have left."""
        self.took_connection()
        self.running.change(lambda running: running if model in running else {**running, model: Running()})
        if loaded:
            self.running.expire_in(0.0)

    def refused(self) -> None:
        """Note that it takes no connections."""
        self._checked_at = self._clock()
        if self._down_since is None:
            self._down_since = self._clock()
            self._back.clear()

    def took_connection(self) -> None:
        """Note that it takes connections, whatever the reply was."""
        self._checked_at = self._clock()
        self.seen_up = True
        if self._down_since is not None:
            self._down_since = None
            self._back.set()
            self.tags.retry_now()
            self.running.retry_now()

    async def refresh(self) -> None:
        """Refresh what is stale, waiting at most as long as a request may."""
        first = self.tags.value is None or self.running.value is None
        wait_s = self._options.probe_wait_s if first else self._options.residency_wait_s
        tags_wait_s = wait_s if self.tags.value is None else 0.0  # an old list serves until the new one is here
        await asyncio.gather(self.tags.get(tags_wait_s), self.running.get(wait_s))

    async def is_up(self, checked_within_s: float = _CHECK_VALID_S) -> bool:
        """Return whether it takes connections, by a refresh at most so many seconds old."""
        self._wanted_at = self._clock()
        if self._clock() - self._checked_at >= checked_within_s:
            await self._check()
        if self.down:
            self._keep_polling()
        return not self.down

    async def back_within(self, wait_s: float) -> bool:
        """Wait until it takes connections again, at most `wait_s` seconds; return whether it does."""
        if not await self.is_up() and wait_s > 0:
            try:
                async with asyncio.timeout(wait_s):
                    await self._back.wait()
            except TimeoutError:
                return False
        return not self.down

    async def close(self) -> None:
        """Close every connection."""
        if self._poll is not None:
            self._poll.cancel()
        await self.host.close()

    def _keep_polling(self) -> None:
        if self._poll is None or self._poll.done():
            self._poll = asyncio.get_running_loop().create_task(self._poll_until_back())

    async def _poll_until_back(self) -> None:
        wait_s = _POLL_FIRST_S
        while self.down and self._clock() - self._wanted_at < _POLL_FOR_S:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _POLL_MAX_S)
            await self._check()

    async def _check(self) -> None:
        """Check it once for all concurrent callers."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check_once())
        await asyncio.shield(self._checking)

    async def _check_once(self) -> None:
        try:
            await self._listed(self.host.running)
        except Exception as error:  # `_failed` has noted a refusal
            if classify(error).kind == "connection":  # the host is shutting down at this moment
                self.refused()

    async def _listed(self, listing: Callable[[], Awaitable[T]]) -> T:
        try:
            models = await listing()
        except Exception as error:
            self._failed(error)
            raise
        self.took_connection()
        return models

    def _failed(self, error: Exception) -> None:
        """Note a failed check: an error sent by the host proves that it takes connections."""
        if classify(error).kind == "refused":
            self.refused()
        elif isinstance(error, HostError):
            self.took_connection()
