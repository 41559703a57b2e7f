"""The table of outcomes: queries by models, checked, and what it says of models that stand in no catalogue.

Rules for odd rows, so that every fit treats them alike:
- a query id that is not among the queries, or a repeated (query, model), is an error;
- an outcome with an `error` and no `success` counts as a failure, and its latency as unknown;
- a latency of zero is raised to a millisecond;
- a model with fewer than `MIN_ROWS` known successes is not learned: it is routed by its priors;
- a model whose successes are all equal is learned as that constant, pulled a little towards one half.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import Catalogue, Model, Prior
from router_ml.errors import InputError
from router_ml.jsonl import MAX_LATENCY_S
from router_ml.types import LABELS, Label, Outcome, Query

Table: TypeAlias = NDArray[np.float64]

MIN_ROWS = 10
MIN_LATENCY_S = 1e-3
MIN_COST_USD = 1e-9
UNKNOWN_LATENCY_S = 1.0  # the prior of models for which no latency was ever measured
_LABEL_PULL = 200.0  # rows the model's own mean counts for in each label's prior
MIN_QUERIES = 40  # with fewer nothing is learned, and no label's success rate is told from another's
LEARNED_FROM = "evidence/queries"  # array of a bundle: keys of the queries whose outcomes it learned from
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class OutcomeTable:
    """Outcomes as matrices (queries, models); NaN where not measured."""

    queries: tuple[Query, ...]
    models: tuple[str, ...]
    success: Table
    latency_s: Table
    prompt_tokens: Table
    output_tokens: Table
    cost_usd: Table

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def n_outcomes(self) -> int:
        """Outcomes with a known success."""
        return int((~np.isnan(self.success)).sum())

    @property
    def groups(self) -> NDArray[np.intp]:
        """A number per query; rows with the same one never straddle a split."""
        names = [query.id if query.group is None else f"group:{query.group}" for query in self.queries]
        groups: NDArray[np.intp] = np.unique(names, return_inverse=True)[1].astype(np.intp)
        return groups

    @property
    def has_latency(self) -> bool:
        return bool((~np.isnan(self.latency_s)).any())

    @property
    def cost_axis(self) -> tuple[str, Table]:
        """What choosing a model costs: latency where it was measured, else dollars, else nothing."""
        if self.has_latency:
            return "latency_s", self.latency_s
        if not np.isnan(self.cost_usd).all():
            return "cost_usd", self.cost_usd
        return "none", np.zeros_like(self.success)

    def rows(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> OutcomeTable:
        """Some of the queries."""
        which = np.arange(len(self))[index]
        matrices = (getattr(self, name)[which] for name in _MATRICES)
        return OutcomeTable(tuple(self.queries[i] for i in which), self.models, *matrices)

    def columns(self, index: Sequence[int]) -> OutcomeTable:
        """Some of the models."""
        matrices = (getattr(self, name)[:, list(index)] for name in _MATRICES)
        return OutcomeTable(self.queries, tuple(self.models[i] for i in index), *matrices)


_MATRICES = ("success", "latency_s", "prompt_tokens", "output_tokens", "cost_usd")


def refuse_strangers(queries: Sequence[Query], outcomes: Sequence[Outcome]) -> None:
    """Raises `InputError` for outcomes of queries that are not there."""
    strangers = sorted({outcome.query_id for outcome in outcomes} - {query.id for query in queries})
    if strangers:
        shown = ", ".join(repr(name) for name in strangers[:_SHOWN])
        raise InputError(
            f"{len(strangers)} outcomes' query_id is not among the queries ({shown}); give both files of one set"
        )


def outcome_table(queries: Sequence[Query], outcomes: Sequence[Outcome]) -> OutcomeTable:
    """The table of all queries that have an outcome, in their order, and of all models, sorted by name.

    Raises `InputError` for outcomes of unknown queries, repeated ones, and values outside their range."""
    refuse_strangers(queries, outcomes)
    measured = {outcome.query_id for outcome in outcomes}
    kept = tuple(query for query in queries if query.id in measured)
    row = {query.id: i for i, query in enumerate(kept)}
    models = tuple(sorted({outcome.model for outcome in outcomes}))
    column = {model: j for j, model in enumerate(models)}
    matrices = {name: np.full((len(kept), len(models)), np.nan) for name in _MATRICES}
    seen: set[tuple[int, int]] = set()
    for outcome in outcomes:
        place = row[outcome.query_id], column[outcome.model]
        if place in seen:
            raise InputError(f"outcome of {outcome.model!r} for query {outcome.query_id!r} is repeated; keep one")
        seen.add(place)
        for name, value in _values(outcome).items():
            if value is not None:
                matrices[name][place] = value
    return OutcomeTable(kept, models, *(matrices[name] for name in _MATRICES))


def _values(outcome: Outcome) -> dict[str, float | None]:
    success, latency = outcome.success, outcome.latency_s
    where = f"outcome of {outcome.model!r} for query {outcome.query_id!r}"
    if outcome.error is not None and success is None:
        success, latency = 0.0, None
    if success is not None and not 0.0 <= success <= 1.0:
        raise InputError(f"{where}: success must be between 0 and 1, found {success!r}")
    if latency is not None:
        if not 0.0 <= latency <= MAX_LATENCY_S:
            raise InputError(f"{where}: latency_s must be between 0 and {MAX_LATENCY_S:g} seconds, found {latency!r}")
        latency = max(latency, MIN_LATENCY_S)
    return {
        "success": success,
        "latency_s": latency,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "cost_usd": outcome.cost_usd,
    }


def not_learned(table: OutcomeTable) -> str:
    """Why the success of all or some models cannot be learned from a table, and what is needed, in one line; ""
    where nothing stands in the way."""
    judged = (~np.isnan(table.success)).sum(axis=0)
    enough = judged >= MIN_ROWS
    n_queries = int((~np.isnan(table.success[:, enough])).any(axis=1).sum())
    if n_queries < MIN_QUERIES:
        if not judged.any():
            found = f"none of {len(table)} queries has an outcome that says whether the answer was right (success 0..1)"
        else:
            found = (
                f"{n_queries} queries have outcomes with a known success of models that have {MIN_ROWS} or more of them"
            )
        return (
            f"no success was learned: {found}; {MIN_QUERIES} queries are needed. Judge answers ('router-ml feedback') "
            "or measure with 'python -m training.benchmark'; until then the models ride on their priors"
        )
    few = [f"{name} ({n})" for name, n in zip(table.models, judged.tolist(), strict=True) if n < MIN_ROWS]
    return f"too few known successes to learn from, so these ride on priors: {', '.join(few)}" if few else ""


def query_keys(queries: Sequence[Query]) -> NDArray[np.uint64]:
    """A number for each query's text and context: the first 64 bits of their SHA-256."""
    rows = (json.dumps([query.text, query.raw_context], sort_keys=True, default=str) for query in queries)
    digests = (hashlib.sha256(row.encode()).digest()[:8] for row in rows)
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def derived_profiles(table: OutcomeTable, complexity: Table, catalogue: Catalogue) -> tuple[Model, ...]:
    """Profiles of the table's models that the catalogue lacks: their measured means for each complexity label.

    `complexity` holds the label probabilities (n, 4) of the table's queries. A label with few rows is pulled to the
    model's own mean; a model without latencies gets the median of the others, or one second."""
    overall = table.latency_s[~np.isnan(table.latency_s)]
    fallback = float(np.median(overall)) if overall.size else UNKNOWN_LATENCY_S
    return tuple(
        Model(name=name, prior=_prior(table, j, complexity, fallback))
        for j, name in enumerate(table.models)
        if name not in catalogue
    )


def _prior(table: OutcomeTable, j: int, complexity: Table, fallback_s: float) -> Prior:
    success, latency, tokens = table.success[:, j], table.latency_s[:, j], table.output_tokens[:, j]
    known_log = np.log(latency[~np.isnan(latency)])
    return Prior(
        latency_s=_label_means(latency, complexity, fallback_s),
        success=_label_means(success, complexity, 0.5, known_rows_needed=MIN_QUERIES),
        output_tokens=None if np.isnan(tokens).all() else _label_means(tokens, complexity, 0.0),
        latency_log_sd=float(known_log.std()) if len(known_log) > 1 else 0.5,
    )


def _label_means(values: Table, complexity: Table, fallback: float, known_rows_needed: int = 0) -> dict[Label, float]:
    known = ~np.isnan(values)
    mean = (values[known].sum() + fallback) / (known.sum() + 1)
    if known.sum() < known_rows_needed:
        return dict.fromkeys(LABELS, float(mean))
    weights = complexity[known]
    sums, totals = weights.T @ values[known], weights.sum(axis=0)
    return {label: float((sums[i] + _LABEL_PULL * mean) / (totals[i] + _LABEL_PULL)) for i, label in enumerate(LABELS)}
