"""The shared state that the settings name."""

from __future__ import annotations

import functools

from router_ml.settings import Settings
from router_ml.shared_state.local import LocalState
from router_ml.shared_state.redis import RedisState
from router_ml.shared_state.state import SharedState


def open_shared_state(settings: Settings) -> SharedState:
    """Return the state in Redis where ROUTER_ML_REDIS is set, the same for all parts of a process; else a local one.

    Raises `SettingsError` for a wrong URL; a server that is away is no error."""
    return _redis(settings.redis) if settings.redis else LocalState()


@functools.lru_cache(maxsize=4)
def _redis(url: str) -> RedisState:
    state = RedisState(url)
    state.start()
    return state
