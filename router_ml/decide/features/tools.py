"""Tool features: how many tools are offered, how they are declared, and how well they fit the query.

The cosine between the query and a tool's description predicts best whether a tool will be called. Tool vectors are
cached, because an assistant offers the same tools again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p

import numpy as np
from cachetools import LRUCache

from router_ml.decide.embedder import Embedder, Floats
from router_ml.decide.features.toolbox import TOOLBOX_NAMES, toolbox_features
from router_ml.decide.shared_cache import SharedCache
from router_ml.types import Tool

TOOL_NAMES: tuple[str, ...] = (
    "tool_schema_log_chars", "tool_mean_parameters", "tool_required", "tool_max_parameters", "tool_log_description",
    "tool_similarity_max", "tool_similarity_mean", "tool_similarity_gap", "tool_similarity_min", *TOOLBOX_NAMES,
)  # fmt: skip
MAX_TOOLS = 64  # what is offered beyond them is only counted and measured
_NAME_CHARS = 400  # a longer name would stay in memory, as the key of its vector
_NONE = [0.0] * len(TOOL_NAMES)


class ToolFeatures:
    """Numbers about the tools offered with a query. Thread-safe; caches at most `capacity` tool vectors."""

    def __init__(self, embedder: Embedder, capacity: int = 4096) -> None:
        self._embedder = embedder
        self._vectors: SharedCache[str, Floats] = SharedCache(lambda: LRUCache(capacity))

    def __call__(self, text: str, tools: Sequence[Tool], query_vector: Floats) -> list[float]:
        """Return one number per name of `TOOL_NAMES` for a query, its tools and its vector; zeros without tools."""
        if not tools:
            return _NONE
        n = len(tools)
        structure = [
            log1p(sum(tool.schema_chars for tool in tools)),
            sum(tool.n_parameters for tool in tools) / n,
            float(min(sum(tool.n_required for tool in tools), 32)),
            float(max(tool.n_parameters for tool in tools)),
            log1p(max(len(tool.description) for tool in tools)),
        ]
        few = tools[:MAX_TOOLS]
        return [*structure, *self._similarities(few, query_vector), *toolbox_features(text, few)]

    def _similarities(self, tools: Sequence[Tool], query_vector: Floats) -> list[float]:
        cosines = np.sort(self._matrix([_describe(tool) for tool in tools]) @ query_vector)
        top = float(cosines[-1])
        second = float(cosines[-2]) if len(cosines) > 1 else top
        return [top, float(cosines.mean()), top - second, float(cosines[0])]

    def _matrix(self, texts: list[str]) -> Floats:
        known = self._vectors.get_many(texts)
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            new = dict(zip(missing, self._embedder.embed(missing), strict=True))
            self._vectors.put(new)
            known |= new
        return np.stack([known[text] for text in texts])


def _describe(tool: Tool) -> str:
    return f"{tool.name[:_NAME_CHARS]}: {tool.description[:400]}"
