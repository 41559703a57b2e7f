"""Figures of a classifier of complexity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import LABELS

Array = NDArray[Any]


def confusion(labels: Array, predicted: Array) -> NDArray[np.int64]:
    """Counts (4, 4): rows the true label, columns the predicted one."""
    counts = np.zeros((len(LABELS), len(LABELS)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def f1_per_label(counts: Array) -> NDArray[np.float64]:
    """F1 of each label from a confusion matrix; 0 for a label that is neither there nor predicted."""
    hits = np.diag(counts).astype(float)
    total = counts.sum(axis=0) + counts.sum(axis=1)
    result: NDArray[np.float64] = np.divide(2 * hits, total, out=np.zeros_like(hits), where=total > 0)
    return result


def calibration_error(confidence: Array, correct: Array, bins: int = 15) -> float:
    """Expected calibration error with bins of equal width (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(float(confidence[which == b].mean() - correct[which == b].mean())) * float((which == b).mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return float(sum(gaps))


def complexity_scores(probabilities: Array, labels: Array) -> dict[str, float]:
    """Accuracy, macro-F1, F1 per label, expected calibration error of the top label, Brier score over the four."""
    predicted = probabilities.argmax(axis=1)
    f1 = f1_per_label(confusion(labels, predicted))
    present = [i for i in range(len(LABELS)) if (labels == i).any()]
    truth = np.eye(len(LABELS))[labels]
    return {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1[present].mean()),
        **{f"f1_{LABELS[i]}": float(f1[i]) for i in present},
        "ece": calibration_error(probabilities.max(axis=1), predicted == labels),
        "brier": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
    }
