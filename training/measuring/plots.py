"""Plots of a fit and of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.types import LABELS
from training.measuring.metrics import Curve, hull
from training.outcomes.table import OutcomeTable

_COLOURS = {"router": "tab:blue", "oracle": "tab:green", "prompt length": "tab:grey"}


@contextmanager
def _axes(path: Path, title: str, x: str, y: str, legend: dict[str, Any] | None = None) -> Iterator[Any]:
    """Yield axes whose figure is saved when the block ends."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    yield axes
    axes.set(title=title, xlabel=x, ylabel=y)
    if legend is not None:
        axes.legend(**{"fontsize": 8, **legend})
    figure.savefig(path, dpi=110)


def confusion(counts: NDArray[Any], path: Path, title: str) -> None:
    """Draw counts (4, 4) and shares of each row; rows are the true labels, columns the predicted ones."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with _axes(path, title, "predicted", "true label") as axes:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*counts.shape):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{shares[i, j]:.0%}\n{counts[i, j]:.0f}", ha="center", va="center", color=colour)
        axes.set_xticks(range(len(LABELS)), LABELS)
        axes.set_yticks(range(len(LABELS)), LABELS)


def learning_curve(curves: dict[str, Sequence[tuple[int, float]]], path: Path, title: str) -> None:
    """Draw macro-F1 on held-out groups against the training examples seen, one line per encoder."""
    with _axes(path, title, "training examples seen", "macro-F1 on held-out groups", {"loc": "lower right"}) as axes:
        for name, points in curves.items():
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_ylim(0.2, 1.0)
        axes.grid(alpha=0.3)


def reliability(lines: dict[str, list[dict[str, float]]], path: Path, title: str) -> None:
    """Draw the observed share of successes against the predicted one; `lines` holds `metrics.reliability` by name."""
    with _axes(path, title, "predicted probability", "observed share", {"loc": "upper left"}) as axes:
        axes.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
        for name, bins in lines.items():
            axes.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], marker="o", ms=4, label=name)
        axes.set(xlim=(0, 1), ylim=(0, 1))


def draw_all(found: dict[str, Any], latency_s: NDArray[Any], table: OutcomeTable, folder: Path) -> None:
    """Draw every plot of a report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    quality_against_cost(found, folder / "quality_cost.png")
    if found["cost_axis"] == "latency_s" and any(row.get("mean_cost_usd") for row in found["baselines"].values()):
        quality_against_dollars(found, folder / "quality_dollars.png")
    models = found["calibration"]["models"].items()
    lines = {f"{model} (ECE {entry['ece']:.3f})": entry["bins"] for model, entry in models}
    reliability(lines, folder / "reliability.png", "Calibration of p_success")
    if table.has_latency:
        latency(latency_s, table, folder / "latency.png")


def quality_against_cost(found: dict[str, Any], path: Path) -> None:
    """Draw the hull of the router's sweep beside all baselines; up and to the left is better."""
    rows = found["baselines"]
    single = {name: row for name, row in rows.items() if name.startswith("always ")}
    most = max(row["mean_cost"] for row in single.values())
    centre = float(np.mean([row["mean_cost"] for row in single.values()]))
    title = f"Quality against cost: {found['queries']} queries, {len(found['models'])} models"
    cost_name = "mean latency (s)" if found["cost_axis"] == "latency_s" else "mean cost (US dollars)"
    with _axes(path, title, cost_name, "mean success", {"loc": "lower right"}) as axes:
        for name, row in rows.items():
            if "curve" in row:
                cost, quality = np.array(row["curve"]).T
                line = hull(Curve(cost, quality), float(cost.min()), most)
                style = "-" if name == "router" else "--"
                axes.plot(line.cost, line.quality, style, color=_COLOURS.get(name, "tab:orange"), label=name)
        for name, row in single.items():
            left = row["mean_cost"] > centre  # the name stays inside the plot
            point = row["mean_cost"], row["accuracy"]
            axes.plot(*point, "s", color="black")
            axes.annotate(
                name.removeprefix("always "),
                point,
                fontsize=8,
                xytext=(-4 if left else 4, -10),
                textcoords="offset points",
                ha="right" if left else "left",
            )
        for name in ("random", "heuristic rules"):
            if name in rows:
                axes.plot(rows[name]["mean_cost"], rows[name]["accuracy"], "x", label=name)
        cost, quality = np.array([(row["mean_cost"], row["accuracy"]) for row in single.values()]).T
        mix = hull(Curve(cost, quality), float(cost.min()), float(cost.max()))
        axes.plot(mix.cost, mix.quality, ":", color="black", label="static mix of models")
        for name, row in found["policies"].items():
            axes.plot(row["mean_cost"], row["accuracy"], "o", label=f"policy {name}")
        axes.grid(alpha=0.3)


def quality_against_dollars(found: dict[str, Any], path: Path) -> None:
    """Draw the same choices against dollars."""
    rows = {**found["baselines"], **{f"policy {name}": row for name, row in found["policies"].items()}}
    with _axes(path, "Quality against dollars", "mean cost (US dollars)", "mean success", {}) as axes:
        for name, row in rows.items():
            if row.get("mean_cost_usd") is not None:
                axes.plot(row["mean_cost_usd"], row["accuracy"], "o", label=name)
        axes.grid(alpha=0.3)


def latency(latency_s: NDArray[Any], table: OutcomeTable, path: Path) -> None:
    """Draw measured seconds against the predicted median (n, M, 3), both on log axes."""
    low, high = float(np.nanquantile(table.latency_s, 0.001)), float(np.nanquantile(table.latency_s, 0.999))
    legend = {"markerscale": 3}
    with _axes(path, "Latency", "predicted median latency (s)", "measured latency (s)", legend) as axes:
        for j, model in enumerate(table.models):
            known = ~np.isnan(table.latency_s[:, j])
            axes.plot(latency_s[known, j, 0], table.latency_s[known, j], ".", markersize=3, alpha=0.4, label=model)
        axes.plot([low, high], [low, high], "--", color="grey")
        axes.set(xscale="log", yscale="log")
