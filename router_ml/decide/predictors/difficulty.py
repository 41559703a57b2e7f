"""How difficult a query is, on the scale of the models' ability: doublings of parameters.

The scale is log2 of the billions of parameters of a typical dense instruct model: 1B = 0, 8B = 3, 70B = 6.1. A model of
ability equal to the difficulty is right in half of the cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.logistic import widened
from router_ml.decide.predictors.heads import Floats, LinearHead
from router_ml.types import LABELS, TASK_FAMILIES

FamilyShares: TypeAlias = tuple[float, ...]  # probabilities, in the order of `TASK_FAMILIES`

ANY_FAMILY: FamilyShares = (0.2,) * 5
WITH_TOOLS: FamilyShares = (0.05, 0.05, 0.05, 0.80, 0.05)
MEAN_DISCRIMINATION = 0.8  # logits for one doubling


class Difficulty(NamedTuple):
    """The difficulty of one query, and which kind of task it is."""

    mean: float
    sd: float
    families: FamilyShares


class DifficultyHead:
    """A learned reading of difficulty: an affine map of embedding and table.

    A bundle stores it as `difficulty/weights` (1 + families, d + m) and `difficulty/bias`: the mean difficulty, then
    the logits of the task families. Its configuration holds `sd` (of the truth around the reading), `label_means` (4,)
    and `label_sd` (of the readings of the training queries: mean by label, and spread within a label). Where tools are
    offered the task is to call them, whatever the query is about; `with_tools` holds the `slope` and `offset` that turn
    the reading into the difficulty of that."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], has_tools: int) -> None:
        """Take the head's part of a bundle, and which column of the table says whether tools are offered."""
        self._has_tools = has_tools
        self._head = LinearHead(arrays["weights"].astype(np.float32), arrays["bias"].astype(np.float32))
        self.sd, self.label_sd = float(config["sd"]), float(config["label_sd"])
        self.label_means = np.array(config["label_means"], np.float32)
        with_tools = config.get("with_tools") or {"slope": 1.0, "offset": 0.0}
        self._tools_slope, self._tools_offset = float(with_tools["slope"]), float(with_tools["offset"])
        self.slope = MEAN_DISCRIMINATION / widened((MEAN_DISCRIMINATION * self.sd) ** 2)
        self.spread = widened((self.slope * self.label_sd) ** 2)
        n_outputs = 1 + len(TASK_FAMILIES)
        if len(self._head.weights) != n_outputs or self._head.bias.shape != (n_outputs,):
            raise ValueError(f"a difficulty head has {n_outputs} outputs")
        if self.label_means.shape != (len(LABELS),) or not (self.sd >= 0 and self.label_sd >= 0):
            raise ValueError(f"'label_means' of a difficulty head are {len(LABELS)} numbers, its 'sd' 0 or more")

    def lead(self, complexity: Floats, difficulty: Difficulty) -> float:
        """Return the logits by which a query is easier than others of its label probabilities (4,)."""
        return self.slope * (float(complexity.dot(self.label_means)) - difficulty.mean)

    def __call__(self, embedding: Floats, table: Floats) -> Difficulty:
        """Return the difficulty of one query, given its embedding (d,) and table (m,)."""
        mean, *logits = self._head.predict_one(np.concatenate((embedding, table))).tolist()
        if table[self._has_tools]:
            return Difficulty(self._tools_offset + self._tools_slope * mean, self.sd, WITH_TOOLS)
        top = max(logits)
        odds = [math.exp(logit - top) for logit in logits]
        total = sum(odds)
        return Difficulty(mean, self.sd, tuple([value / total for value in odds]))
