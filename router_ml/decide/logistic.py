"""Log-odds, and what their mean over a Gaussian is: sigmoid(mean / sqrt(1 + pi/8 * variance)), approximately.

Source: MacKay 1992, The evidence framework applied to classification networks, Neural Computation 4:720."""

from __future__ import annotations

import math


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


def logit(p: float) -> float:
    """Return the log odds of a probability, kept within 0.001 and 0.999."""
    p = 0.001 if p < 0.001 else 0.999 if p > 0.999 else p
    return math.log(p / (1.0 - p))


def widened(variance: float) -> float:
    """Return by what the logit of a mean over a Gaussian of this variance falls short of the Gaussian's own mean."""
    return math.sqrt(1.0 + math.pi / 8 * variance)
