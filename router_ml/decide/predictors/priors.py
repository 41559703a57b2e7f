"""What the catalogue expects of each model, averaged over the probabilities of the four labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from router_ml.catalogue import Model
from router_ml.decide.predictors.heads import Floats
from router_ml.decide.quantiles import Z
from router_ml.types import LABELS

_UNKNOWN = (math.nan, math.nan, math.nan)


class Expected(NamedTuple):
    """Expectations for one query and M models, in plain numbers."""

    p_success: list[float]
    latency_s: list[tuple[float, float, float]]  # p50, p90, p95
    output_tokens: list[float]  # NaN unknown


class LabelPriors:
    """The priors of M models as one matrix, so that the average over labels is one product.

    The latency of a label is log-normal; the mixture over the labels is taken for the log-normal with the mixture's
    mean and variance of the logarithm. So p50 lies between those of the labels, and p95 grows with the doubt."""

    def __init__(self, models: Sequence[Model], latency_known: Collection[int] = ()) -> None:
        """Take the models; the latency of those at the places `latency_known` is not computed."""
        success = [_by_label(m.prior.success) for m in models]
        tokens = [_by_label(m.prior.output_tokens or dict.fromkeys(LABELS, math.nan)) for m in models]
        sd = np.array([m.prior.latency_log_sd for m in models])
        means = np.array([_by_label(m.prior.latency_s) for m in models]).reshape(-1, len(LABELS))
        log = np.log(np.maximum(means, 1e-9)) - 0.5 * sd[:, None] ** 2  # of the median
        parts = (success, tokens, log, log**2 + sd[:, None] ** 2)
        self._matrix = np.ascontiguousarray(
            np.hstack([np.array(part, np.float32).reshape(-1, len(LABELS)).T for part in parts])
        )
        self._n = len(models)
        self._success = self._matrix[:, : self._n].copy()
        self._least_variance = [(i, d * d) for i, d in enumerate(sd.tolist()) if i not in latency_known]

    def success(self, complexity: Floats) -> list[float]:
        """Return the expected successes (M,) alone, given label probabilities (4,)."""
        found: list[float] = complexity.dot(self._success).tolist()
        return found

    def __call__(self, complexity: Floats) -> Expected:
        """Return expectations, given label probabilities (4,)."""
        n, values = self._n, complexity.dot(self._matrix).tolist()
        latency = [_UNKNOWN] * n
        for i, least in self._least_variance:
            log = values[2 * n + i]
            variance = values[3 * n + i] - log * log
            sd, p50 = math.sqrt(variance if variance > least else least), math.exp(log)
            latency[i] = (p50, p50 * math.exp(Z[1] * sd), p50 * math.exp(Z[2] * sd))
        return tuple.__new__(Expected, (values[:n], latency, values[n : 2 * n]))


def _by_label(prior: Mapping[Any, float]) -> list[float]:
    return [float(prior[label]) for label in LABELS]
