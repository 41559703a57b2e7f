"""Compare the models of a benchmark: figures for each, overall and per label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from router_ml.arm import arm_key, split_key
from router_ml.terminal import format_table
from router_ml.types import LABELS, Outcome, Query

_Z95 = NormalDist().inv_cdf(0.975)
UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Figures of one model over some rows; None if no row has the value."""

    rows: int
    scored: int
    success: float | None  # mean over the scored rows
    success_low: float | None  # Wilson's 95 % interval
    success_high: float | None
    call_names: float | None  # mean share of calls whose names pair up
    call_arguments: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    tokens_per_s: float | None  # generated tokens over the time of generation
    errors: int
    truncated: int


def model_figures(outcomes: Sequence[Outcome]) -> ModelFigures:
    """Return the figures of some outcomes."""
    scored = [o.success for o in outcomes if o.success is not None]
    latencies = [o.latency_s for o in outcomes if o.latency_s is not None]
    low, high = wilson(sum(scored), len(scored)) if scored else (None, None)
    return ModelFigures(
        rows=len(outcomes),
        scored=len(scored),
        success=sum(scored) / len(scored) if scored else None,
        success_low=low,
        success_high=high,
        call_names=_mean(o.extra.get("call_names") for o in outcomes),
        call_arguments=_mean(o.extra.get("call_arguments") for o in outcomes),
        latency_p50_s=_quantile(latencies, 0.5),
        latency_p95_s=_quantile(latencies, 0.95),
        tokens_per_s=_rate(outcomes),
        errors=sum(o.error is not None for o in outcomes),
        truncated=sum(bool(o.extra.get("truncated")) for o in outcomes),
    )


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's score interval at 95 % (Wilson 1927, JASA 22:209)."""
    p, z2 = successes / n, _Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _quantile(values: Sequence[float], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def _rate(outcomes: Sequence[Outcome]) -> float | None:
    known = [(o.output_tokens, o.eval_s) for o in outcomes if o.output_tokens is not None and o.eval_s]
    return sum(tokens for tokens, _ in known) / sum(seconds for _, seconds in known) if known else None


@dataclass(frozen=True)
class Comparison:
    """Figures of several models, by the key of the arm."""

    overall: Mapping[str, ModelFigures]
    by_label: Mapping[str, Mapping[str, ModelFigures]]  # model -> label -> figures
    warm_up_s: Mapping[str, float]

    def warm_up_of(self, key: str) -> float | None:
        """Return the seconds that an arm's model took to load, or None."""
        return self.warm_up_s.get(split_key(key)[0])

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {
            model: {
                **asdict(figures),
                "warm_up_s": self.warm_up_of(model),
                "labels": {label: asdict(part) for label, part in self.by_label[model].items()},
            }
            for model, figures in self.overall.items()
        }


def compare(
    queries: Sequence[Query], models: Sequence[str], outcomes: Sequence[Outcome], warm_up_s: Mapping[str, float]
) -> Comparison:
    """Return figures per arm, and per arm and label, over the given queries alone."""
    labels = {query.id: query.label or UNLABELLED for query in queries}
    order = [label for label in (*LABELS, UNLABELLED) if label in labels.values()]
    mine: dict[str, list[Outcome]] = {}
    for model in models:
        own = [outcome for outcome in outcomes if outcome.model == model and outcome.query_id in labels]
        for outcome in own:
            mine.setdefault(arm_key(model, outcome.think), []).append(outcome)
        if not own:
            mine[model] = []
    return Comparison(
        overall={model: model_figures(rows) for model, rows in mine.items()},
        by_label={
            model: {label: model_figures([o for o in rows if labels[o.query_id] == label]) for label in order}
            for model, rows in mine.items()
        },
        warm_up_s=warm_up_s,
    )


_HEAD = ("success", "95 % interval", "names", "arguments", "p50 s", "p95 s", "tokens/s", "errors", "rows")


def comparison_table(comparison: Comparison) -> str:
    """Return the comparison as text: models first, then each label."""
    rows: list[tuple[str, ...]] = [("model", "label", *_HEAD, "load s")]
    for model, figures in comparison.overall.items():
        rows.append((model, "all", *_cells(figures), _number(comparison.warm_up_of(model), 1)))
    labels = list(dict.fromkeys(label for parts in comparison.by_label.values() for label in parts))
    for label in labels if labels != [UNLABELLED] else ():
        rows += [(model, label, *_cells(parts[label]), "") for model, parts in comparison.by_label.items()]
    return format_table(rows, left=(0, 1), rule=True)


def _cells(figures: ModelFigures) -> tuple[str, ...]:
    interval = "-"
    if figures.success_low is not None and figures.success_high is not None:
        interval = f"{figures.success_low:.1%} to {figures.success_high:.1%}"
    return (
        _share(figures.success),
        interval,
        _share(figures.call_names),
        _share(figures.call_arguments),
        _number(figures.latency_p50_s, 2),
        _number(figures.latency_p95_s, 2),
        _number(figures.tokens_per_s, 0),
        str(figures.errors),
        str(figures.rows),
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
