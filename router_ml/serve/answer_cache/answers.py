"""When a request may be answered from the cache, and when an answer may be cached."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from router_ml.decide.selection.policy import resolve_policy
from router_ml.errors import PolicyError
from router_ml.serve.answer import Answer, Timings
from router_ml.serve.answer_cache.exact import CacheStats, ExactCache
from router_ml.serve.answer_cache.key import CacheKey, cache_key, deterministic, user_scope
from router_ml.serve.answer_cache.semantic import SemanticCache
from router_ml.serve.request_state import RequestState

log = logging.getLogger(__name__)


class CachedAnswers:
    """The caches as a gateway uses them: only for deterministic requests, only within one user or session.

    No error of a cache reaches the caller: the request is then served as if there were no cache."""

    def __init__(
        self,
        exact: ExactCache[Answer] | None,
        semantic: SemanticCache[Answer] | None,
        *,
        unscoped: bool,
        clock: Callable[[], float],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._exact, self._semantic, self._unscoped = exact, semantic, unscoped
        self._clock = clock
        self._pool = pool

    @property
    def stats(self) -> CacheStats | None:
        """Return the counts of the exact cache; None if there is none."""
        return None if self._exact is None else self._exact.stats

    async def find(self, state: RequestState) -> Answer | None:
        """Return a cached answer as this request's own, or None; set the request's key and decision."""
        if self._exact is None and self._semantic is None:
            return None
        try:
            state.key = self._key(state)
            cached = None if state.key is None else await self._look_up(state.key)
        except Exception as error:
            log.warning("the answer cache cannot be read (%s); a model is asked", type(error).__name__)
            return None
        if cached is None:
            return None
        state.decision = dataclasses.replace(cached.decision, decision_id=uuid.uuid4().hex)
        timings = Timings(total_s=self._clock() - state.began_s)
        return dataclasses.replace(_copied(cached), decision=state.decision, timings=timings, attempts=(), cached=True)

    def store(self, state: RequestState, answer: Answer) -> None:
        """Cache a finished answer. Those of an experiment are not cached: one arm must not answer for the other."""
        finished = answer.reply.done and answer.reply.done_reason in ("stop", None)
        if state.key is None or not finished or answer.empty or state.assignment is not None:
            return
        try:
            own = _copied(answer)
            if self._exact is not None:
                self._exact.put(state.key.whole, own, len(repr(answer.reply.wire)))
            if self._semantic is not None:
                self._pool.submit(self._semantic.put, state.key, own)
        except Exception as error:
            log.warning("the answer is not cached (%s)", type(error).__name__)

    async def _look_up(self, key: CacheKey) -> Answer | None:
        cached = self._exact.get(key.whole) if self._exact is not None else None
        if cached is None and self._semantic is not None:
            near = functools.partial(self._semantic.get, key)  # embeds the text: not on the loop
            cached = await asyncio.get_running_loop().run_in_executor(self._pool, near)
        return cached

    def _key(self, state: RequestState) -> CacheKey | None:
        request = state.request
        user = state.context.extra.get("user_id")
        scope = user_scope(user, state.context.session_id)
        nobody = scope is None and not user
        if not deterministic(request.options) or (scope is None and not (self._unscoped and nobody)):
            return None
        form = {
            "format": request.format,
            "think": request.think,
            "model": state.model,
            "logprobs": request.logprobs,
            "top_logprobs": request.top_logprobs,
        }
        return cache_key(scope, request.messages, request.tools, request.options, form, _policy_values(state))


def _policy_values(state: RequestState) -> str:
    """Return the policy by its values: two of one name may differ, and so may a file from what it was."""
    try:
        return repr(resolve_policy(state.policy))
    except PolicyError:  # one that only the decider in use knows
        return repr(state.policy)


def _copied(answer: Answer) -> Answer:
    """Return the answer with a response of its own: callers may write into theirs."""
    return dataclasses.replace(answer)
