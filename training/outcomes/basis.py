"""The inputs of the outcome learners: scaled features, principal directions, and the distance to known queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.outcomes import TABLE_LIMIT, TRANSFER_LIMIT
from training.arrays import Matrix

# Dozens of standardised columns beside 768 of the embedding would not count: the embedding is reduced to its principal
# directions.
EMBEDDING_WEIGHT = 8.0
BASIS_TABLE_WEIGHT = 0.3
DIRECTIONS = 32
JOINT_TABLE_WEIGHT = 0.5  # of the table beside the scaled principal directions, where queries are compared
NEIGHBOUR_DIRECTIONS = 48
CENTROIDS = 64
ROWS_PER_CENTROID = 8
CLUSTERED_ROWS = 4_000  # the most that k-means is fitted on
SMALLEST_SCALE = 0.05  # a column that never varied in training still counts when it varies later


@dataclass(frozen=True)
class Basis:
    """Scalings and directions learned from the training queries."""

    embedding_mean: Matrix  # (d,)
    table_mean: Matrix  # (m,)
    table_scale: Matrix  # (m,)
    complexity_mean: Matrix  # (4,)
    directions: Matrix  # (d + m, p), orthonormal columns over the weighted blocks
    direction_scale: Matrix  # (p,) makes each direction of unit spread on the training queries
    rotation: Matrix  # (m + p, q), orthonormal columns: the neighbours' space within the joint one
    centroids: Matrix  # (c, m + p), in the joint space

    def standardised(self, table: NDArray[np.float32]) -> Matrix:
        """Return the table (n, m) as the heads read it: standardised and clipped."""
        return np.clip((table - self.table_mean) * self.table_scale, -TABLE_LIMIT, TABLE_LIMIT)

    def inputs(self, features: Features, complexity: Matrix) -> Matrix:
        """Return the linear learner's inputs (n, p + m + 4): directions, table and probabilities on one scale."""
        z = self.standardised(features.table)
        return np.hstack((self.keys(features) * self.direction_scale, z, complexity - self.complexity_mean))

    def keys(self, features: Features) -> Matrix:
        """Return coordinates in the principal directions (n, p)."""
        z = self.standardised(features.table)
        embedding = features.embedding - self.embedding_mean
        return np.hstack((EMBEDDING_WEIGHT * embedding, BASIS_TABLE_WEIGHT * z)) @ self.directions

    def forest_inputs(self, features: Features) -> Matrix:
        """Return the forest's inputs (n, p + m)."""
        return np.hstack((self.keys(features), self.standardised(features.table)))

    def transfer_inputs(self, features: Features) -> Matrix:
        """Return the transfer head's inputs (n, m): the table clipped to little more than its signs."""
        return np.clip(self.standardised(features.table), -TRANSFER_LIMIT, TRANSFER_LIMIT)

    @property
    def joint_scale(self) -> Matrix:
        """Factors (m + p,) of table and principal directions where queries are compared."""
        return np.concatenate((np.full(len(self.table_mean), JOINT_TABLE_WEIGHT), self.direction_scale))

    def joint(self, features: Features) -> Matrix:
        """Return coordinates (n, m + p) in the space where queries are compared.

        Table and principal directions weigh the same: topics alone do not separate one task from another."""
        return np.hstack((self.standardised(features.table), self.keys(features))) * self.joint_scale

    def neighbour_keys(self, features: Features) -> Matrix:
        """Return the joint space's principal directions (n, q): few enough to compare thousands of rows."""
        return self.joint(features) @ self.rotation

    def distance(self, features: Features) -> Matrix:
        """Return the squared distance (n,) to the nearest centroid of the training queries."""
        joint = self.joint(features)
        squares = (joint**2).sum(axis=1)[:, None] - 2 * joint @ self.centroids.T + (self.centroids**2).sum(axis=1)
        distance: Matrix = squares.min(axis=1)
        return distance

    def folded(self, weights: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
        """Return a linear map of `inputs` as one of the raw embedding, the standardised table and the probabilities."""
        d, m, p = len(self.embedding_mean), len(self.table_mean), len(self.direction_scale)
        keys, keys_bias = self.folded_keys()
        of_keys = weights[:p] * self.direction_scale[:, None]
        raw = keys @ of_keys
        raw[d : d + m] += weights[p : p + m]
        raw[d + m :] += weights[p + m :]
        return raw, bias + keys_bias @ of_keys - self.complexity_mean @ weights[p + m :]

    def folded_keys(self) -> tuple[Matrix, Matrix]:
        """Return `keys` as a map of the same raw inputs."""
        d = len(self.embedding_mean)
        scale = np.concatenate((np.full(d, EMBEDDING_WEIGHT), np.full(len(self.table_mean), BASIS_TABLE_WEIGHT)))
        raw = self.directions * scale[:, None]
        return np.vstack((raw, np.zeros((4, raw.shape[1])))), -self.embedding_mean @ raw[:d]


def fit_basis(features: Features, complexity: Matrix, seed: int) -> Basis:
    """Compute scalings, principal directions and centroids of the training queries."""
    embedding, table = features.embedding.astype(np.float64), features.table.astype(np.float64)
    scale = 1.0 / np.maximum(table.std(axis=0), SMALLEST_SCALE)
    mean, table_mean = embedding.mean(axis=0), table.mean(axis=0)
    z = np.clip((table - table_mean) * scale, -TABLE_LIMIT, TABLE_LIMIT)
    blocks = np.hstack((EMBEDDING_WEIGHT * (embedding - mean), BASIS_TABLE_WEIGHT * z))
    n_directions = min(DIRECTIONS, len(blocks) - 1, blocks.shape[1])
    directions = PCA(n_directions, svd_solver="randomized", random_state=seed).fit(blocks).components_.T
    direction_scale = 1.0 / np.maximum((blocks @ directions).std(axis=0), SMALLEST_SCALE)
    joint = np.hstack((z * JOINT_TABLE_WEIGHT, blocks @ directions * direction_scale))
    few = joint[np.random.default_rng(seed).permutation(len(joint))[:CLUSTERED_ROWS]]
    n_centroids = max(1, min(CENTROIDS, len(few) // ROWS_PER_CENTROID))
    centroids = KMeans(n_centroids, n_init=1, random_state=seed).fit(few).cluster_centers_
    n_rotated = min(NEIGHBOUR_DIRECTIONS, len(joint) - 1, joint.shape[1])
    rotation = PCA(n_rotated, svd_solver="randomized", random_state=seed).fit(joint).components_.T
    return Basis(mean, table_mean, scale, complexity.mean(axis=0), directions, direction_scale, rotation, centroids)
