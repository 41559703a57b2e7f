"""Predict a query's complexity: the learned head, and the rules that replace it when nothing was learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router_ml.decide.predictors.heads import Floats, LinearHead, softmax
from router_ml.errors import EncoderError

HEURISTIC = "heuristic"
_NO_NUMBERS = "the encoder gave NaN"


class ComplexityPredictor(Protocol):
    """Probabilities of the four labels, columns in the order of `schema.LABELS`."""

    def __call__(self, embedding: Floats, table: Floats) -> Floats:
        """Return probabilities of shape (n, 4) for an embedding (n, d) and a table (n, m)."""
        ...


@dataclass(frozen=True, slots=True)
class LearnedComplexity:
    """Multinomial logistic regression on the embedding and the standardised table, calibrated, as one matrix."""

    head: LinearHead  # (4, d + m); the scaling of the table is folded into the weights

    def __call__(self, embedding: Floats, table: Floats) -> Floats:
        """Return the probabilities (n, 4) of the levels, given embeddings (n, d) and surface features (n, m)."""
        if len(embedding) == 1:  # as below, several times faster
            return _softmax_of_one(self.head.predict_one(np.concatenate((embedding[0], table[0]))).tolist())
        probabilities = softmax(self.head(np.concatenate((embedding, table), axis=1)))
        if np.isnan(probabilities).any():
            raise EncoderError(_NO_NUMBERS)
        return probabilities

    def evidence(
        self, embedding: Floats, table: Floats, names: tuple[str, ...], label: int, other: int
    ) -> dict[str, float]:
        """Return how much the wording and each column of the table (all of one query) speak for one label
        against another, in log-odds. Columns that are zero say nothing and are left out."""
        difference = self.head.weights[label] - self.head.weights[other]
        width = len(embedding)
        parts = {"wording (the sentence vector)": float(difference[:width] @ embedding)}
        parts["how common the labels are"] = float(self.head.bias[label] - self.head.bias[other])
        columns = difference[width:] * table
        return parts | {name: float(weight) for name, weight, value in zip(names, columns, table, strict=True) if value}


def _softmax_of_one(logits: list[float]) -> Floats:
    top = max(logits)
    odds = [math.exp(logit - top) for logit in logits]
    total = sum(odds)
    if total != total:
        raise EncoderError(_NO_NUMBERS)
    return np.array([[value / total for value in odds]], np.float32)
