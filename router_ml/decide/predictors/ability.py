"""What own outcomes add to what is expected of a model.

Item response theory (Birnbaum 1968): P(success) = sigmoid(a * (ability - difficulty)) for a query of one task family;
`router_ml.library` gives what is known before any outcome.

Own outcomes shift the logit of a model, by task family, and that of all models together: queries may be harder than
thought. The shifts are Gaussian before (`Strength`) and after (`updated`: Newton steps to the mode, and the curvature
there), so one outcome counts at once, and many outweigh every prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.predictors.difficulty import FamilyShares
from router_ml.decide.quantiles import Z
from router_ml.types import TASK_FAMILIES

Z_90 = Z[2]  # of a 90 % interval: its upper end is p95
SHARED_SD = 1.0  # of the shift of all models, in logits
FAMILY_CORRELATION = 0.8  # of a model's shifts in two families
MAX_PRIOR_SD = 1.5  # of a model's shift
FEW_OUTCOMES = 5  # with fewer a model counts as not measured
_N_FAMILIES = len(TASK_FAMILIES)
_MAX_STEPS, _LONGEST_STEP, _SMALLEST_STEP = 25, 3.0, 1e-6
_FAMILY_COVARIANCE = FAMILY_CORRELATION + (1 - FAMILY_CORRELATION) * np.eye(_N_FAMILIES)

Doubles = NDArray[np.float64]


def strength_sd(strength: float, p: float) -> float:
    """Return the standard deviation of the logit of a success rate that is worth so many outcomes."""
    p = min(max(p, 0.02), 0.98)
    return min(MAX_PRIOR_SD, 1 / math.sqrt(max(strength * p * (1 - p), 1e-9)))


class Observation(NamedTuple):
    """One judged answer."""

    model: str
    success: float  # 0..1
    logit: float  # what was expected before any outcome
    families: FamilyShares
    weight: float = 1.0


class Shift(NamedTuple):
    """What own outcomes say of one model's logit."""

    mean: float
    sd: float


@dataclass(frozen=True, slots=True)
class Abilities:
    """Gaussian shifts of the models that have outcomes, by task family, and of all models together.

    `mean` (M * families + 1,) and `covariance` list the models one after the other; the last is the shared shift."""

    models: tuple[str, ...] = ()
    outcomes: tuple[float, ...] = ()  # judged, of each model
    mean: Doubles = field(default_factory=lambda: np.zeros(1))
    covariance: Doubles = field(default_factory=lambda: np.full((1, 1), SHARED_SD**2))

    def shift(self, model: str, families: FamilyShares, prior_sd: float) -> Shift:
        """Return a model's shift for a query; `prior_sd` is that of a model without outcomes."""
        if model not in self.models:
            return Shift(float(self.mean[-1]), math.hypot(prior_sd, math.sqrt(self.covariance[-1, -1])))
        first = self.models.index(model) * _N_FAMILIES
        place = [*range(first, first + _N_FAMILIES), len(self.mean) - 1]
        x = np.array((*families, 1.0))
        variance = float(x @ self.covariance[np.ix_(place, place)] @ x)
        return Shift(float(x @ self.mean[place]), math.sqrt(max(variance, 0.0)))

    @property
    def measured(self) -> frozenset[str]:
        """Models with enough outcomes of their own."""
        return frozenset(m for m, n in zip(self.models, self.outcomes, strict=True) if n >= FEW_OUTCOMES)

    def updated(self, observations: Iterable[Observation], prior_sd: Callable[[str], float]) -> Abilities:
        """Return the abilities after further outcomes. `prior_sd` gives that of a model without outcomes so far."""
        rows = [row for row in observations if row.weight > 0]
        if not rows:
            return self
        known = self._with([row.model for row in rows], prior_sd)
        place = {model: i * _N_FAMILIES for i, model in enumerate(known.models)}
        x = np.zeros((len(rows), len(known.mean)))
        for i, row in enumerate(rows):
            x[i, place[row.model] : place[row.model] + _N_FAMILIES] = row.families
        x[:, -1] = 1.0
        y, offset, weight = (np.array([getattr(row, name) for row in rows]) for name in ("success", "logit", "weight"))
        precision: Doubles = np.linalg.inv(known.covariance).astype(np.float64)
        mean, covariance = _posterior(known.mean, precision, x, offset, y, weight)
        counts = dict(zip(known.models, known.outcomes, strict=True))
        for row in rows:
            counts[row.model] += row.weight
        return Abilities(known.models, tuple(counts.values()), mean, covariance)

    def _with(self, models: Sequence[str], prior_sd: Callable[[str], float]) -> Abilities:
        """Return the same with models that had no outcomes."""
        new = [model for model in dict.fromkeys(models) if model not in self.models]
        if not new:
            return self
        n_old, n_new = len(self.mean) - 1, len(new) * _N_FAMILIES
        order = np.r_[np.arange(n_old), np.arange(n_new) + n_old + 1, n_old]  # the shared one stays the last
        mean = np.concatenate((self.mean, np.zeros(n_new)))[order]
        covariance = np.zeros((len(mean), len(mean)))
        covariance[: n_old + 1, : n_old + 1] = self.covariance
        for i, model in enumerate(new):
            part = slice(n_old + 1 + i * _N_FAMILIES, n_old + 1 + (i + 1) * _N_FAMILIES)
            covariance[part, part] = max(prior_sd(model), 1e-3) ** 2 * _FAMILY_COVARIANCE
        outcomes = (*self.outcomes, *(0.0 for _ in new))
        return Abilities((*self.models, *new), outcomes, mean, covariance[np.ix_(order, order)])

    def moved(self, model: str, by: float) -> Abilities:
        """Return the same with one model's shifts moved, for when what is expected of it was moved the other way."""
        mean = self.mean.copy()
        first = self.models.index(model) * _N_FAMILIES
        mean[first : first + _N_FAMILIES] += by
        return Abilities(self.models, self.outcomes, mean, self.covariance)

    def renamed(self, names: Mapping[str, str]) -> Abilities:
        """Return the same with other names of the models."""
        return replace(self, models=tuple(names.get(model, model) for model in self.models))

    def as_config(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        return {"models": list(self.models), "outcomes": list(self.outcomes),
                "mean": self.mean.tolist(), "covariance": self.covariance.tolist()}  # fmt: skip

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> Abilities:
        """Return the abilities of `as_config`. Raises KeyError, TypeError or ValueError if the parts do not fit."""
        if not config:
            return cls()
        models, outcomes = tuple(map(str, config["models"])), tuple(map(float, config["outcomes"]))
        mean, covariance = np.array(config["mean"], float), np.array(config["covariance"], float)
        n = len(models) * _N_FAMILIES + 1
        if len(outcomes) != len(models) or mean.shape != (n,) or covariance.shape != (n, n):
            raise ValueError("the abilities do not fit their models")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("the abilities are not finite")
        return cls(models, outcomes, mean, covariance)


def _posterior(
    mean: Doubles, precision: Doubles, x: Doubles, offset: Doubles, y: Doubles, weight: Doubles
) -> tuple[Doubles, Doubles]:
    """Return mode and covariance of logistic regression with a Gaussian prior (Bishop 2006, section 4.5.1)."""
    theta = mean.copy()
    for _ in range(_MAX_STEPS):
        p = 1 / (1 + np.exp(-np.clip(offset + x @ theta, -30, 30)))
        curvature = precision + (x * (weight * p * (1 - p))[:, None]).T @ x
        step = np.linalg.solve(curvature, x.T @ (weight * (y - p)) - precision @ (theta - mean))
        longest = float(np.abs(step).max())
        theta = theta + step * min(1.0, _LONGEST_STEP / max(longest, 1e-12))
        if longest < _SMALLEST_STEP:
            break
    covariance = np.linalg.inv(curvature)
    return theta, (covariance + covariance.T) / 2
