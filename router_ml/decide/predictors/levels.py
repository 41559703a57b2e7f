"""The level of each model's chance of success: its prior, moved by own outcomes and by the difficulty of the query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from router_ml.catalogue import Model
from router_ml.decide.logistic import logit, widened
from router_ml.decide.predictors.ability import Z_90, Abilities, strength_sd
from router_ml.decide.predictors.difficulty import ANY_FAMILY, FamilyShares
from router_ml.types import Source

LEARNED_ROWS = 100.0  # outcomes near a query that a learned prediction rests on, at most

_LOW, _HIGH = 0.001, 0.999
_STEPS = 200  # of the intervals' table

Interval = tuple[float, float]
_Constants = tuple[list[float], list[float], list[float], list[float]]


def prior_sd(model: Model) -> float:
    """Return how unsure a model's prior is, as the standard deviation of the logit of its success."""
    success = model.prior.success.values()
    return strength_sd(model.prior.strength, sum(success) / len(success))


class Levels:
    """Moves the chances of M models. Immutable, so that new outcomes replace it whole. Thread-safe."""

    def __init__(
        self, models: Sequence[Model], abilities: Abilities, learned: Mapping[str, float], spread: float = 1.0
    ) -> None:
        """Take models of which the `learned` ones are the first, with the outcomes each of those rests on; and
        `spread`: by what the logit of a label's mean falls short of that of a query whose difficulty is known."""
        self.abilities = abilities
        self.prior_sd = tuple(map(prior_sd, models))
        self._names = [model.key for model in models]
        self._raised = [spread * widened(sd**2) for sd in self.prior_sd]
        measured = abilities.measured | learned.keys()
        self.source: tuple[Source, ...] = tuple("learned" if name in measured else "prior" for name in self._names)
        self._learned = [_interval_table(min(max(rows, 1.0), LEARNED_ROWS)) for rows in learned.values()]
        self._usual = self._constants(ANY_FAMILY)
        self.plain = not abilities.models  # no outcomes: without a difficulty every level is the prior

    def _constants(self, families: FamilyShares) -> _Constants:
        """Return, for a mix of task families, by model: raise, shift, shrinkage and half of the interval's width."""
        shifts = [self.abilities.shift(name, families, sd) for name, sd in zip(self._names, self.prior_sd, strict=True)]
        shared = float(self.abilities.covariance[-1, -1])  # a prior is a mean over it
        narrowed = [1 / widened(max(shift.sd**2 - shared, 0.0)) for shift in shifts]
        return self._raised, [shift.mean for shift in shifts], narrowed, [Z_90 * shift.sd for shift in shifts]

    def __call__(
        self, p: Sequence[float], n_learned: int = 0, families: FamilyShares | None = None, lead: float = 0.0
    ) -> tuple[Sequence[float], list[Interval]]:
        """Return chances, given those by the labels' priors (M,), and the intervals of all but the first `n_learned`.

        `families` and `lead` are read from the query where there is a difficulty head: the mix of its task families,
        and the logits by which it is easier than others of its labels."""
        n_models, still = len(p), self.plain and families is None and not lead
        if still and n_learned == n_models:
            return p, []
        exp, log = math.exp, math.log  # "heads and selection" takes 50 us at most
        # Without outcomes all families are alike.
        constants = self._usual if families is None or self.plain else self._constants(families)
        raised, shifts, narrowed, halves = constants
        moved, intervals = [], []
        for i in range(n_learned if still else 0, n_models):
            value = p[i]
            value = _LOW if value < _LOW else _HIGH if value > _HIGH else value
            z = log(value / (1.0 - value)) * raised[i] + shifts[i] + lead
            if not still:
                moved.append(1.0 / (1.0 + exp(-z * narrowed[i])))
            if i >= n_learned:
                intervals.append((1.0 / (1.0 + exp(halves[i] - z)), 1.0 / (1.0 + exp(-halves[i] - z))))
        return (p if still else moved), intervals

    def before_outcomes(self, place: int, p: float) -> float:
        """Return the logit, before own outcomes, of a model whose chance is `p` by the labels' priors."""
        return logit(p) * self._raised[place]

    def of_learned(self, p: Sequence[float]) -> list[Interval]:
        """Return the intervals of learned predictions."""
        return [table[int(value * _STEPS)] for value, table in zip(p, self._learned, strict=False)]


def _interval_table(rows: float) -> list[Interval]:
    """Return the intervals of a share among so many rows, for shares from 0 to 1: "heads and selection" takes 50 us."""
    shares = [(step + 0.5) / _STEPS for step in range(_STEPS + 1)]
    halves = [Z_90 * math.sqrt(max(p * (1.0 - p), 0.25 / _STEPS) / rows) for p in shares]
    return [(max(0.0, p - half), min(1.0, p + half)) for p, half in zip(shares, halves, strict=True)]
