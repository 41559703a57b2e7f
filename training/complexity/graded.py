"""Requests graded for the smallest class of model that answers them right, and the head that reads difficulty.

A grade is a class of instruction-tuned models: about 1, 3, 8 or 30 billion parameters, or more. On the scale of the
models' ability, log2 of billions of parameters, the difficulty of a request lies half-way between the largest class
that fails and the smallest that succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from router_ml.decide.features.composition import compose
from router_ml.errors import InputError
from router_ml.jsonl import read_queries
from router_ml.types import LABELS, TASK_FAMILIES, Query
from training.arrays import Labels, Singles
from training.complexity.finetune import DIFFICULTY, FAMILIES, Targets
from training.splits import group_of, is_test

GRADE_DIFFICULTY = (-1.0, 0.8, 2.3, 4.0, 6.5)  # of grades 1 to 5, in doublings of parameters
CENTRE, SCALE = 2.3, 2.5  # by which difficulties are standardised for the training
FILE = "difficulty.jsonl"
MIN_WITH_TOOLS = 20  # held-out requests that offer tools, from which those are scaled by themselves


@dataclass(frozen=True)
class Graded:
    """Graded requests as arrays; `texts` are what the encoder reads."""

    queries: list[Query]
    texts: list[str]
    grades: Labels  # (n, 2), 1 to 5, by two labellers
    family: Labels  # (n,), index into TASK_FAMILIES

    @property
    def difficulty(self) -> Singles:
        """Return the mean difficulty (n,) of the two grades, in doublings of parameters."""
        means: Singles = np.array(GRADE_DIFFICULTY, np.float32)[self.grades - 1].mean(axis=1)
        return means

    @property
    def targets(self) -> Targets:
        """Return what the encoder is tuned towards."""
        n = len(self.family)
        return Targets(np.zeros((n, len(LABELS)), np.float32), (self.difficulty - CENTRE) / SCALE, self.family)

    def split(self) -> tuple[Graded, Graded]:
        """Return the rows to learn from and the test rows."""
        test = np.array([is_test(group_of(query)) for query in self.queries], dtype=bool)
        return self._rows(np.flatnonzero(~test)), self._rows(np.flatnonzero(test))

    def _rows(self, index: Labels) -> Graded:
        queries, texts = [self.queries[i] for i in index], [self.texts[i] for i in index]
        return Graded(queries, texts, self.grades[index], self.family[index])


def read_graded(path: Path) -> Graded:
    """Return the graded requests of a file of queries with `grades` (two of 1 to 5) and `family`.

    Raises `InputError` naming the row and its field."""
    queries = read_queries(path)
    for query in queries:
        grades, family = query.extra.get("grades"), query.extra.get("family")
        if not (isinstance(grades, list) and len(grades) == 2 and all(grade in range(1, 6) for grade in grades)):
            raise InputError(f"{path}: {query.id}: field 'grades' must be two numbers of 1 to 5, found {grades!r}")
        if family not in TASK_FAMILIES:
            raise InputError(f"{path}: {query.id}: field 'family' must be one of {TASK_FAMILIES}, found {family!r}")
    return Graded(
        queries,
        [compose(query.text, query.context) for query in queries],
        np.array([query.extra["grades"] for query in queries], np.int64).reshape(-1, 2),
        np.array([TASK_FAMILIES.index(query.extra["family"]) for query in queries], np.int64),
    )


def agreement(grades: Labels) -> float:
    """Return Cohen's kappa with quadratic weights of two labellers' grades (n, 2)."""
    return float(cohen_kappa_score(grades[:, 0], grades[:, 1], weights="quadratic"))


@dataclass(frozen=True)
class DifficultyPart:
    """The difficulty part of a bundle."""

    weights: Singles  # (1 + families, dim + table)
    bias: Singles
    config: dict[str, Any]
    metrics: dict[str, float]


def difficulty_head(
    weights: Singles, bias: Singles, vectors: Singles, test: Graded, reading: tuple[Singles, Labels, int]
) -> DifficultyPart:
    """Return the head, scaled on held-out requests, from the tuned heads on exported vectors (n, dim) of these.

    `reading` holds the exported vectors and labels of complexity queries, for the mean difficulty of each label, and
    the number of columns of the table, on which this head puts no weight."""
    outputs = vectors @ weights.T + bias
    truth, rough = test.difficulty, outputs[:, DIFFICULTY]
    tools = np.array([query.context.n_tools > 0 for query in test.queries], dtype=bool)
    slope, offset = np.polyfit(rough[~tools], truth[~tools], 1)
    mean = slope * rough + offset
    with_tools = None
    if tools.sum() >= MIN_WITH_TOOLS:
        again, shift = np.polyfit(mean[tools], truth[tools], 1)
        with_tools = {"slope": float(again), "offset": float(shift)}
        mean = np.where(tools, again * mean + shift, mean)
    residual = truth - mean
    rows = np.vstack((slope * weights[DIFFICULTY], weights[FAMILIES])).astype(np.float32)
    places = np.concatenate(([slope * bias[DIFFICULTY] + offset], bias[FAMILIES])).astype(np.float32)
    embedded, labels, n_table = reading
    read = embedded @ rows[0] + places[0]
    means = [float(read[labels == k].mean()) if (labels == k).any() else float(read.mean()) for k in range(len(LABELS))]
    config = {
        "sd": float(residual.std()),
        "label_means": means,
        "label_sd": float((read - np.array(means)[labels]).std()),
        "families": list(TASK_FAMILIES),
        "with_tools": with_tools,
    }
    metrics = {
        "test/difficulty_mae": float(np.abs(residual).mean()),
        "test/difficulty_mae_of_mean": float(np.abs(truth - truth.mean()).mean()),
        "test/difficulty_rank_correlation": float(spearmanr(mean, truth).statistic),
        "test/family_accuracy": float((outputs[:, FAMILIES].argmax(1) == test.family).mean()),
    }
    padded = np.hstack((rows, np.zeros((len(rows), n_table), np.float32)))
    return DifficultyPart(padded, places, config, metrics)
