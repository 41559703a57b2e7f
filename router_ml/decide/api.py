"""The process-wide router behind `select_model` and its variants: built once, on first use, shared by all threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from router_ml.bundles.registry import active_stamp
from router_ml.decide.decision_cache import DecisionCache, decision_key, renewed
from router_ml.decide.query import ContextLike, read_query
from router_ml.decide.reload import Reloader
from router_ml.decide.router import Router, is_list
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.settings import Settings, load_settings
from router_ml.types import Context, Decision

if TYPE_CHECKING:
    from router_ml.decide.batching import MicroBatcher

PolicyLike = Policy | str | None


class RouterState(NamedTuple):
    """A router, the settings it was built with, and the cache of its decisions."""

    router: Router
    settings: Settings
    cache: DecisionCache | None


class DefaultRouter:
    """Holds the one router of this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come while its thread holds it
        self._state: RouterState | None = None
        self._batcher: MicroBatcher | None = None
        self._reloader: Reloader[RouterState] | None = None

    def get(self) -> tuple[Router, Settings]:
        """Return the router and the settings it was built with; the first caller builds, the others wait."""
        return self.state()[:2]

    def state(self) -> RouterState:
        """Return the router with its settings and its cache."""
        state = self._state  # read once: another thread may reset it meanwhile
        if state is None:
            with self._lock:
                state = self._state
                if state is None:
                    state = self._state = _open_state()
                    self._follow(state.settings)
        return state

    @property
    def loaded(self) -> bool:
        """Return whether the router is there already."""
        return self._state is not None

    @property
    def batcher(self) -> MicroBatcher:
        """Return the batcher for concurrent callers."""
        from router_ml.decide.batching import MicroBatcher  # deferred: asyncio is a tenth of a cold start

        with self._lock:
            if self._batcher is None:
                self._batcher = MicroBatcher()
            return self._batcher

    def reset(self) -> None:
        """Drop the router, so that the next call loads the active bundle again."""
        with self._lock:
            self._state = None
            if self._reloader is not None:
                self._reloader.stop()

    def _follow(self, settings: Settings) -> None:
        """Take each bundle that is promoted from now on."""
        self._reloader = Reloader(
            lambda: active_stamp(settings), lambda: _loaded(settings), self._adopt, settings.reload_s
        )
        self._reloader.start()

    def _adopt(self, state: RouterState) -> None:
        self._state = state

    def after_fork(self) -> None:
        """Replace the locks that threads of the parent process may have held; those threads do not survive a fork."""
        self._lock = threading.RLock()
        self._batcher = None


def _open_state() -> RouterState:
    settings = load_settings()
    return _state_of(Router.load_or_heuristic(settings=settings), settings)


def _loaded(settings: Settings) -> RouterState:
    return _state_of(Router.load(settings=settings), settings)


def _state_of(router: Router, settings: Settings) -> RouterState:
    size = settings.decision_cache_size
    return RouterState(router, settings, DecisionCache(size) if size else None)


DEFAULT = DefaultRouter()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DEFAULT.after_fork)


def select_model(
    query: str | Sequence[Any],
    context: ContextLike = None,
    policy: PolicyLike = None,
    router: Router | None = None,
    **options: Any,
) -> Decision:
    """Choose the model that should serve a query.

    `query` is a text, or the messages of a conversation (dictionaries, pairs, LangChain or ollama messages): the
    last message of the user is classified then; the turns before it and attached files complete the context.

    `context` is a dictionary of what comes with it (all keys optional): `tools` (names, functions, JSON schemas,
    pydantic models, LangChain tools), `n_tools`, `history` (turns, oldest first), `attachment`, `session_id`,
    `latency_budget_s`, `prompt_tokens`. `policy` is a preset (`fast`, `balanced`, `accurate`), a `Policy` or the path
    of a policy file; ROUTER_ML_POLICY sets the default. `router` replaces the process-wide one. Thread-safe; a signal
    handler may call it.

    The process-wide router caches its last decisions (ROUTER_ML_DECISION_CACHE of them, for five minutes): the same
    query in the same context under the same policy gets the same decision under a new id. Not so with `options` (as
    `machine=`) or a policy that explores.

    Raises `QueryError`, `ContextError` or `PolicyError` for input of the wrong kind. A missing or broken bundle is no
    error: the decision then comes from rules and the catalogue's priors, and its `reason` says so."""
    if router is not None:
        return router.decide(query, context, "balanced" if policy is None else policy, **options)
    state = DEFAULT.state()
    if options:
        return state.router.decide(query, context, state.settings.policy if policy is None else policy, **options)
    resolved = resolve_policy(state.settings.policy if policy is None else policy)
    query, context, key = _keyed(state, query, context, resolved)
    return _cached(state, key) or _store(state, key, state.router.decide(query, context, resolved))


def select_models(
    queries: Sequence[Any],
    contexts: Sequence[ContextLike] | None = None,
    policy: PolicyLike = None,
    router: Router | None = None,
) -> list[Decision]:
    """Choose a model for each of many queries, in small batches on all cores; as `select_model` for each, and several
    times cheaper. `contexts` has one entry for each query (None if there is none). Raises as `select_model` does,
    and `QueryError` where the two do not have the same length."""
    if router is not None:
        return router.decide_many(queries, contexts, "balanced" if policy is None else policy)
    state = DEFAULT.state()
    resolved = resolve_policy(state.settings.policy if policy is None else policy)
    listed = is_list(queries) and (contexts is None or is_list(contexts))
    if state.cache is None or not listed or (contexts is not None and len(contexts) != len(queries)):
        return state.router.decide_many(queries, contexts, resolved)
    given = contexts or [None] * len(queries)
    keyed = [_keyed(state, query, context, resolved) for query, context in zip(queries, given, strict=True)]
    found = [_cached(state, key) for _, _, key in keyed]
    missing = [i for i, decision in enumerate(found) if decision is None]
    made = state.router.decide_many([keyed[i][0] for i in missing], [keyed[i][1] for i in missing], resolved)
    new = {i: _store(state, keyed[i][2], decision) for i, decision in zip(missing, made, strict=True)}
    return [decision or new[i] for i, decision in enumerate(found)]


async def aselect_model(
    query: str | Sequence[Any],
    context: ContextLike = None,
    policy: PolicyLike = None,
    router: Router | None = None,
) -> Decision:
    """Choose the model as `select_model` does, for event loops: the loop never waits for the encoder, and calls that
    come together are decided together. Raises as `select_model` does."""
    if router is not None:
        return await DEFAULT.batcher.decide(router, query, context, "balanced" if policy is None else policy)
    state = DEFAULT.state() if DEFAULT.loaded else await DEFAULT.batcher.call(DEFAULT.state)
    resolved = resolve_policy(state.settings.policy if policy is None else policy)
    query, context, key = _keyed(state, query, context, resolved)
    found = _cached(state, key)
    return found or _store(state, key, await DEFAULT.batcher.decide(state.router, query, context, resolved))


def _keyed(state: RouterState, query: Any, context: ContextLike, policy: Policy) -> tuple[Any, ContextLike, Any]:
    """Return the query and its context, read where need be, and the key of their decision; None if it is not
    cached."""
    if state.cache is None or policy.exploration:
        return query, context, None
    key = decision_key(query, context, policy, state.router.name)
    if key is None and not (isinstance(query, str) and (context is None or isinstance(context, Context))):
        query, context = read_query(query, context)  # objects of other libraries are values once they are read
        key = decision_key(query, context, policy, state.router.name)
    return query, context, key


def _cached(state: RouterState, key: Any) -> Decision | None:
    if key is None or state.cache is None:
        return None
    decision = state.cache.get(key)
    return None if decision is None else renewed(decision, state.router.new_id())


def _store(state: RouterState, key: Any, decision: Decision) -> Decision:
    """Cache the decision unless a temporary fault of the encoder affected it."""
    if key is not None and state.cache is not None and decision.degraded == bool(state.router.degraded):
        state.cache.put(key, renewed(decision, decision.decision_id))
    return decision
