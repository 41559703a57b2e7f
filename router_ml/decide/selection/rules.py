"""Which rule of the user's speaks for a query.

Whether a query is like the utterances of a rule is read by a ridge classifier on the encoder's vectors: the utterances
against everyday queries of every kind (`background.txt`), the two sides of equal weight, 1 against -1. A few examples
are enough, and 0 lies half-way, whatever the encoder's cosines are.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np

from router_ml.decide.embedder import Embedder, Floats
from router_ml.decide.selection.language import language_of
from router_ml.rule import Rule
from router_ml.types import LABELS, TASK_FAMILIES, Context

log = logging.getLogger(__name__)

RIDGE = 0.3
MAX_SEARCHED_CHARS = 20_000  # of a query, for patterns and languages


class Reading(NamedTuple):
    """What is known of a query when rules are asked."""

    text: str
    context: Context
    label: int  # index into LABELS
    family: int | None = None  # index into TASK_FAMILIES; None where it is not read
    vector: Floats | None = None  # (d,), None where there is no encoder


class RuleBook:
    """Finds the rule that speaks. Thread-safe; what it learns of utterances is cached."""

    def __init__(self, embedder: Embedder | None) -> None:
        self._embedder = embedder
        self._direction = functools.lru_cache(maxsize=128)(self._learn)

    def first(self, rules: Sequence[Rule], query: Reading) -> Rule | None:
        """Return the first rule that matches a query; None if none does."""
        return next((rule for rule in rules if self._matches(rule, query)), None)

    def _matches(self, rule: Rule, query: Reading) -> bool:
        """Return whether all conditions hold; the cheap ones are asked first."""
        context = query.context
        if rule.label and LABELS[query.label] not in rule.label:
            return False
        if rule.family and (query.family is None or TASK_FAMILIES[query.family] not in rule.family):
            return False
        if rule.attachment and not rule.has_attachment(context.attachment, context.attachment_kind):
            return False
        if rule.tool and not rule.has_tool([tool.name for tool in context.tools]):
            return False
        text = query.text[:MAX_SEARCHED_CHARS]
        if rule.pattern and not _compiled(rule.pattern).search(text):
            return False
        if rule.language and language_of(text) not in rule.language:
            return False
        return not rule.utterances or self._is_like(rule, query.vector)

    def _is_like(self, rule: Rule, vector: Floats | None) -> bool:
        if vector is None or self._embedder is None or not len(vector):
            return False
        weights, offset = self._direction(rule.utterances)
        return float(vector.dot(weights)) + offset >= rule.similarity

    def _learn(self, utterances: tuple[str, ...]) -> tuple[Floats, float]:
        """Return weights (d,) and offset of the score: about 1 for the utterances, -1 for other queries."""
        assert self._embedder is not None
        background = self._background
        examples = self._embedder.embed(utterances)
        share = len(background) / len(examples)
        centre = (examples.mean(0) + background.mean(0)) / 2
        rows = np.vstack((examples, background)) - centre
        weight = np.concatenate((np.full(len(examples), share), np.ones(len(background)))).astype(np.float32)
        sides = np.concatenate((np.ones(len(examples)), -np.ones(len(background)))).astype(np.float32)
        gram = (rows * weight[:, None]) @ rows.T + RIDGE * np.eye(len(rows), dtype=np.float32)
        solution: Floats = (rows.T @ np.linalg.solve(gram, weight * sides)).astype(np.float32)
        return solution, -float(centre.dot(solution))

    @functools.cached_property
    def _background(self) -> Floats:
        assert self._embedder is not None
        text = resources.files("router_ml.decide.selection").joinpath("background.txt").read_text(encoding="utf-8")
        return self._embedder.embed(text.splitlines())


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)
