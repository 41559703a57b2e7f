"""The table of outcomes: queries by arms, checked, and profiles of models and arms that are in no catalogue.

An arm is a model with the way it was asked; its key is the model's name where the rows do not say (`think`).

Rules for odd rows, so that every fit treats them alike:
- a query id that is not among the queries, or a repeated (query, arm), is an error;
- an outcome with an `error` and no `success` counts as a failure, and its latency as unknown;
- a latency of zero is raised to a millisecond;
- a model with fewer than `MIN_ROWS` known successes is not learned: it is routed by its prior, moved by those it has;
- a model whose successes are all equal is learned as that constant, shrunk slightly towards one half;
- a judgement of weight w below 1 moves a success from the model's mean to the judgement's score by the share w: that is
  the success to expect after such a sign. Signs that only ever say "wrong" take no part in that mean, and where a model
  has nothing else its success is unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router_ml.arm import arm_key, split_key
from router_ml.catalogue import Arm, Catalogue, Model
from router_ml.errors import InputError
from router_ml.events.event import UNSERVED
from router_ml.events.judgement import source_of
from router_ml.jsonl import MAX_LATENCY_S
from router_ml.types import LABELS, Label, Outcome, Prior, Query
from training.arrays import Index
from training.arrays import Matrix as Table
from training.splits import group_numbers

MIN_ROWS = 10
MIN_LATENCY_S = 1e-3
MIN_COST_USD = 1e-9
UNKNOWN_LATENCY_S = 1.0  # the prior of models for which no latency was ever measured
_SHRINKAGE_ROWS = 200.0  # rows the model's own mean counts for in each label's prior
MIN_QUERIES = 40  # with fewer nothing is learned, nor a success rate for each label
LEARNED_FROM = "evidence/queries"  # array of a bundle: keys of the queries whose outcomes were learned
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class OutcomeTable:
    """Outcomes as matrices (queries, arms); NaN where not measured."""

    queries: tuple[Query, ...]
    models: tuple[str, ...]  # keys of the arms
    success: Table
    latency_s: Table
    prompt_tokens: Table
    output_tokens: Table
    cost_usd: Table
    logprob_mean: Table

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def n_outcomes(self) -> int:
        """Outcomes with a known success."""
        return int((~np.isnan(self.success)).sum())

    @property
    def groups(self) -> Index:
        """A number (n,) per query; rows with the same one never straddle a split."""
        return group_numbers(self.queries)

    @property
    def has_latency(self) -> bool:
        """Whether any latency was measured."""
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
        """Return some of the queries."""
        which = np.arange(len(self))[index]
        matrices = (getattr(self, name)[which] for name in _MATRICES)
        return OutcomeTable(tuple(self.queries[i] for i in which), self.models, *matrices)

    def columns(self, index: Sequence[int]) -> OutcomeTable:
        """Return some of the models."""
        matrices = (getattr(self, name)[:, list(index)] for name in _MATRICES)
        return OutcomeTable(self.queries, tuple(self.models[i] for i in index), *matrices)


_MATRICES = ("success", "latency_s", "prompt_tokens", "output_tokens", "cost_usd", "logprob_mean")


def check_query_ids(queries: Sequence[Query], outcomes: Sequence[Outcome]) -> None:
    """Raise `InputError` for outcomes of unknown queries."""
    unknown = sorted({outcome.query_id for outcome in outcomes} - {query.id for query in queries})
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:_SHOWN])
        more = ", ..." if len(unknown) > _SHOWN else ""
        raise InputError(
            f"{len(unknown)} query ids of the outcomes are not among the queries ({shown}{more}); "
            "--queries and --outcomes must belong to the same data set"
        )


def outcome_table(queries: Sequence[Query], outcomes: Sequence[Outcome]) -> OutcomeTable:
    """Return the table of all queries that have an outcome, in their order, and of all arms, sorted by key.

    Raises `InputError` for outcomes of unknown queries, repeated ones, and values outside their range."""
    check_query_ids(queries, outcomes)
    measured = {outcome.query_id for outcome in outcomes}
    asked = tuple(query for query in queries if query.id in measured)
    row = {query.id: i for i, query in enumerate(asked)}
    models = tuple(sorted({arm_key(outcome.model, outcome.think) for outcome in outcomes}))
    column = {model: j for j, model in enumerate(models)}
    matrices = {name: np.full((len(asked), len(models)), np.nan) for name in _MATRICES}
    seen: set[tuple[int, int]] = set()
    weak: list[tuple[tuple[int, int], Outcome]] = []
    for outcome in outcomes:
        key = arm_key(outcome.model, outcome.think)
        place = row[outcome.query_id], column[key]
        if place in seen:
            raise InputError(f"outcome of {key!r} for query {outcome.query_id!r} is repeated; delete one of the rows")
        seen.add(place)
        if outcome.success is not None and outcome.weight < 1.0:
            weak.append((place, outcome))
        for name, value in _values(outcome).items():
            if value is not None:
                matrices[name][place] = value
    _temper(matrices["success"], weak)
    return OutcomeTable(asked, models, *(matrices[name] for name in _MATRICES))


def _temper(success: Table, weak: Sequence[tuple[tuple[int, int], Outcome]]) -> None:
    """Set successes that rest on weak judgements to what is to be expected after them."""
    weight = np.where(np.isnan(success), 0.0, 1.0)
    for place, outcome in weak:
        two_sided = outcome.judged_by is None or source_of(outcome.judged_by).two_sided
        weight[place] = outcome.weight if two_sided else 0.0
    total = weight.sum(axis=0)
    mean = (weight * np.nan_to_num(success)).sum(axis=0) / np.where(total, total, np.nan)
    for place, outcome in weak:
        success[place] = outcome.weight * success[place] + (1.0 - outcome.weight) * mean[place[1]]


def _values(outcome: Outcome) -> dict[str, float | None]:
    success, latency = outcome.success, outcome.latency_s
    where = f"outcome of {outcome.model!r} for query {outcome.query_id!r}"
    if outcome.error is not None and success is None:
        success, latency = 0.0, None
    if success is not None and not 0.0 <= success <= 1.0:
        raise InputError(f"{where}: success must be between 0 and 1, got {success!r}")
    if latency is not None:
        if not 0.0 <= latency <= MAX_LATENCY_S:
            raise InputError(f"{where}: latency_s must be between 0 and {MAX_LATENCY_S:g} seconds, got {latency!r}")
        latency = max(latency, MIN_LATENCY_S)
    return {
        "success": success,
        "latency_s": latency,
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.output_tokens,
        "cost_usd": outcome.cost_usd,
        # of an answer that was not served the success is read off it, and teaches nothing of what it says
        "logprob_mean": None if outcome.judged_by == UNSERVED else outcome.logprob_mean,
    }


def not_learned(table: OutcomeTable) -> str:
    """Return, in one line, why the success of some or all models cannot be learned and what is needed, or ""."""
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
            f"no success was learned: {found}; {MIN_QUERIES} queries are needed to choose by query. "
            "Judge answers ('router-ml feedback') or measure with 'python -m training.benchmark'; until then the "
            "models are routed by their priors, moved by what outcomes there are"
        )
    few = [f"{name} ({n})" for name, n in zip(table.models, judged.tolist(), strict=True) if n < MIN_ROWS]
    why = "too few known successes to learn from; routed by their priors, moved by these"
    return f"{why}: {', '.join(few)}" if few else ""


def query_keys(queries: Sequence[Query]) -> NDArray[np.uint64]:
    """Return a number for each query's text and context: the first 64 bits of their SHA-256."""
    rows = (  # of queries without text, whose features alone were kept, the id
        json.dumps([query.text or query.id, query.raw_context], sort_keys=True, default=str) for query in queries
    )
    digests = (hashlib.sha256(row.encode()).digest()[:8] for row in rows)
    return np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)


def derived_profiles(table: OutcomeTable, complexity: Table, catalogue: Catalogue) -> tuple[Model, ...]:
    """Return profiles of the table's models that the catalogue lacks: their measured means for each complexity label.

    A model whose rows say how it was asked gets one arm for each way that the catalogue lacks.

    `complexity` holds the label probabilities (n, 4) of the table's queries. A label with few rows is shrunk to the
    model's own mean; a model without latencies gets the median of the others, or one second."""
    overall = table.latency_s[~np.isnan(table.latency_s)]
    fallback = float(np.median(overall)) if overall.size else UNKNOWN_LATENCY_S
    lacking: dict[str, list[Arm]] = {}
    for j, key in enumerate(table.models):
        if catalogue.arm(key) is None:
            name, think = split_key(key)
            lacking.setdefault(name, []).append(Arm(think, _prior(table, j, complexity, fallback)))
    return tuple(_profile(name, arms, table, catalogue) for name, arms in lacking.items())


def _profile(name: str, arms: list[Arm], table: OutcomeTable, catalogue: Catalogue) -> Model:
    """Return the profile of a model with the arms that the catalogue lacks; asked one way only, it has none."""
    known = catalogue.find(name)
    if known is not None and not known.arms and name in table.models:
        arms = [Arm(None, known.prior), *arms]  # its rows that do not say are of an arm, too
    if [arm.think for arm in arms] == [None]:
        return Model(name, arms[0].prior)
    return replace(known or Model(name, arms[0].prior), prior=(known or arms[0]).prior, arms=tuple(arms))


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
    return {
        label: float((sums[i] + _SHRINKAGE_ROWS * mean) / (totals[i] + _SHRINKAGE_ROWS))
        for i, label in enumerate(LABELS)
    }
