"""Logged decisions as arrays: what could have been chosen, what was, with which probability, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from training.arrays import Index, Matrix

Bools: TypeAlias = NDArray[np.bool_]
Challenger: TypeAlias = Callable[["Log"], Index]  # the arm (n,) it would have chosen; -1: one the log does not have


@dataclass(frozen=True)
class Log:
    """n decisions among K arms. An arm is a model with the way it is asked."""

    arms: tuple[str, ...]
    chosen: Index  # (n,)
    preferred: Index  # (n,), what would have been chosen without exploration
    propensity: Matrix  # (n,), probability of `chosen`
    admissible: Bools  # (n, K), within the limits: what could have been chosen
    reward: Matrix  # (n,), NaN where nobody judged
    session: Index  # (n,), a number per session: rows of one session depend on each other
    features: Matrix  # (n, d), of the query
    predicted: Matrix  # (n, K), success as predicted when the decision was logged; 0.5 where the arm was no candidate
    drawn: Bools  # (n,), a draw decided, or there was nothing to choose; not held, pinned or without exploration
    rows: Sequence[Mapping[str, Any]] = ()  # the exported rows, for challengers that read more

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def judged(self) -> Bools:
        """Return which answers (n,) were judged."""
        return ~np.isnan(self.reward)

    def where(self, kept: Bools) -> Log:
        """Return the decisions that a mask (n,) keeps."""
        values: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            values[field.name] = value[kept] if isinstance(value, np.ndarray) else value
        values["rows"] = [row for row, keep in zip(self.rows, kept, strict=True) if keep] if self.rows else ()
        return Log(**values)
