"""Answers given before: when a request may be served from one, and when an answer may be kept."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from router_ml.serve.answer import Answer, Timings
from router_ml.serve.answer_cache.exact import CacheStats, ExactCache
from router_ml.serve.answer_cache.key import CacheKey, cache_key, deterministic
from router_ml.serve.answer_cache.semantic import SemanticCache
from router_ml.serve.request import part, plain
from router_ml.serve.request_state import RequestState

_MESSAGE_PARTS = ("role", "content", "images", "tool_calls", "tool_name", "thinking")


class CachedAnswers:
    """The caches as a gateway uses them: only for deterministic requests, only within one user or session."""

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
        """Of the exact cache; None where there is none."""
        return None if self._exact is None else self._exact.stats

    async def find(self, job: RequestState) -> Answer | None:
        """A kept answer, as this request's own; sets the job's key and decision."""
        if self._exact is None and self._semantic is None:
            return None
        job.key = self._key(job)
        if job.key is None:
            return None
        kept = self._exact.get(job.key.whole) if self._exact is not None else None
        if kept is None and self._semantic is not None:
            near = functools.partial(self._semantic.get, job.key)  # embeds the text: not on the loop
            kept = await asyncio.get_running_loop().run_in_executor(self._pool, near)
        if kept is None:
            return None
        job.decision = dataclasses.replace(kept.decision, decision_id=uuid.uuid4().hex)
        return dataclasses.replace(
            _copied(kept),
            decision=job.decision,
            timings=Timings(total_s=self._clock() - job.began_s),
            attempts=(),
            cached=True,
        )

    def keep(self, job: RequestState, answer: Answer) -> None:
        """Keeps a finished answer. Those of an experiment are not: an arm must not speak for the other."""
        finished = answer.response.done and answer.response.done_reason in ("stop", None)
        if job.key is None or not finished or job.assignment is not None:
            return
        own = _copied(answer)
        if self._exact is not None:
            self._exact.put(job.key.whole, own, len(answer.response.model_dump_json()))
        if self._semantic is not None:
            self._pool.submit(self._semantic.put, job.key, own)

    def _key(self, job: RequestState) -> CacheKey | None:
        request = job.request
        scope = str(job.context.extra.get("user_id") or job.context.session_id or "")
        if not deterministic(request.options) or not (scope or self._unscoped):
            return None
        form = {
            "format": request.format,
            "think": request.think,
            "model": job.model,
            "logprobs": request.logprobs,
            "top_logprobs": request.top_logprobs,
        }
        messages = [{key: part(message, key) for key in _MESSAGE_PARTS} for message in request.messages]
        return cache_key(scope, messages, [plain(t) for t in request.tools], request.options, form, job.policy_name)


def _copied(answer: Answer) -> Answer:
    """The answer with a response of its own: callers may write into theirs."""
    return dataclasses.replace(answer, response=answer.response.model_copy(deep=True))
