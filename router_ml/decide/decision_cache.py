"""Decisions kept for queries that come again word for word."""

from __future__ import annotations

import marshal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b
from typing import Any

from router_ml.types import EMPTY_CONTEXT, Context, Decision

DEFAULT_TTL_S = 300.0
MAX_QUERY_CHARS = 8_192  # longer queries seldom come twice
MAX_PLAIN_BYTES = 256  # a longer context is remembered by its hash
_PLAIN_VALUES = 2  # the form of marshal in which equal plain values give equal bytes


class DecisionCache:
    """The last `max_entries` decisions by query, context, policy and bundle, none older than `ttl_s`. Thread-safe.

    Keys hold the query itself, so nothing ever answers for another. What an entry cannot depend on (the session's id)
    is not part of the key."""

    def __init__(
        self, max_entries: int, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_entries, self._ttl_s, self._clock = max_entries, ttl_s, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[float, Decision]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Decision | None:
        """The decision kept under a key; it still carries the id it was made with."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            if self._clock() - entry[0] >= self._ttl_s:
                del self._entries[key]
                return None
            self._entries.move_to_end(key)
            return entry[1]

    def put(self, key: Hashable, decision: Decision) -> None:
        """Keep a decision; the one unused for longest leaves when there are too many."""
        with self._lock:
            self._entries[key] = (self._clock(), decision)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)


def decision_key(query: object, context: Context | Mapping[str, Any] | None, policy: Hashable, bundle: str) -> Any:
    """What two requests must share to get the same decision, or None where a request cannot be told by its values."""
    if type(query) is not str or len(query) > MAX_QUERY_CHARS:
        return None
    try:
        key = (query, _context_key(context), policy, bundle)
        hash(key)
    except (TypeError, ValueError):  # objects of other kinds in the context
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
        )
    if not isinstance(context, Mapping):
        raise TypeError("no context")
    values = marshal.dumps([item for item in context.items() if item[0] != "session_id"], _PLAIN_VALUES)
    return values if len(values) <= MAX_PLAIN_BYTES else blake2b(values, digest_size=16).digest()


def renewed(decision: Decision, decision_id: str) -> Decision:
    """The same decision under an id of its own; spelled out, for `dataclasses.replace` takes three times as long."""
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
    )
