"""A value fetched from elsewhere: cached for a while, fetched by one caller at a time, and cached for longer when the
fetch fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_RETRY_MAX_S = 30.0


class Fresh(Generic[T]):
    """One cached value with a lifetime. Lives in one event loop.

    However many callers find it stale, one fetch runs. A failed fetch keeps the old value (stale-while-error) and
    is repeated no sooner than `retry_s`, doubling to 30 s."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[T]],
        ttl_s: float,
        clock: Callable[[], float],
        retry_s: float = 0.5,
    ) -> None:
        self._fetch = fetch
        self._ttl_s = ttl_s
        self._clock = clock
        self._retry_s = retry_s
        self._value: T | None = None
        self._fetched_at: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._not_before = float("-inf")
        self._failures = 0

    @property
    def value(self) -> T | None:
        """Return the latest value, however old; None before the first."""
        return self._value

    @property
    def age_s(self) -> float:
        """Return the seconds since the value was fetched; infinite before the first."""
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    @property
    def failing(self) -> bool:
        """Whether the latest fetch failed."""
        return self._failures > 0

    async def get(self, wait_s: float) -> T | None:
        """Return the value; a stale one is refreshed first, which is waited for no longer than `wait_s` seconds."""
        if self.age_s > self._ttl_s:
            task = self._refresh()
            if task is not None and wait_s > 0:
                await asyncio.wait({task}, timeout=wait_s)
        return self._value

    def change(self, change: Callable[[T], T]) -> None:
        """Apply to the value what was learned elsewhere; its age stays."""
        if self._value is not None:
            self._value = change(self._value)

    def expire_in(self, seconds: float) -> None:
        """Let the value live no longer than this many seconds from now on."""
        if self._fetched_at is not None:
            self._fetched_at = min(self._fetched_at, self._clock() - self._ttl_s + seconds)

    def expire(self) -> None:
        """Make the next `get` fetch again."""
        self._fetched_at = None
        self._not_before = float("-inf")

    def retry_now(self) -> None:
        """Fetch a stale value at the next `get`, even where earlier fetches failed."""
        self._not_before = float("-inf")

    def _refresh(self) -> asyncio.Task[None] | None:
        if self._task is not None:
            return self._task
        if self._clock() < self._not_before:
            return None
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self._task

    async def _run(self) -> None:
        try:
            self._value = await self._fetch()
            self._fetched_at = self._clock()
            self._failures = 0
        except Exception:  # requests continue with the cached value after any error
            self._failures += 1
            wait_s = min(self._retry_s * 2 ** (self._failures - 1), _RETRY_MAX_S)
            self._not_before = self._clock() + wait_s
        finally:
            self._task = None
