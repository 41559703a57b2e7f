"""The process-wide router behind `select_model` and its kin: built once, on first use, shared by all threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.decide.decision_cache import DecisionCache, decision_key, renewed
from router_ml.decide.router import ContextLike, Router, is_list
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.errors import QueryError
from router_ml.settings import Settings, load_settings
from router_ml.types import Decision

if TYPE_CHECKING:
    from router_ml.decide.batching import MicroBatcher

PolicyLike = Policy | str | None


class _Desk(NamedTuple):
    """A router, the settings it was built with, and the decisions it made lately."""

    router: Router
    settings: Settings
    cache: DecisionCache | None


class DefaultRouter:
    """Holds the one router of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._desk: _Desk | None = None
        self._batcher: MicroBatcher | None = None

    def get(self) -> tuple[Router, Settings]:
        """The router and the settings it was built with; the first caller builds, the others wait."""
        return self.desk()[:2]

    def desk(self) -> _Desk:
        """The router with its settings and its cache."""
        desk = self._desk  # read once: another thread may reset it meanwhile
        if desk is None:
            with self._lock:
                desk = self._desk
                if desk is None:
                    desk = self._desk = _open_desk()
        return desk

    @property
    def loaded(self) -> bool:
        """Whether the router is there already."""
        return self._desk is not None

    @property
    def batcher(self) -> MicroBatcher:
        """What serves concurrent callers."""
        from router_ml.decide.batching import MicroBatcher  # deferred: asyncio is a tenth of a cold start

        with self._lock:
            if self._batcher is None:
                self._batcher = MicroBatcher()
            return self._batcher

    def reset(self) -> None:
        """Forget the router, so that the next call loads the active bundle anew."""
        with self._lock:
            self._desk = None

    def after_fork(self) -> None:
        """Threads do not survive a fork, and a lock may have been held by one of them."""
        self._lock = threading.Lock()
        self._batcher = None


def _open_desk() -> _Desk:
    settings = load_settings()
    size = settings.decision_cache_size
    return _Desk(Router.load_or_heuristic(settings=settings), settings, DecisionCache(size) if size else None)


DEFAULT = DefaultRouter()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DEFAULT.after_fork)


def select_model(
    query: str,
    context: ContextLike = None,
    policy: PolicyLike = None,
    router: Router | None = None,
    **options: Any,
) -> Decision:
    """Choose the model that should serve a query.

    `context` is a dictionary of what comes with it (all keys optional): `tools`, `n_tools`, `history` (turns, oldest
    first), `attachment`, `session_id`, `latency_budget_s`, `prompt_tokens`. `policy` is a preset (`fast`, `balanced`,
    `accurate`), a `Policy` or the path of a policy file; ROUTER_ML_POLICY sets the default. `router` replaces the
    process-wide one. Thread-safe.

    The process-wide router remembers its last decisions (ROUTER_ML_DECISION_CACHE of them, for five minutes): the same
    query in the same context under the same policy gets the same decision under a new id. Not so with `options` (as
    `machine=`) or a policy that explores.

    Raises `QueryError`, `ContextError` or `PolicyError` for input of the wrong kind. A missing or broken bundle is no
    error: the decision then comes from rules and the catalogue's priors, and its `reason` says so."""
    if router is not None:
        return router.decide(query, context, "balanced" if policy is None else policy, **options)
    desk = DEFAULT.desk()
    if options:
        return desk.router.decide(query, context, desk.settings.policy if policy is None else policy, **options)
    resolved = resolve_policy(desk.settings.policy if policy is None else policy)
    key = _key(desk, query, context, resolved)
    kept = _kept(desk, key)
    return kept or _keep(desk, key, desk.router.decide(query, context, resolved))


def select_models(
    queries: Sequence[str],
    contexts: Sequence[ContextLike] | None = None,
    policy: PolicyLike = None,
    router: Router | None = None,
) -> list[Decision]:
    """Choose a model for each of many queries, in small batches on all cores; as `select_model` for each, and several
    times cheaper. `contexts` has one entry for each query (None where there is none). Raises as `select_model` does,
    and `QueryError` where the two do not have the same length."""
    if router is not None:
        return router.decide_many(queries, contexts, "balanced" if policy is None else policy)
    desk = DEFAULT.desk()
    resolved = resolve_policy(desk.settings.policy if policy is None else policy)
    listed = is_list(queries) and (contexts is None or is_list(contexts))
    if desk.cache is None or not listed or (contexts is not None and len(contexts) != len(queries)):
        return desk.router.decide_many(queries, contexts, resolved)
    given = contexts or [None] * len(queries)
    keys = [_key(desk, query, context, resolved) for query, context in zip(queries, given, strict=True)]
    found = [_kept(desk, key) for key in keys]
    missing = [i for i, decision in enumerate(found) if decision is None]
    made = desk.router.decide_many([queries[i] for i in missing], [given[i] for i in missing], resolved)
    fresh = {i: _keep(desk, keys[i], decision) for i, decision in zip(missing, made, strict=True)}
    return [decision or fresh[i] for i, decision in enumerate(found)]


async def aselect_model(
    query: str,
    context: ContextLike = None,
    policy: PolicyLike = None,
    router: Router | None = None,
) -> Decision:
    """`select_model` for event loops: the loop never waits for the encoder, and calls that come together are decided
    together. Raises as `select_model` does."""
    if not isinstance(query, str):
        raise QueryError(f"a query must be a string, found {type(query).__name__}; decode or convert it first")
    if router is not None:
        return await DEFAULT.batcher.decide(router, query, context, "balanced" if policy is None else policy)
    desk = DEFAULT.desk() if DEFAULT.loaded else await DEFAULT.batcher.call(DEFAULT.desk)
    resolved = resolve_policy(desk.settings.policy if policy is None else policy)
    key = _key(desk, query, context, resolved)
    kept = _kept(desk, key)
    return kept or _keep(desk, key, await DEFAULT.batcher.decide(desk.router, query, context, resolved))


def _key(desk: _Desk, query: str, context: ContextLike, policy: Policy) -> Any:
    """The key a decision is kept under; None where it must be made anew each time."""
    if desk.cache is None or policy.exploration:
        return None
    return decision_key(query, context, policy, desk.router.name)


def _kept(desk: _Desk, key: Any) -> Decision | None:
    if key is None or desk.cache is None:
        return None
    decision = desk.cache.get(key)
    return None if decision is None else renewed(decision, desk.router.new_id())


def _keep(desk: _Desk, key: Any, decision: Decision) -> Decision:
    """Keep what would be decided again just so: not what a passing fault of the encoder forced."""
    if key is not None and desk.cache is not None and decision.degraded == bool(desk.router.degraded):
        desk.cache.put(key, renewed(decision, decision.decision_id))
    return decision
