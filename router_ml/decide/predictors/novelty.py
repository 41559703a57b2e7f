"""How unlike the training queries a query is, read from its vector alone: for bundles that learned no outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.predictors.heads import Floats


class NoveltyHead:
    """The cosine to the nearest centroid of the training queries' vectors, against those of queries not trained on.

    A bundle stores it as `novelty/centroids` (k, d), rows of length 1; its configuration holds the cosines `near`, from
    which downwards novelty rises, and `far`, where it is 1."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self._centroids = np.ascontiguousarray(arrays["centroids"], dtype=np.float32)
        self._near, self._width = float(config["near"]), float(config["near"]) - float(config["far"])
        if self._centroids.ndim != 2 or not self._width > 0 or not np.isfinite(self._centroids).all():
            raise ValueError("a novelty head has centroids (k, d), and 'near' above 'far'")

    def __call__(self, embedding: Floats) -> float:
        """Return 0 for a query like the training queries to 1 for one unlike any, given its vector (d,)."""
        risen = (self._near - float(self._centroids.dot(embedding).max())) / self._width
        return 0.0 if risen <= 0.0 else 1.0 if risen >= 1.0 else risen
