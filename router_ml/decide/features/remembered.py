"""Features of repeated queries: reading a query is most of what a decision costs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Protocol

from cachetools import LRUCache

from router_ml.decide.features.extractor import Features
from router_ml.types import Context


class FeatureSource(Protocol):
    """What turns queries into features."""

    def extract(self, texts: Sequence[str], contexts: Sequence[Context]) -> Features:
        """Return the features of each query."""


class RememberedFeatures:
    """The features of the last `size` queries, by the values of query and context. Thread-safe.

    A row depends on nothing else, so that it is right for any policy and any state of the machine."""

    def __init__(self, source: FeatureSource, size: int) -> None:
        self._source = source
        self._lock = threading.RLock()  # a signal handler may decide, too
        self._rows: LRUCache[bytes, Features] = LRUCache(size)

    def extract(self, texts: Sequence[str], contexts: Sequence[Context]) -> Features:
        """Return the features of each query; those of one query alone are remembered."""
        if len(texts) != 1:
            return self._source.extract(texts, contexts)
        key = _key(texts[0], contexts[0])
        with self._lock:
            features = self._rows.get(key)
        if features is None:
            features = self._source.extract(texts, contexts)
            for array in features:
                array.flags.writeable = False  # every later decision reads the same rows
            with self._lock:
                self._rows[key] = features
        return features

    def remembers(self, text: str, context: Context) -> bool:
        """Return whether the features of a query are cached."""
        with self._lock:
            return _key(text, context) in self._rows


def _key(text: str, context: Context) -> bytes:
    """Return a digest: the values themselves, tools and histories of megabytes, would stay in memory."""
    values = (text, context.tools, context.n_tools, context.history, context.attachment, context.attachment_kind)
    return hashlib.blake2b(
        repr((*values, context.has_images)).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()
