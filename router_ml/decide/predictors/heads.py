"""Learned heads as plain arrays: what scikit-learn fitted, replayed with numpy. Nothing here learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LinearHead:
    """An affine map on the concatenation of blocks: `x @ weights.T + bias`."""

    weights: Floats  # (outputs, inputs)
    bias: Floats  # (outputs,)

    def __call__(self, x: Floats) -> Floats:
        """Return outputs of shape (n, outputs) for inputs of shape (n, inputs)."""
        return x @ self.weights.T + self.bias

    def predict_one(self, x: Floats) -> Floats:
        """Return outputs (outputs,) for one input (inputs,)."""
        result: Floats = self.weights.dot(x) + self.bias
        return result


def softmax(logits: Floats) -> Floats:
    """Return probabilities over the last axis, each row summing to 1."""
    result: Floats = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))  # half the cost of .max()
    result /= np.add.reduce(result, axis=-1, keepdims=True)
    return result
