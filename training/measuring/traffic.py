"""Queries with the seconds and success of every arm: from priors, from rates, or measured; and what a cache adds."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from router_ml.catalogue import Catalogue, Model
from router_ml.errors import InputError
from router_ml.types import LABELS, Label, MachineState, ModelState, Query
from training.arrays import Index, Matrix
from training.outcomes.table import OutcomeTable

SLOW_S = 5.0
HIT_S = 0.005  # of an answer from the cache
ROWS_PER_LABEL = 500


@dataclass(frozen=True)
class Traffic:
    """Seconds and success of every arm for every query (n, M), and the weight of each query (n,)."""

    queries: tuple[Query, ...]
    models: tuple[str, ...]  # keys of the arms
    latency_s: Matrix
    success: Matrix
    weight: Matrix
    source: str  # of seconds and success

    def row(self, chosen: Index, hit_rate: float = 0.0) -> dict[str, float]:
        """Return the figures of a choice (n,), and with `hit_rate` those of the same behind an answer cache."""
        rows = np.arange(len(chosen))
        taken, given = self.latency_s[rows, chosen], self.success[rows, chosen]
        row = {**_times(taken, self.weight), "success": float(np.average(given, weights=self.weight))}
        if not hit_rate:
            return row
        share = self.weight / self.weight.sum()
        behind = _times(np.append(taken, HIT_S), np.append((1 - hit_rate) * share, hit_rate))
        return row | {f"cached_{name}": value for name, value in behind.items()}


def _times(seconds: Matrix, weight: Matrix) -> dict[str, float]:
    return {
        "mean_latency_s": float(np.average(seconds, weights=weight)),
        "p95_latency_s": float(np.quantile(seconds, 0.95, weights=weight, method="inverted_cdf")),
        "share_over_5_s": float(np.average(seconds > SLOW_S, weights=weight)),
    }


@dataclass(frozen=True)
class Machine:
    """Tokens per second of models, by name, and the seconds before the first token."""

    tokens_per_s: Mapping[str, float]
    start_s: float

    def state(self) -> MachineState:
        """Return it in the form that a router reads."""
        rates = self.tokens_per_s.items()
        return MachineState({m: ModelState(queue_s=self.start_s, decode_tokens_per_s=rate) for m, rate in rates})

    def seconds(self, arm: Model, tokens: Matrix) -> Matrix | None:
        """Return the seconds of answers of so many tokens; None for a model without a rate, or unknown tokens."""
        rate = self.tokens_per_s.get(arm.name)
        return None if rate is None or np.isnan(tokens).any() else self.start_s + tokens / rate


def traffic_of_priors(queries: Sequence[Query], catalogue: Catalogue, mix: Mapping[Label, float]) -> Traffic:
    """Return the priors of each query's true label, seconds spread as the prior says; labels are weighted by the mix.

    Raises `InputError` if a label of the mix has no query."""
    labelled = tuple(query for label in LABELS for query in _drawn(queries, label))
    counts = {label: sum(query.label == label for query in labelled) for label in LABELS}
    missing = [label for label in LABELS if mix.get(label, 0) > 0 and not counts[label]]
    if missing:
        raise InputError(f"no query is labelled {', '.join(missing)}, which --mix asks for; change --mix or --queries")
    labels = [_label(query) for query in labelled]
    columns = [np.array([arm.prior.latency_s[label] for label in labels]) for arm in catalogue.arms]
    return Traffic(
        labelled,
        tuple(arm.key for arm in catalogue.arms),
        np.column_stack([_spread(m, arm, labels) for m, arm in zip(columns, catalogue.arms, strict=True)]),
        np.array([[arm.prior.success[label] for arm in catalogue.arms] for label in labels]),
        np.array([mix.get(label, 0.0) / counts[label] for label in labels]),
        "priors of the catalogue",
    )


def at_rates(traffic: Traffic, catalogue: Catalogue, machine: Machine) -> Traffic:
    """Return traffic of priors with the seconds of a machine: of each arm its expected tokens at its model's rate."""
    labels = [_label(query) for query in traffic.queries]
    latency, timed = traffic.latency_s.copy(), []
    for j, arm in enumerate(catalogue.arms):
        tokens = arm.prior.output_tokens
        mean = machine.seconds(arm, np.array([tokens[label] if tokens else math.nan for label in labels]))
        if mean is not None:
            latency[:, j] = _spread(mean, arm, labels)
            timed.append(arm.name)
    rates = ", ".join(f"{name} {machine.tokens_per_s[name]:g}" for name in dict.fromkeys(timed))
    source = f"success by {traffic.source}, seconds by tokens/s ({rates}) after {machine.start_s:g} s"
    return replace(traffic, latency_s=latency, source=source)


def _spread(mean: Matrix, arm: Model, labels: Sequence[Label]) -> Matrix:
    """Return log-normal seconds whose mean over each label is that of `mean` (n,); of all arms a query's quantile is
    the same one."""
    out = np.empty(len(labels))
    for label in set(labels):
        rows = np.array([i for i, own in enumerate(labels) if own == label])
        levels = [(i + 0.5) / len(rows) for i in range(len(rows))]
        random.Random(1).shuffle(levels)
        factor = np.exp(arm.prior.latency_log_sd * np.array([NormalDist().inv_cdf(level) for level in levels]))
        out[rows] = mean[rows] * factor / factor.mean()
    return out


def _drawn(queries: Sequence[Query], label: Label) -> list[Query]:
    """Return at most `ROWS_PER_LABEL` queries of a label, the same ones in every run."""
    of_label = [query for query in queries if query.label == label]
    return random.Random(0).sample(of_label, min(len(of_label), ROWS_PER_LABEL))


def _label(query: Query) -> Label:
    if query.label is None:
        raise InputError(f"query {query.id!r} has no label; add one, or give --outcomes")
    return query.label


def traffic_of_outcomes(table: OutcomeTable, mix: Mapping[Label, float] | None) -> Traffic:
    """Return what was measured, of the queries for which every model has success and latency.

    Raises `InputError` if there is no such query."""
    whole = ~(np.isnan(table.success) | np.isnan(table.latency_s)).any(axis=1)
    part = table.rows(np.flatnonzero(whole))
    if not len(part):
        raise InputError("no query has success and latency of every model; run 'python -m training.benchmark'")
    labels = [query.label for query in part.queries]
    weight = np.ones(len(part))
    if mix is not None and all(label is not None for label in labels):
        weight = np.array([mix.get(label, 0.0) / labels.count(label) for label in labels if label is not None])
    return Traffic(part.queries, part.models, part.latency_s, part.success, weight, "measured outcomes")


def zipf_hit_rate(requests: int, distinct: int, exponent: float) -> float:
    """Return the expected share of hits of a cache that forgets nothing: every request but the first of each text.

    Text number r of `distinct` is asked with probability proportional to 1 / r ** exponent."""
    p = 1.0 / np.arange(1, distinct + 1) ** exponent
    p /= p.sum()
    return 1.0 - float((1.0 - (1.0 - p) ** requests).sum()) / requests
