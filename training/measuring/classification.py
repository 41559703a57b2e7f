"""Figures of a classifier of complexity labels."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import f1_score

from router_ml.types import LABELS
from training.arrays import Floats, Labels
from training.measuring.metrics import ece

CONFIDENCE_BINS = 15


def classification_figures(probabilities: Floats, labels: Labels) -> dict[str, float]:
    """Return accuracy, macro-F1 and F1 of the labels that occur, ECE of the top label, and Brier score over all four.

    `probabilities` is (n, 4), `labels` (n,) holds indices of `LABELS`."""
    predicted, present = probabilities.argmax(axis=1), sorted(set(labels.tolist()))
    f1 = f1_score(labels, predicted, labels=present, average=None, zero_division=0.0)
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1.mean()),
        **{f"f1_{LABELS[i]}": float(value) for i, value in zip(present, f1, strict=True)},
        "ece": ece(probabilities.max(axis=1), (predicted == labels).astype(float), CONFIDENCE_BINS),
        "brier": float(((probabilities - np.eye(len(LABELS))[labels]) ** 2).sum(axis=1).mean()),
    }
