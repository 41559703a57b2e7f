"""Reads a query's complexity: the learned head, and the rules that stand in where nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router_ml.predictors.heads import Floats, LinearHead, softmax

HEURISTIC = "heuristic"


class ComplexityPredictor(Protocol):
    """Probabilities of the four labels, columns in the order of `schema.LABELS`."""

    def __call__(self, embedding: Floats, table: Floats) -> Floats:
        """Probabilities of shape (n, 4) for an embedding (n, d) and a table (n, m)."""
        ...


@dataclass(frozen=True, slots=True)
class LearnedComplexity:
    """Multinomial logistic regression on the embedding and the standardised table, calibrated, as one matrix."""

    head: LinearHead  # (4, d + m); the scaling of the table is folded into the weights

    def __call__(self, embedding: Floats, table: Floats) -> Floats:
        return softmax(self.head(np.concatenate((embedding, table), axis=1)))
