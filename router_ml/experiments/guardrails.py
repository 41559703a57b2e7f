"""The guardrails: for each metric the tolerance that rolls back, the margin that may ship, and its share of the error.

The error rate of rolling back is divided among the guardrails (Bonferroni), most to the two that matter most, so that
their sum holds for all of them together. For shipping every guardrail must be proven, so each may use the whole rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router_ml.experiments.experiment import Limits

SHARES_OF_ERROR = {"failure": 0.40, "log_latency": 0.40, "slo_miss": 0.08, "log_service": 0.06, "cost_usd": 0.06}


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One metric that must not get worse."""

    metric: str
    title: str
    tolerance: float  # in the metric's unit; a proven difference above it rolls back
    margin: float  # a difference proven below it may ship
    alpha_harm: float
    alpha_better: float
    ratio: bool = False  # the difference is one of logs, and is told as a ratio
    exact: bool = False  # tested by an e-process, not by a confidence sequence


def guardrails(limits: Limits) -> tuple[Guardrail, ...]:
    """The guardrails of an experiment, in the order in which they are told."""

    def build(
        metric: str, title: str, tolerance: float, margin: float, *, ratio: bool = False, exact: bool = False
    ) -> Guardrail:
        share = SHARES_OF_ERROR[metric]
        return Guardrail(
            metric, title, tolerance, margin, limits.alpha_rollback * share, limits.alpha_better * share, ratio, exact
        )

    log = math.log
    found = [
        build("failure", "failure rate", limits.failure_tolerance, limits.failure_margin, exact=True),
        build(
            "log_latency",
            "latency",
            log(limits.latency_tolerance_ratio),
            log(limits.latency_margin_ratio),
            ratio=True,
        ),
        build(
            "log_service",
            "service time per token",
            log(limits.service_tolerance_ratio),
            log(limits.service_margin_ratio),
            ratio=True,
        ),
        build("cost_usd", "cost", limits.cost_tolerance_usd, limits.cost_margin_usd),
    ]
    if limits.slo_s is not None:
        title = f"answers slower than {limits.slo_s:g} s"
        found.insert(1, build("slo_miss", title, limits.slo_tolerance, limits.slo_margin, exact=True))
    return tuple(found)
