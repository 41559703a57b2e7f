"""Turns queries and contexts into the inputs of the learned heads: one encoder pass, and a table of features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.embedder import Embedder, Floats
from router_ml.decide.features.composition import compose
from router_ml.decide.features.surface import NAMES, surface_features
from router_ml.decide.features.tools import TOOL_NAMES, ToolFeatures
from router_ml.types import Context

TABLE_NAMES: tuple[str, ...] = NAMES + TOOL_NAMES
HAS_TOOLS = TABLE_NAMES.index("has_tools")
TOOL_COLUMNS: tuple[int, ...] = tuple(
    i for i, name in enumerate(TABLE_NAMES) if name in TOOL_NAMES or name in ("log_tools", "has_tools")
)  # the tools offered: they affect outcomes, never the label


class Features(NamedTuple):
    """The features of n queries."""

    embedding: Floats  # (n, d), each row of length 1
    table: Floats  # (n, len(TABLE_NAMES))

    def rows(self, index: slice | NDArray[np.intp]) -> Features:
        """Return the features of some of the rows."""
        return Features(self.embedding[index], self.table[index])


class Extractor:
    """Features through one encoder. Thread-safe."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._tools = ToolFeatures(embedder)

    def extract(self, texts: Sequence[str], contexts: Sequence[Context]) -> Features:
        """Return the features of texts in their contexts; both sequences have the same length."""
        embedding = self.embedder.embed([compose(text, context) for text, context in zip(texts, contexts, strict=True)])
        table = [
            surface_features(text, context) + self._tools(text, context.tools, vector)
            for text, context, vector in zip(texts, contexts, embedding, strict=True)
        ]
        return Features(embedding, np.array(table, dtype=np.float32))
