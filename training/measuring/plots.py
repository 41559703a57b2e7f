"""Pictures of an evaluation: quality against cost with every baseline, reliability, latency said against measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.measuring.metrics import Curve, hull
from training.outcomes.table import OutcomeTable

_COLOURS = {"router": "tab:blue", "oracle": "tab:green", "prompt length": "tab:grey"}


def _canvas() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    return figure, figure.subplots()


def draw_all(found: dict[str, Any], latency_s: NDArray[Any], table: OutcomeTable, folder: Path) -> None:
    """Draw every picture of a report into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    quality_against_cost(found, folder / "quality_cost.png")
    if found["cost_axis"] == "latency_s" and any(row.get("mean_cost_usd") for row in found["baselines"].values()):
        quality_against_dollars(found, folder / "quality_dollars.png")
    reliability(found, folder / "reliability.png")
    if table.has_latency:
        latency(latency_s, table, folder / "latency.png")


def quality_against_cost(found: dict[str, Any], path: Path) -> None:
    """The hull of the router's sweep beside all baselines; up and to the left is better."""
    figure, axes = _canvas()
    rows = found["baselines"]
    singles = {name: row for name, row in rows.items() if name.startswith("always ")}
    for name, row in rows.items():
        if "curve" in row:
            cost, quality = np.array(row["curve"]).T
            line = hull(Curve(cost, quality), float(cost.min()), max(r["mean_cost"] for r in singles.values()))
            style = "-" if name == "router" else "--"
            axes.plot(line.cost, line.quality, style, color=_COLOURS.get(name, "tab:orange"), label=name)
    middle = float(np.mean([row["mean_cost"] for row in singles.values()]))
    for name, row in singles.items():
        left = row["mean_cost"] > middle  # the name stays inside the picture
        axes.plot(row["mean_cost"], row["accuracy"], "s", color="black")
        axes.annotate(
            name.removeprefix("always "),
            (row["mean_cost"], row["accuracy"]),
            fontsize=8,
            xytext=(-4 if left else 4, -10),
            textcoords="offset points",
            ha="right" if left else "left",
        )
    for name in ("random", "heuristic rules"):
        if name in rows:
            axes.plot(rows[name]["mean_cost"], rows[name]["accuracy"], "x", label=name)
    points = Curve(
        np.array([r["mean_cost"] for r in singles.values()]), np.array([r["accuracy"] for r in singles.values()])
    )
    mix = hull(points, float(points.cost.min()), float(points.cost.max()))
    axes.plot(mix.cost, mix.quality, ":", color="black", label="static mix of models")
    for name, row in found["policies"].items():
        axes.plot(row["mean_cost"], row["accuracy"], "o", label=f"policy {name}")
    axes.set_xlabel("mean latency (s)" if found["cost_axis"] == "latency_s" else "mean cost (US dollars)")
    axes.set_ylabel("mean success")
    axes.set_title(f"Quality against cost: {found['queries']} queries, {len(found['models'])} models")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def quality_against_dollars(found: dict[str, Any], path: Path) -> None:
    """The same choices against dollars."""
    figure, axes = _canvas()
    for name, row in {**found["baselines"], **{f"policy {k}": v for k, v in found["policies"].items()}}.items():
        if row.get("mean_cost_usd") is not None:
            axes.plot(row["mean_cost_usd"], row["accuracy"], "o", label=name)
    axes.set_xlabel("mean cost (US dollars)")
    axes.set_ylabel("mean success")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def reliability(found: dict[str, Any], path: Path) -> None:
    """How often a model was right when its chance was said to be so."""
    figure, axes = _canvas()
    axes.plot([0, 1], [0, 1], "--", color="grey", label="perfect")
    for model, entry in found["calibration"]["models"].items():
        said = [b["predicted"] for b in entry["bins"]]
        was = [b["observed"] for b in entry["bins"]]
        axes.plot(said, was, marker="o", markersize=4, label=f"{model} (ECE {entry['ece']:.3f})")
    axes.set_xlabel("chance of success said")
    axes.set_ylabel("share that succeeded")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_title("Calibration of p_success")
    axes.legend(fontsize=7, loc="upper left")
    figure.savefig(path, dpi=110)


def latency(latency_s: NDArray[Any], table: OutcomeTable, path: Path) -> None:
    """Median said against seconds measured, both on log axes."""
    figure, axes = _canvas()
    low, high = float(np.nanquantile(table.latency_s, 0.001)), float(np.nanquantile(table.latency_s, 0.999))
    for j, model in enumerate(table.models):
        known = ~np.isnan(table.latency_s[:, j])
        axes.plot(latency_s[known, j, 0], table.latency_s[known, j], ".", markersize=3, alpha=0.4, label=model)
    axes.plot([low, high], [low, high], "--", color="grey")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("median latency said (s)")
    axes.set_ylabel("latency measured (s)")
    axes.set_title("Latency")
    axes.legend(fontsize=8, markerscale=3)
    figure.savefig(path, dpi=110)
