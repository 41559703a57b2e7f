"""Features of queries that come again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router_ml.decide.features.extractor import Features
from router_ml.decide.features.remembered import RememberedFeatures
from router_ml.types import EMPTY_CONTEXT, Context, Tool


class Counting:
    """Features that tell how often they were made."""

    def __init__(self) -> None:
        self.reads = 0

    def extract(self, texts: Sequence[str], contexts: Sequence[Context]) -> Features:
        self.reads += 1
        return Features(np.full((len(texts), 2), self.reads, np.float32), np.zeros((len(texts), 1), np.float32))


def test_a_query_is_read_once_for_each_context() -> None:
    source = Counting()
    remembered = RememberedFeatures(source, 10)
    tools = Context(tools=(Tool("a"),), n_tools=1)
    for _ in range(3):
        assert remembered.extract(["x"], [EMPTY_CONTEXT]).embedding[0, 0] == 1
        assert remembered.extract(["x"], [tools]).embedding[0, 0] == 2
    assert remembered.remembers("x", tools)
    assert not remembered.remembers("y", tools)
    assert remembered.extract(["x", "y"], [tools, tools]).embedding[0, 0] == 3  # batches are read as they come


def test_the_oldest_leaves_first() -> None:
    remembered = RememberedFeatures(Counting(), 2)
    for text in ("a", "b", "a", "c"):
        remembered.extract([text], [EMPTY_CONTEXT])
    assert [remembered.remembers(text, EMPTY_CONTEXT) for text in ("a", "b", "c")] == [True, False, True]
