"""Learn what the training queries look like, so that novelty can be read without outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from training.arrays import Singles

CENTROIDS = 48
NEAR, FAR = 0.05, 0.002  # shares of unseen queries of the same kind that are less alike than `near` and `far`


@dataclass(frozen=True)
class NoveltyPart:
    """The novelty part of a bundle."""

    centroids: Singles  # (k, d), of length 1
    config: dict[str, Any]


def fit_novelty(vectors: Singles, seed: int = 0) -> NoveltyPart | None:
    """Return the head for vectors (n, d) of length 1 of queries that the encoder was not tuned on; None for too few.

    Half of them make the centroids (spherical k-means), the other half says how near a usual query is."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(vectors))
    known, unseen = vectors[order[::2]], vectors[order[1::2]]
    if len(known) < 2 * CENTROIDS:
        return None
    centroids = KMeans(CENTROIDS, n_init=1, random_state=seed).fit(known).cluster_centers_.astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    near, far = np.quantile((unseen @ centroids.T).max(axis=1), [NEAR, FAR])
    if not near > far:
        return None
    return NoveltyPart(centroids, {"near": float(near), "far": float(far - (near - far))})
