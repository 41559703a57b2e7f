"""Pictures of a fit, for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import LABELS

Array = NDArray[Any]


def _canvas(width: float = 6.0, height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def confusion_matrix(counts: Array, path: Path, title: str) -> None:
    """Rows: the true label; columns: the predicted one; shares of each row, counts beneath."""
    figure, axes = _canvas()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i in range(len(LABELS)):
        for j in range(len(LABELS)):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{shares[i, j]:.0%}\n{counts[i, j]:.0f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(LABELS)), LABELS)
    axes.set_yticks(range(len(LABELS)), LABELS)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true label")
    axes.set_title(title)
    figure.savefig(path, dpi=110)


def reliability(probabilities: Array, correct: Array, path: Path, title: str, bins: int = 10) -> None:
    """How often a prediction of a given confidence was right, beside how many there were."""
    figure, axes = _canvas()
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(probabilities, edges) - 1, 0, bins - 1)
    filled = [b for b in range(bins) if (which == b).any()]
    said = [float(probabilities[which == b].mean()) for b in filled]
    was = [float(correct[which == b].mean()) for b in filled]
    weight = [float((which == b).mean()) for b in filled]
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfect")
    axes.plot(said, was, marker="o", color="tab:blue", label="observed")
    axes.bar(said, weight, width=0.06, color="tab:orange", alpha=0.4, label="share of queries")
    axes.set_xlabel("confidence said")
    axes.set_ylabel("share that was right")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title(title)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def learning_curve(curves: dict[str, Sequence[tuple[int, float]]], path: Path, title: str) -> None:
    """Macro-F1 on held-out groups against the examples seen in training, one line per recipe."""
    figure, axes = _canvas()
    for name, points in curves.items():
        if points:
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xlabel("training examples seen")
    axes.set_ylabel("macro-F1 on held-out groups")
    axes.set_ylim(0.2, 1.0)
    axes.grid(alpha=0.3)
    axes.set_title(title)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
