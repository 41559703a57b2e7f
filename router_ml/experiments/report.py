"""The report on an experiment: one self-contained page of HTML, with each difference and its bounds over time.

The drawings are written as SVG here, so that neither serving nor syncing needs a plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from router_ml.events.event import ExperimentEvent
from router_ml.experiments.evidence import SHARES

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 240, 64, 34, 14, 16
_SIDES = ("low", "high")
_LINE, _BAND, _LIMIT, _GRID, _INK = "#2a78d6", "#cde2fb", "#c0392b", "#e4e4e0", "#52514e"


@dataclass(frozen=True, slots=True)
class Analysis:
    """One interim analysis of an experiment, as it was written down."""

    at_s: float
    change: str
    verdict: Mapping[str, Any]

    @property
    def units(self) -> int:
        """Return the units of both arms."""
        return sum(self.verdict.get("units", {}).values())

    def finding(self, metric: str) -> Mapping[str, Any] | None:
        """Return what was known of a metric, or None; bounds are clipped to what is possible."""
        found = next((f for f in self.verdict.get("findings", ()) if f.get("metric") == metric), None)
        if found is None or found.get("difference") is None:
            return None
        lowest, highest = (-1.0, 1.0) if metric in SHARES else (-math.inf, math.inf)
        bounds = {side: None if found[side] is None else min(max(found[side], lowest), highest) for side in _SIDES}
        return {**found, **bounds}


def analyses_of(events: Iterable[ExperimentEvent]) -> list[Analysis]:
    """Return the interim analyses among an experiment's events, in their order."""
    return [Analysis(e.at_s, e.change, e.detail["verdict"]) for e in events if "verdict" in e.detail]


def report_html(experiment: Mapping[str, Any], analyses: Sequence[Analysis]) -> str:
    """Return the report as one HTML page. `experiment` is the definition in its JSON form."""
    name = escape(str(experiment.get("id", "experiment")))
    last = analyses[-1] if analyses else None
    summary = escape(str(last.verdict["summary"])) if last else "No interim analysis has been made yet."
    body = [
        f"<h1>{name}</h1>",
        f"<p class=lead>{summary}</p>",
        f"<p>{escape(str(experiment.get('hypothesis') or ''))}</p>",
        _arms(experiment, last),
    ]
    if last:
        body += [_reasons(last), _findings(last)]
        for finding in last.verdict.get("findings", ()):
            drawn = difference_svg(finding["metric"], analyses)
            if drawn:
                body.append(f"<h2>{escape(finding['title'])}</h2>{drawn}")
        body.append(
            "<p class=note>The line is the challenger minus the control. The band holds the true difference at all "
            "analyses at once: its lower edge at the error rate of rolling back, its upper edge at that of shipping. "
            "Rolled back when the band lies above zero; shipped when all bands lie below their red line.</p>"
        )
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:720px;margin:2em auto;padding:0 1em;color:#0b0b0b;"
        "background:#fcfcfb}h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}.lead{font-weight:600}"
        "table{border-collapse:collapse}td,th{padding:.25em .9em .25em 0;text-align:left;"
        f"border-bottom:1px solid {_GRID}}}.note{{color:{_INK}}}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title><style>{style}</style>"
        f"{''.join(body)}</html>"
    )


def _arms(experiment: Mapping[str, Any], last: Analysis | None) -> str:
    rows = []
    for arm in ("control", "challenger"):
        variant = experiment.get(arm, {})
        parts = ", ".join(f"{k} {v}" for k, v in variant.items() if k != "name" and v) or "what runs today"
        units = last.verdict.get("units", {}).get(arm, 0) if last else 0
        judged = last.verdict.get("judged", {}).get(arm, "") if last else ""
        requests = last.verdict.get("requests", {}).get(arm, 0) if last else 0
        rows.append(_table_row(arm, variant.get("name", ""), parts, f"{units:,}", f"{requests:,}", judged))
    began = _when(float(experiment.get("started_s", 0.0)))
    until = f", last analysis {_when(last.at_s)}" if last else ""
    return (
        "<table><tr><th>arm<th>variant<th>runs<th>units<th>requests<th>units judged</tr>"
        f"{''.join(rows)}</table><p class=note>Started {began}{until}.</p>"
    )


def _table_row(*cells: object) -> str:
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _reasons(last: Analysis) -> str:
    return "<ul>" + "".join(f"<li>{escape(str(reason))}</li>" for reason in last.verdict.get("reasons", ())) + "</ul>"


def _findings(last: Analysis) -> str:
    rows = []
    for finding in last.verdict.get("findings", ()):
        finding = last.finding(finding["metric"])
        if finding is None or finding["low"] is None or finding["high"] is None:
            continue
        show = _formatter(finding)
        states = {"worse": "harm", "better": "better", "within its margin": "fair"}
        state = next((words for words, key in states.items() if finding[key]), "not decided")
        rows.append(_table_row(
            finding["title"], show(finding["difference"]), f"{show(finding['low'])} to {show(finding['high'])}",
            show(finding.get("tolerance", 0.0)), show(finding["margin"]), state,
        ))  # fmt: skip
    return (
        f"<table><tr><th>guardrail<th>difference<th>bounds<th>tolerance<th>margin<th>state</tr>{''.join(rows)}</table>"
    )


def _formatter(finding: Mapping[str, Any]) -> Any:
    if finding["ratio"]:
        return lambda x: f"{math.exp(x) - 1:+.1%}"
    if finding["metric"] == "cost_usd":
        return lambda x: f"{x:+.6f} USD"
    return lambda x: f"{x * 100:+.1f} points"


def difference_svg(metric: str, analyses: Sequence[Analysis]) -> str:
    """Return the difference of a metric with its bounds over the units seen; "" with fewer than two analyses."""
    points = [(analysis.units, f) for analysis in analyses if (f := analysis.finding(metric))]
    points = [(units, f) for units, f in points if f["low"] is not None and f["high"] is not None]
    if len(points) < 2:
        return ""
    scale = math.expm1 if points[-1][1]["ratio"] else float
    show = _formatter(points[-1][1])
    span = max(abs(scale(points[-1][1]["margin"])), 1.5 * max(abs(scale(f["difference"])) for _, f in points[-5:]))
    settled = [f for _, f in points[len(points) // 2 :]]
    half_range = max(span, *(min(abs(scale(f[side])), 4 * span) for f in settled for side in ("low", "high"))) * 1.15
    first, final = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(units: float) -> float:
        return _LEFT + (units - first) / (final - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        inside = max(-half_range, min(half_range, value))
        return _TOP + (half_range - inside) / (2 * half_range) * (_HEIGHT - _TOP - _BOTTOM)

    def path(side: str, order: Sequence[tuple[int, Mapping[str, Any]]]) -> str:
        return " ".join(f"{x(units):.1f},{y(scale(f[side])):.1f}" for units, f in order)

    margin = y(scale(points[-1][1]["margin"]))
    label = _label(points[-1][1])
    marks = "".join(
        f'<text x="{_LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{escape(label(v))}</text>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="{_GRID}"/>'
        for v in (-half_range * 0.8, 0.0, half_range * 0.8)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'aria-label="difference of {escape(points[-1][1]["title"])} over units, '
        f'last {escape(show(points[-1][1]["difference"]))}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="system-ui,sans-serif" font-size="12" fill="{_INK}">{marks}'
        f'<polygon points="{path("low", points)} {path("high", points[::-1])}" fill="{_BAND}" fill-opacity=".7"/>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="{_INK}"/>'
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{margin:.1f}" y2="{margin:.1f}" stroke="{_LIMIT}" '
        f'stroke-dasharray="5 4"/><text x="{_WIDTH - _RIGHT}" y="{margin - 5:.1f}" text-anchor="end" '
        f'fill="{_LIMIT}">margin</text>'
        f'<polyline points="{path("difference", points)}" fill="none" stroke="{_LINE}" stroke-width="2"/>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{first:,}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{final:,} units</text></svg>'
    )


def _label(finding: Mapping[str, Any]) -> Any:
    if finding["ratio"]:
        return lambda v: f"{v:+.0%}"
    if finding["metric"] == "cost_usd":
        return lambda v: f"{v:+.4f}"
    return lambda v: f"{v * 100:+.1f}"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
