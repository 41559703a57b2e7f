"""What the page shows, as plain values: gathered from the running parts, formatted by the templates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.events.event import AlertEvent
from router_ml.experiments.rollout import RolloutState
from router_ml.http.dashboard.recent import RecentRequest, RecentRequests
from router_ml.monitor.summary import Snapshot, Summary

WINDOW_S = 3600.0


@dataclass(frozen=True, slots=True)
class PageSources:
    """The running parts the page reads. Each is a function, so that the page holds no part alive."""

    hosts: Callable[[], Sequence[Mapping[str, Any]]]  # the rows of `Gateway.status()["backends"]`
    snapshot: Callable[[float], Snapshot]  # window in seconds
    firing: Callable[[], Sequence[AlertEvent]]
    rollout: Callable[[], RolloutState]
    recent: RecentRequests
    reason: Callable[[str], str]  # of a decision, by its id; "" if it is not known any more
    bundle: Callable[[], str]
    policy: Callable[[], str]
    clock: Callable[[], float] = time.time
    stopping: Callable[[], bool] = lambda: False  # True once the server stops: live pages then end


@dataclass(frozen=True, slots=True)
class ModelRow:
    """Figures of one model in the window."""

    name: str
    requests: int
    share: float
    success: str
    p50: str
    p95: str
    cached: str
    fallback: str


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One guardrail of the experiment: difference and its interval as positions on a scale of -1 to 1."""

    title: str
    words: str
    low: float | None
    high: float | None
    difference: float | None
    harm: bool
    better: bool


def page_values(sources: PageSources) -> dict[str, Any]:
    """Return everything the live part of the page shows."""
    snapshot = sources.snapshot(WINDOW_S)
    total = snapshot.total
    return {
        "total": total,
        "success": success_text(total),
        "p50": seconds_text(total.latency_p50_s),
        "p95": seconds_text(total.latency_p95_s),
        "saved": saved_text(total),
        "cached": percent_text(total.cache_hit_rate),
        "models": model_rows(snapshot),
        "hosts": list(sources.hosts()),
        "alerts": list(sources.firing()),
        "experiment": experiment_values(sources.rollout()),
        "recent": [(row, sources.reason(row.decision_id)) for row in sources.recent.latest(15)],
        "points": points(sources.recent.latest(120)),
        "bundle": sources.bundle(),
        "policy": sources.policy(),
        "now_s": sources.clock(),
    }


def model_rows(snapshot: Snapshot) -> list[ModelRow]:
    """Return one row per model, the busiest first."""
    rows = sorted(snapshot.by_model.items(), key=lambda item: -item[1].requests)
    every = max(1, snapshot.total.requests)
    return [
        ModelRow(
            name=name or "(no model)",
            requests=summary.requests,
            share=summary.requests / every,
            success=success_text(summary),
            p50=seconds_text(summary.latency_p50_s),
            p95=seconds_text(summary.latency_p95_s),
            cached=percent_text(summary.cache_hit_rate),
            fallback=percent_text(summary.fallback_rate),
        )
        for name, summary in rows
    ]


def experiment_values(state: RolloutState) -> dict[str, Any] | None:
    """Return the experiment that runs or was halted, or None."""
    experiment, verdict, halt = state.experiment, state.verdict, state.halt
    if experiment is None and halt is None:
        return None
    findings = [] if verdict is None else [_finding_row(finding) for finding in verdict.findings]
    return {
        "id": experiment.id if experiment else getattr(halt, "experiment", ""),
        "challenger": experiment.challenger.describe() if experiment else "",
        "control": experiment.control.describe() if experiment else "",
        "coverage": percent_text(state.coverage),
        "halted": None if halt is None else f"{halt.kind}: {halt.reason}",
        "kind": verdict.kind if verdict else "waiting",
        "summary": verdict.summary.removeprefix(f"{verdict.kind}: ")
        if verdict
        else "no requests have been counted yet",
        "units": dict(verdict.units) if verdict else {},
        "findings": findings,
        "trouble": state.trouble,
    }


def _finding_row(finding: Any) -> FindingRow:
    scale = 2.0 * max(abs(finding.tolerance), abs(finding.margin), 1e-9)

    def position(value: float | None) -> float | None:
        return None if value is None else max(-1.0, min(1.0, value / scale))

    return FindingRow(
        title=finding.title,
        words=finding.words,
        low=position(finding.low),
        high=position(finding.high),
        difference=position(finding.difference),
        harm=finding.harm,
        better=finding.better,
    )


def points(requests: Sequence[RecentRequest]) -> dict[str, Any]:
    """Return the latest latencies for the chart: one series per model, null where another model answered."""
    rows = [row for row in reversed(requests) if row.latency_s is not None]
    names = sorted({row.model for row in rows})
    columns = [[row.latency_s if row.model == name else None for row in rows] for name in names]
    return {"at_s": [row.at_s for row in rows], "models": names, "latency_s": columns}


def success_text(summary: Summary) -> str:
    """Return the success rate with how many it rests on; unjudged requests are not counted as right."""
    if summary.success_rate is None:
        return "not judged"
    return f"{summary.success_rate:.0%} of {summary.judged:,}"


def saved_text(summary: Summary) -> str:
    """Return what routing saved, and against which figure."""
    if summary.saved_s is None or summary.saved_share is None:
        return "unknown"
    return f"{summary.saved_s:,.0f} s ({summary.saved_share:.0%})"


def seconds_text(value: float | None) -> str:
    """Return seconds with a unit, or a dash."""
    if value is None:
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def percent_text(value: float | None) -> str:
    """Return a share as a percentage, or a dash."""
    return "–" if value is None else f"{value:.0%}"
