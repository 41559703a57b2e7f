"""The level of each model from own outcomes: Bayesian, so that a few outcomes count, and many outweigh every prior.

What a model is expected to do before its outcomes is the catalogue's prior, else what the library says, else that of
an unknown model. See `router_ml.decide.predictors.ability`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router_ml.arm import split_key
from router_ml.catalogue import Arm, Catalogue, Model
from router_ml.decide.logistic import logit, sigmoid, widened
from router_ml.decide.predictors.ability import Abilities
from router_ml.decide.predictors.difficulty import ANY_FAMILY, Difficulty, DifficultyHead
from router_ml.decide.predictors.outcomes import OutcomePredictor
from router_ml.errors import InputError
from router_ml.library import known, prior_of
from router_ml.types import LABELS, Prior
from training.arrays import Floats, Index, Matrix
from training.outcomes.table import OutcomeTable
from training.splits import permuted_folds

UNKNOWN_B, UNKNOWN_STRENGTH = 8.0, 2.0  # of a model that neither catalogue nor library knows
_SURE = np.eye(len(LABELS), dtype=np.float32)


@dataclass(frozen=True)
class LevelRows:
    """Queries as levels read them."""

    complexity: Floats  # (n, 4)
    difficulty: Sequence[Difficulty] | None = None  # (n,)

    def rows(self, index: Index) -> LevelRows:
        """Return some of the queries."""
        difficulty = None if self.difficulty is None else [self.difficulty[i] for i in index]
        return LevelRows(self.complexity[index], difficulty)

    def of(self, i: int) -> tuple[Floats, Difficulty | None]:
        """Return one query."""
        return self.complexity[i], None if self.difficulty is None else self.difficulty[i]


class LevelFit:
    """Learns the levels of some models."""

    def __init__(self, models: Sequence[str], catalogue: Catalogue, reading: DifficultyHead | None = None) -> None:
        """Take models as the outcomes name them.

        Raises `InputError` if two of the names are those of one model in the catalogue."""
        self.entries = {name: catalogue.arm(name) for name in models}
        taken: dict[str, str] = {}
        for name, entry in self.entries.items():
            if entry is not None and taken.setdefault(entry.key, name) != name:
                raise InputError(
                    f"outcomes of {taken[entry.key]!r} and {name!r} are of one model of the catalogue, "
                    f"{entry.key!r}; use one name for it"
                )
        plain = {"think": None, "arms": (), "aliases": ()}
        expected = [
            replace(entry or _unlisted(name), name=name, **plain)  # type: ignore[arg-type]
            for name, entry in self.entries.items()
        ]
        self._predictor = OutcomePredictor(Catalogue(tuple(expected)), reading=reading)
        self._models = list(models)

    def fit(self, table: OutcomeTable, rows: LevelRows) -> Abilities:
        """Return the abilities after the outcomes of a table, whose queries are `rows`."""
        observe, judged = self._predictor.observation, np.argwhere(~np.isnan(table.success))
        observations = [observe(table.models[j], float(table.success[i, j]), *rows.of(i)) for i, j in judged.tolist()]
        return Abilities().updated(observations, self._predictor.prior_sd)

    def predict(self, abilities: Abilities, rows: LevelRows) -> Matrix:
        """Return the chance of success (n, M) of every model."""
        self._predictor.abilities = abilities
        none = np.zeros(0, np.float32)
        parts = (rows.of(i) for i in range(len(rows.complexity)))
        found = [self._predictor.predict_one(none, none, labels, np.nan, given).p_success for labels, given in parts]
        return np.array(found, np.float64).reshape(-1, len(self._models))

    def held_out(self, table: OutcomeTable, rows: LevelRows, folds: int, seed: int) -> Matrix:
        """Return predictions (n, M), each by outcomes of other groups."""
        found = np.zeros(table.success.shape)
        for train, test in permuted_folds(table.groups, folds, seed):
            abilities = self.fit(table.rows(train), rows.rows(train))
            found[test] = self.predict(abilities, rows.rows(test))
        return found

    def settled(self, abilities: Abilities, profiles: Sequence[Model]) -> tuple[Abilities, tuple[Model, ...]]:
        """Return the abilities and the profiles of models in no catalogue, with the models' levels moved from the
        abilities into the profiles: their success is then what is known now."""
        settled = []
        for profile in profiles:
            priors: dict[str, Prior] = {}
            for arm in profile.each_arm:
                unknown = arm.key in self.entries and self.entries[arm.key] is None
                priors[arm.key] = self._settled(abilities, arm.key, arm.prior) if unknown else arm.prior
                if unknown and arm.key in abilities.models:
                    shift = abilities.shift(arm.key, ANY_FAMILY, self._predictor.prior_sd(arm.key))
                    abilities = abilities.moved(arm.key, -shift.mean)
            arms = tuple(Arm(arm.think, priors[arm.key]) for arm in profile.each_arm) if profile.arms else ()
            prior = priors.get(profile.default_arm.key, profile.prior)
            settled.append(replace(profile, prior=prior, arms=arms))
        return abilities, tuple(settled)

    def _settled(self, abilities: Abilities, key: str, prior: Prior) -> Prior:
        """Return the prior of an arm with its success as it is known now; labels differ by as much as in its own."""
        shift = abilities.shift(key, ANY_FAMILY, self._predictor.prior_sd(key))
        own = {label: logit(p) for label, p in prior.success.items()}
        centre, wide = sum(own.values()) / len(own), widened(shift.sd**2)
        expected = (self._predictor.observation(key, 0.0, row).logit for row in _SURE)
        moved = {label: z + shift.mean + own[label] - centre for label, z in zip(LABELS, expected, strict=True)}
        success = {label: sigmoid(z / wide) for label, z in moved.items()}
        p = sum(success.values()) / len(success)
        return replace(prior, success=success, strength=1.0 / max(shift.sd**2 * p * (1 - p), 1e-6))


def _unlisted(name: str) -> Model:
    """Return a model that the catalogue lacks; one that the library lacks, too, could be of any size."""
    bare, think = split_key(name)
    if known(bare) is not None:
        return Model(name, prior_of(bare, think=think))
    return Model(name, replace(prior_of(name, UNKNOWN_B), strength=UNKNOWN_STRENGTH))
