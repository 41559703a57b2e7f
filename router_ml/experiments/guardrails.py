"""The guardrails: for each metric the tolerance that rolls back, the margin that may ship, and its part of the error.

The error rate of rolling back is divided among the guardrails (Bonferroni), most to those that matter most, so that
their sum holds for all of them together. For shipping every guardrail must be proven, so each may use the whole rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router_ml.experiments.evidence import SHARES, share_limits
from router_ml.experiments.experiment import Limits
from router_ml.experiments.statistics import width_in_errors

EXACT_FLOOR = 20  # units per arm before an exact test may decide

SHARES_OF_ERROR = {
    "failure": 0.35,
    "no_answer": 0.08,
    "clarified": 0.03,
    "slo_miss": 0.05,
    "log_latency": 0.40,
    "log_service": 0.05,
    "cost_usd": 0.04,
}  # fmt: skip
TITLES = {
    "failure": "failure rate among judged answers",
    "no_answer": "requests the chosen model did not answer",
    "clarified": "clarifying questions",
    "log_latency": "latency",
    "log_service": "service time per token",
    "cost_usd": "cost",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One metric that must not get worse."""

    metric: str
    title: str
    tolerance: float  # in the metric's unit; a proven difference above it rolls back
    margin: float  # a difference proven below it may ship
    alpha_harm: float
    alpha_better: float
    ratio: bool = False  # the difference is one of logs, and is shown as a ratio
    exact: bool = False  # tested by an e-process, not by a confidence sequence


def guardrails(limits: Limits) -> tuple[Guardrail, ...]:
    """Return the guardrails of an experiment, in the order in which they are reported."""

    def build(metric: str) -> Guardrail:
        share = SHARES_OF_ERROR[metric]
        tolerance, margin = _limits_of(limits, metric)
        title = TITLES.get(metric, f"answers slower than {limits.slo_s or 0:g} s")
        return Guardrail(
            metric, title, tolerance, margin, limits.alpha_rollback * share, limits.alpha_better * share,
            ratio=metric.startswith("log_"), exact=metric in SHARES,
        )  # fmt: skip

    return tuple(build(metric) for metric in SHARES_OF_ERROR if metric != "slo_miss" or limits.slo_s is not None)


_TYPICAL_VARIANCE = 0.125 * 0.875  # of a wrong answer, where 10 to 15 % are wrong
_TYPICAL_CORRELATION = 0.3  # of the failures within a session


def units_to_see(difference: float, limits: Limits, requests: int = 1) -> int:
    """Return about how many judged units of both arms, of `requests` each, show that failures rise by `difference`."""
    variance = _TYPICAL_VARIANCE * (1 + (requests - 1) * _TYPICAL_CORRELATION) / requests
    alpha = limits.alpha_rollback * SHARES_OF_ERROR["failure"]
    units = 2 * EXACT_FLOOR
    while units < 10**7 and difference < width_in_errors(units, alpha, limits.planned_units) * math.sqrt(
        4 * variance / units
    ):
        units += max(units // 50, 1)
    return round(units, 1 - len(str(units)) + 1)


def _limits_of(limits: Limits, metric: str) -> tuple[float, float]:
    """Return the tolerance and the margin of a metric, in its unit."""
    if metric in SHARES:
        return share_limits(limits, metric)
    if metric == "cost_usd":
        return limits.cost_tolerance_usd, limits.cost_margin_usd
    name = metric.removeprefix("log_")
    ratios = getattr(limits, f"{name}_tolerance_ratio"), getattr(limits, f"{name}_margin_ratio")
    return math.log(ratios[0]), math.log(ratios[1])
