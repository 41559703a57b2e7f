"""Draws decisions as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from router_ml.types import Candidate, Decision

SAMPLES: tuple[str, ...] = (
    "check email",
    "turn off the kitchen lights",
    "schedule a 45 minute call with Dana and Luis on Thursday after 3pm",
    "find a free hour with Dana and mail her the agenda",
    "when the parcel arrives, text Omar and move my dentist appointment",
    "book a flight",
    "send it",
)
QUERY_WIDTH = 44


def decision_table(queries: Sequence[str], decisions: Sequence[Decision]) -> str:
    """One line a query: model, complexity, p_success, latency quantiles, reason."""
    rows = [("query", "model", "complexity", "p_success", "p50/p90/p95 s", "reason")]
    for query, decision in zip(queries, decisions, strict=True):
        chosen = decision.candidate
        share = decision.complexity_probabilities[decision.complexity]
        rows.append(
            (
                _cut(" ".join(query.split()), QUERY_WIDTH),
                decision.model if decision.action == "answer" else f"{decision.model} (clarify)",
                f"{decision.complexity} {share:.2f}",
                f"{chosen.p_success:.2f}",
                _quantiles(chosen),
                decision.reason,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]) for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in [*widths, 6]), *lines[1:]])


def savings(decisions: Sequence[Decision], reference: str | None = None) -> str:
    """What the decisions save against always using the model likeliest to succeed, as predicted."""
    if not decisions:
        return ""
    reference = reference or _likeliest(decisions)
    pairs = [(d.candidate, next((c for c in d.ranked if c.model == reference), None)) for d in decisions]
    known = [(a, b) for a, b in pairs if b is not None and a.latency_s.p50 > 0]
    if not known:
        return ""
    ours = sum(a.latency_s.p50 for a, _ in known) / len(known)
    theirs = sum(b.latency_s.p50 for _, b in known) / len(known)
    success = sum(a.p_success - b.p_success for a, b in known) / len(known)
    return (
        f"expected: {ours:.1f} s a query instead of {theirs:.1f} s with {reference} for all "
        f"({theirs / ours:.1f} times faster, {success * 100:+.1f} points of success)"
    )


def _likeliest(decisions: Sequence[Decision]) -> str:
    totals: dict[str, float] = {}
    for decision in decisions:
        for candidate in decision.ranked:
            totals[candidate.model] = totals.get(candidate.model, 0.0) + candidate.p_success
    return max(totals, key=totals.__getitem__)


def _quantiles(candidate: Candidate) -> str:
    return "/".join(f"{value:.1f}" if value == value else "?" for value in candidate.latency_s)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
