"""The process-wide router behind `select_model`: built once, on first use, shared by all threads."""

from __future__ import annotations

import threading
from typing import Any

from router_ml.config import Settings, load_settings
from router_ml.router import ContextLike, Router
from router_ml.schema import Decision
from router_ml.selection.policy import Policy


class DefaultRouter:
    """Holds the one router of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._router: Router | None = None
        self._settings: Settings | None = None

    def get(self) -> tuple[Router, Settings]:
        """The router and the settings it was built with; the first caller builds, the others wait."""
        if self._router is None or self._settings is None:
            with self._lock:
                if self._router is None or self._settings is None:
                    settings = load_settings()
                    self._settings, self._router = settings, Router.load_or_heuristic(settings=settings)
        return self._router, self._settings

    def reset(self) -> None:
        """Forget the router, so that the next call loads the active bundle anew."""
        with self._lock:
            self._router = self._settings = None


DEFAULT = DefaultRouter()


def select_model(
    query: str,
    context: ContextLike = None,
    policy: Policy | str | None = None,
    router: Router | None = None,
    **options: Any,
) -> Decision:
    """Choose the model that should serve a query.

    `context` is a dictionary of what comes with it (all keys optional): `tools`, `n_tools`, `history` (turns, oldest
    first), `attachment`, `session_id`, `latency_budget_s`, `prompt_tokens`. `policy` is a preset (`fast`, `balanced`,
    `accurate`), a `Policy` or the path of a policy file; ROUTER_ML_POLICY sets the default. `router` replaces the
    process-wide one. Thread-safe.

    Raises `QueryError`, `ContextError` or `PolicyError` for input of the wrong kind. A missing or broken bundle is no
    error: the decision then comes from rules and the catalogue's priors, and its `reason` says so."""
    if router is not None:
        return router.decide(query, context, policy or "balanced", **options)
    shared, settings = DEFAULT.get()
    return shared.decide(query, context, policy or settings.policy, **options)
