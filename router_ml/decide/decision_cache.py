"""A cache of decisions for identical queries."""

from __future__ import annotations

import marshal
import time
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b
from typing import Any

from cachetools import LRUCache

from router_ml.decide.shared_cache import SharedCache
from router_ml.messages import PLAIN_TYPES, check_bounded
from router_ml.types import EMPTY_CONTEXT, Context, Decision

DEFAULT_TTL_S = 300.0
MAX_QUERY_CHARS = 8_192  # longer queries seldom come twice
MAX_PLAIN_BYTES = 2_048  # a longer context is stored as its hash
MAX_VALUES = 20_000  # a context with more values is not cached
_PLAIN_VALUES = 2  # the form of marshal in which equal plain values give equal bytes


class DecisionCache:
    """The last `max_entries` decisions by query, context, policy and bundle, none older than `ttl_s`. Thread-safe.

    Keys hold the query itself, so nothing ever answers for another. What an entry cannot depend on (the session's id)
    is not part of the key."""

    def __init__(
        self, max_entries: int, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ttl_s, self._clock = ttl_s, clock
        # With the time it was stored: `TTLCache` takes twice as long, and a cached decision 5 us at most.
        self._entries: SharedCache[Hashable, tuple[float, Decision]] = SharedCache(lambda: LRUCache(max_entries))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Decision | None:
        """Return the decision stored under a key, with the id it was made with; None if there is none."""
        found = self._entries.get(key)
        if found is None:
            return None
        if self._clock() - found[0] >= self._ttl_s:
            self._entries.discard(key)
            return None
        return found[1]

    def put(self, key: Hashable, decision: Decision) -> None:
        """Store a decision; the least recently used leaves when there are too many."""
        self._entries.put({key: (self._clock(), decision)})


def decision_key(query: object, context: Context | Mapping[str, Any] | None, policy: Hashable, bundle: str) -> Any:
    """Return the cache key: what two requests must share to get the same decision. None if their values have no key."""
    if type(query) is not str or len(query) > MAX_QUERY_CHARS:
        return None
    try:
        key = (query, _context_key(context), policy, bundle)
        hash(key)
    except Exception:  # objects of other kinds in the context, which may do anything when they are read
        return None
    return key


def _context_key(context: Context | Mapping[str, Any] | None) -> Hashable:
    if context is None or context is EMPTY_CONTEXT:
        return None
    if isinstance(context, Context):
        return (
            context.tools,
            context.n_tools,
            context.history,
            context.attachment,
            context.attachment_kind,
            context.latency_budget_s,
            context.prompt_tokens,
            context.has_images,
            context.unread_tokens,
            context.think,
            context.judged,
        )
    if not isinstance(context, Mapping):
        raise TypeError("no context")
    session = context.get("session_id")
    if type(session) not in PLAIN_TYPES and isinstance(session, Mapping | list | tuple | set | frozenset):
        raise TypeError("no session")
    check_bounded(context, MAX_VALUES)  # marshal writes a shared part each time, and one that holds itself for ever
    values = marshal.dumps([item for item in context.items() if item[0] != "session_id"], _PLAIN_VALUES)
    return values if len(values) <= MAX_PLAIN_BYTES else blake2b(values, digest_size=16).digest()


def renewed(decision: Decision, decision_id: str) -> Decision:
    """Return the same decision under another id; `dataclasses.replace` would take three times as long."""
    return Decision(
        decision.model,
        decision.complexity,
        dict(decision.complexity_probabilities),
        decision.ranked,
        decision.action,
        decision.reason,
        decision_id,
        decision.policy,
        decision.bundle,
        decision.propensity,
        decision.variant,
        decision.novelty,
        dict(decision.excluded),
        decision.degraded,
        decision.difficulty,
        decision.rule,
        decision.features,
        decision.if_warm,
        decision.cascade,
    )
