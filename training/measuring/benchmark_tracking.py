"""Log a benchmark to MLflow: one flat run per model, so that MLflow's own comparison shows them side by side."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router_ml.arm import arm_key, split_key, think_text
from router_ml.jsonl import outcome_row, write_rows
from router_ml.types import Outcome
from training.measuring.comparison import Comparison, ModelFigures, comparison_table
from training.tracking.tracker import tracked

log = logging.getLogger(__name__)

_LATER = "the rows are saved all the same; to log them later, run the same command with --resume"


def record(
    experiment: str,
    comparison: Comparison,
    outcomes: Sequence[Outcome],
    params: Mapping[str, Any],
    root: Path | None = None,
) -> None:
    """Log every arm of a comparison. MLflow missing or down is a warning."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # its own seven take minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for model, figures in comparison.overall.items():
        name, think = split_key(model)
        rows = [o for o in outcomes if arm_key(o.model, o.think) == model]
        way = {} if think is None else {"think": think_text(think)}
        try:
            with tracked(experiment, model, _note(model, figures), root, later=_LATER) as tracker:
                tracker.params({"model": name, **params, **way})
                tracker.metrics(metrics(model, comparison))
                with tempfile.TemporaryDirectory() as folder:
                    write_rows(Path(folder) / "outcomes.jsonl", map(outcome_row, rows))
                    (Path(folder) / "comparison.txt").write_text(comparison_table(comparison) + "\n", encoding="utf-8")
                    tracker.files(Path(folder), "benchmark")
        except Exception as error:  # the store broke between opening and closing
            log.warning("MLflow is not usable (%s); %s", error, _LATER)
            return
        if tracker.broken:
            return  # one warning is enough


def metrics(model: str, comparison: Comparison) -> dict[str, float]:
    """Return the metrics of one model; MLflow shows a section for each first segment of a name."""
    figures = comparison.overall[model]
    values: dict[str, float | None] = {
        "test/success": figures.success,
        "test/call_names": figures.call_names,
        "test/call_arguments": figures.call_arguments,
        "test/errors": figures.errors,
        "speed/latency_p50_s": figures.latency_p50_s,
        "speed/latency_p95_s": figures.latency_p95_s,
        "speed/tokens_per_s": figures.tokens_per_s,
        "speed/warm_up_s": comparison.warm_up_of(model),
    }
    values |= {f"success/{label}": part.success for label, part in comparison.by_label[model].items()}
    values |= {f"latency/{label}_p50_s": part.latency_p50_s for label, part in comparison.by_label[model].items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _note(model: str, figures: ModelFigures) -> str:
    success = "not scored" if figures.success is None else f"{figures.success:.1%} success"
    latency = "" if figures.latency_p50_s is None else f", {figures.latency_p50_s:.2f} s median"
    return f"{model}: {success}{latency} over {figures.rows} queries"
