"""Quantiles of a latency that is log-normal."""

from __future__ import annotations

import math

from router_ml.types import Quantiles

Z = (0.0, 1.2815515655446004, 1.6448536269514722)  # standard normal quantiles at 0.5, 0.9 and 0.95


def log_normal(mean: float, log_sd: float) -> Quantiles:
    """Return p50, p90 and p95 of a log-normal with a mean and a standard deviation of its logarithm."""
    median = mean * math.exp(-0.5 * log_sd**2)
    return Quantiles(*(median * math.exp(log_sd * z) for z in Z))
