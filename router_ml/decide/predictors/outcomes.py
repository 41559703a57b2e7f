"""Predict for each arm (a model with the way it is asked) the success, latency, tokens and cost of a query.

Learned from outcomes where there are any; a model without outcomes has its priors for the predicted label, at once
and without a fit. A query unlike the training queries is judged by the transfer head: a heavily regularised map
of the surface features, which stays close to each model's mean and generalises to unseen tasks. Another model must
beat the default model's chance of success by a margin, which grows with the novelty of the query.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.arm import split_key
from router_ml.catalogue import Arm, Catalogue, Model, model_from
from router_ml.decide.logistic import logit
from router_ml.decide.predictors.ability import Abilities, Observation
from router_ml.decide.predictors.difficulty import ANY_FAMILY, Difficulty, DifficultyHead
from router_ml.decide.predictors.forest import Forest
from router_ml.decide.predictors.heads import Floats
from router_ml.decide.predictors.levels import Levels
from router_ml.decide.predictors.neighbours import Neighbours
from router_ml.decide.predictors.novelty import NoveltyHead
from router_ml.decide.predictors.priors import LabelPriors
from router_ml.errors import BundleFormatError
from router_ml.types import LABELS, TASK_FAMILIES, Label, Source

FORMAT = 2
QUANTITIES = ("latency_s", "output_tokens", "cost_usd")  # learned beside success, in the log
TABLE_LIMIT = np.float32(4.0)  # standardised features are cut here
TRANSFER_LIMIT = np.float32(1.0)  # and here for the transfer head: little more than their signs
NEVER = 1.0  # a margin that no advantage reaches
_BELOW = 1.01  # a model that the margin holds back ranks just below the default model, never equal to it
P_LOW, P_HIGH = 0.005, 0.995
_MAX_LOG = 12.0
_ONE = np.ones(1, np.float32)
_TOOLS, _INSTRUCTIONS = TASK_FAMILIES.index("tools"), TASK_FAMILIES.index("instructions")
_SURE = np.eye(len(LABELS), dtype=np.float32)


class Predictions(NamedTuple):
    """Predictions for n queries and M arms."""

    models: tuple[str, ...]  # keys of the arms
    p_success: Floats  # (n, M)
    latency_s: Floats  # (n, M, 3): p50, p90, p95
    output_tokens: Floats  # (n, M), expected; NaN unknown
    cost_usd: Floats  # (n, M)
    novelty: Floats  # (n,), 0 like the training queries .. 1 unlike any


class Prediction(NamedTuple):
    """Predictions for one query and M models, in plain numbers. Read them only."""

    p_success: Sequence[float]  # (M,)
    latency_s: Sequence[Sequence[float]]  # (M, 3): p50, p90, p95
    output_tokens: Sequence[float]  # (M,), expected; NaN unknown
    cost_usd: Sequence[float]  # (M,)
    p_interval: Sequence[tuple[float, float]]  # (M,), 90 %, of `p_success`
    source: Sequence[Source]  # (M,), of `p_success`
    novelty: float


class HeadOutput(NamedTuple):
    """What the learned heads give for a query, before it is combined with the priors."""

    values: Floats  # (outputs,): success, then the log of each quantity, model by model
    novelty: float
    margin_share: float  # 0..1, like novelty but rising sooner: how much of the margin for novel queries counts


def with_margin(p: NDArray[Any], default: int, margin: float) -> NDArray[Any]:
    """Return `p` (n, M) with the advantage of each model over the default model reduced by a margin, down to none."""
    ahead = np.maximum(p - p[:, default : default + 1], 0.0)
    held: NDArray[Any] = p - np.minimum(ahead, margin) * _BELOW
    return held


def _with_margin(p: list[float], default: int, margin: float) -> list[float]:
    """Return `with_margin` of one query, without numpy: "heads and selection" takes 45 us at most."""
    best = p[default]
    return [x if x <= best else x - (x - best if x - best < margin else margin) * _BELOW for x in p]


class LearnedHeads:
    """The arrays a fit exported: one matrix product, a forest, and stored neighbours where the fit chose them.

    Queries are judged one by one: on vectors this short a call of numpy costs more than its arithmetic, and calls on
    one row cost least."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        def array(name: str) -> Floats:
            return np.ascontiguousarray(arrays[name], dtype=np.float32)

        self._centre, self._scale = array("table_centre"), array("table_scale")
        self._high = np.full(len(self._centre), TABLE_LIMIT)
        self._low = -self._high
        self._transfer, self._transfer_bias = array("transfer_weights"), array("transfer_bias")
        n_outputs, n_table, self._n_basis = len(self._transfer_bias), len(self._centre), int(config["basis"])
        self._matrix = _in_input_order(array("weights"), array("bias"), n_table, n_outputs)
        self._n_inputs, self._n_numbers = self._matrix.shape[1], sum(self._matrix.shape)
        self._joint = slice(self._n_inputs - n_table - 1, self._n_inputs + self._n_basis)
        self._joint_scale = np.concatenate((_ONE, array("joint_scale")))
        centroids = array("centroids")
        squares = np.einsum("ij,ij->i", centroids, centroids)
        self._centroids = np.column_stack((squares - 1.0, -2.0 * centroids))  # the 1 comes back with the joint's square
        self._novelty, self._margin_share = _range(config["novelty"]), _range(config["doubt"])
        table = np.arange(self._n_inputs - n_table, self._n_inputs)
        self._forest = _forest(arrays, np.concatenate((np.arange(self._n_basis) + table[-1] + 1, table)))
        self._neighbours, self._neighbour_weights = self._stored(config.get("neighbours"), arrays)
        self._rotation = array("neighbour_rotation").T.copy() if self._neighbours is not None else None  # (q, joint)

    @staticmethod
    def _stored(
        config: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[Neighbours | None, Floats]:
        if not config:
            return None, np.zeros(0, np.float32)
        keys = arrays["neighbour_keys"].astype(np.float32)
        outcomes = arrays["neighbour_outcomes"].astype(np.float32)
        return Neighbours(keys, outcomes, int(config["k"])), arrays["neighbour_weights"].astype(np.float32)

    def __call__(self, embedding: Floats, table: Floats, complexity: Floats) -> HeadOutput:
        """Return the outputs for one query: its embedding (d,), table (m,) and label probabilities (4,)."""
        z = (table - self._centre) * self._scale
        np.minimum(np.maximum(z, self._low, out=z), self._high, out=z)
        whole = np.empty(self._n_numbers, np.float32)  # one buffer: "heads and selection" takes 45 us at most
        inputs, product = whole[: self._n_inputs], whole[self._n_inputs :]
        np.concatenate((embedding, complexity, _ONE, z), out=inputs)  # the 1 meets the bias
        self._matrix.dot(inputs, product)  # the main directions, then the outputs
        values = product[self._n_basis :]
        if self._forest is not None:
            values = values + self._forest.sum(whole)
        joint = whole[self._joint] * self._joint_scale  # 1, the table, the main directions
        if self._neighbours is not None and self._rotation is not None:
            key = self._rotation.dot(joint[1:])
            values[: len(self._neighbour_weights)] += self._neighbours(key[None])[0] * self._neighbour_weights
        # the squared distance to the nearest centroid, against those of the training rows
        squares = self._centroids.dot(joint)
        distance = squares.item(squares.argmin()) + float(joint.dot(joint))
        novelty = _rise(distance, *self._novelty)
        if novelty:
            known = np.minimum(np.maximum(z, -TRANSFER_LIMIT), TRANSFER_LIMIT) @ self._transfer + self._transfer_bias
            values = values + novelty * (known - values)
        return HeadOutput(values, novelty, _rise(distance, *self._margin_share))


def _in_input_order(weights: Floats, bias: Floats, n_table: int, n_outputs: int) -> Floats:
    """Return the map (main directions and outputs, inputs). Stored are the inputs as embedding, table, label
    probabilities and the columns as outputs, main directions."""
    table = slice(len(weights) - len(LABELS) - n_table, len(weights) - len(LABELS))
    rows = np.vstack((weights[: table.start], weights[table.stop :], bias, weights[table]))
    return np.ascontiguousarray(np.roll(rows, -n_outputs, axis=1).T)


def _rise(distance: float, near: float, width: float) -> float:
    """Return 0 near the training queries, rising to 1 far from them."""
    risen = (distance - near) / width
    return 0.0 if risen <= 0.0 else 1.0 if risen >= 1.0 else risen


def _range(config: Mapping[str, Any]) -> tuple[float, float]:
    """Return where a rise begins and how wide it is."""
    near, far = float(config["near"]), float(config["far"])
    return near, far - near


def _forest(arrays: Mapping[str, NDArray[Any]], places: NDArray[np.intp]) -> Forest | None:
    """Return the forest, its features renamed to where they stand among inputs and product."""
    if not arrays["forest_values"].size:
        return None
    forest = {name: arrays[f"forest_{name}"] for name in ("threshold", "keeps", "values")}
    return Forest.from_arrays(forest | {"feature": places[arrays["forest_feature"]]})


class OutcomePredictor:
    """Predictions for every arm of a catalogue, and for learned ones that the catalogue lacks. Thread-safe.

    `models` are the keys of the `arms`; `default_model` is that of the best single arm of the training data, used
    unless the predictions favour another."""

    def __init__(
        self,
        catalogue: Catalogue,
        config: Mapping[str, Any] | None = None,
        heads: LearnedHeads | None = None,
        reading: DifficultyHead | None = None,
        novelty: NoveltyHead | None = None,
    ) -> None:
        config = config or {}
        self.catalogue = catalogue
        learned = [_arm(catalogue, key) for key in config.get("models", ())]
        self.arms = (*learned, *(arm for arm in catalogue.arms if arm not in learned))
        self.models = tuple(arm.key for arm in self.arms)
        self.default_model: str | None = (
            _arm(catalogue, config["default_model"]).key if config.get("default_model") else None
        )
        self.guarantee: Mapping[str, Any] | None = config.get("guarantee")  # see `selection.guarantee`
        self.cascade: Mapping[str, Any] | None = config.get("cascade")  # see `selection.cascade`
        self._heads, self._n_learned, self._reading, self._novelty = heads, 0, reading, novelty
        self._set_priors(self.arms)
        if heads is not None:
            self._set_learned(config, len(learned))
        rows = config.get("outcomes") or [math.inf] * len(learned)
        self._rows = dict(zip([arm.key for arm in learned], map(float, rows), strict=True))
        abilities = Abilities.from_config(config.get("abilities"))
        own_names = {name: arm.key for name in abilities.models if (arm := catalogue.arm(name) or catalogue.find(name))}
        self.abilities = abilities.renamed(own_names)

    @classmethod
    def from_arrays(
        cls,
        config: Mapping[str, Any],
        arrays: Mapping[str, NDArray[Any]],
        catalogue: Catalogue,
        reading: DifficultyHead | None = None,
        novelty: NoveltyHead | None = None,
    ) -> OutcomePredictor:
        """Return the predictor stored in a bundle; an empty `config` gives the priors alone. `reading` and
        `novelty` are the bundle's heads for difficulty and, where it has no outcomes, novelty.

        Raises `BundleFormatError` for a newer format, and KeyError or ValueError for arrays that do not fit."""
        if config.get("format", 0) > FORMAT:
            raise BundleFormatError(
                f"outcome heads of format {config['format']}; this version reads up to {FORMAT}: upgrade router_ml"
            )
        profiles = [model_from(entry, "bundle profile") for entry in config.get("profiles", ())]
        heads = LearnedHeads(config, arrays) if config.get("models") else None
        known = _with_learned_arms(catalogue.extended(profiles), config.get("models", ()))
        return cls(known, config, heads, reading, novelty)

    @property
    def learned(self) -> tuple[str, ...]:
        """Return the keys of the arms whose predictions were learned from outcomes by a fit."""
        return self.models[: self._n_learned] if self._heads is not None else ()

    @property
    def learned_latency(self) -> frozenset[str]:
        """Return the models whose latency was learned from outcomes."""
        return frozenset(self.models[model] for model, _ in self._latency) if self._heads is not None else frozenset()

    @property
    def measured(self) -> frozenset[str]:
        """Return the models whose chance of success rests on own outcomes: learned by a fit, or counted since."""
        return frozenset(
            name for name, source in zip(self.models, self._levels.source, strict=True) if source == "learned"
        )

    @property
    def abilities(self) -> Abilities:
        """Return what own outcomes say of the models beside their priors."""
        return self._levels.abilities

    @abilities.setter
    def abilities(self, abilities: Abilities) -> None:
        spread = self._reading.spread if self._reading else 1.0
        self._levels = Levels(self.arms, abilities, self._rows, spread)  # one assignment: thread-safe

    def prior_sd(self, model: str) -> float:
        """Return how unsure the catalogue's prior of a model is, as the standard deviation of a logit."""
        return self._levels.prior_sd[self.models.index(model)]

    def observation(
        self, model: str, success: float, complexity: Floats, difficulty: Difficulty | None = None, weight: float = 1.0
    ) -> Observation:
        """Return a judged answer as `Abilities.updated` takes it, to a query of some label probabilities (4,)."""
        if difficulty is not None:
            complexity = _where_it_tells(complexity, difficulty)
        p, lead = self._priors.success(complexity)[self.models.index(model)], self._lead(complexity, difficulty)
        z = self._levels.before_outcomes(self.models.index(model), p) + lead
        return Observation(model, success, z, difficulty.families if difficulty else ANY_FAMILY, weight)

    def _lead(self, complexity: Floats, difficulty: Difficulty | None) -> float:
        return 0.0 if difficulty is None or self._reading is None else self._reading.lead(complexity, difficulty)

    @property
    def priors_only(self) -> OutcomePredictor:
        """Return the same arms, in the same order, without what is learned of queries: for when there is no
        embedding. What own outcomes say of the arms' level stays."""
        if self._heads is None and self._reading is None and self._novelty is None:
            return self
        priors = copy.copy(self)
        priors._heads, priors._reading, priors._novelty, priors._n_learned, priors._rows = None, None, None, 0, {}
        priors._priors = LabelPriors(self.arms)
        priors.abilities = self.abilities
        return priors

    def _set_priors(self, models: Sequence[Model]) -> None:
        self._priors = LabelPriors(models)
        self._price_in = [m.price_input_usd_per_mtok * 1e-6 for m in models]
        self._price_out = [m.price_output_usd_per_mtok * 1e-6 for m in models]
        self._free = None if any(self._price_in) or any(self._price_out) else [0.0] * len(models)

    def _set_learned(self, config: Mapping[str, Any], n_learned: int) -> None:
        self._n_learned = n_learned
        places: list[list[tuple[int, int]]] = []
        offset = 0
        for name in QUANTITIES:
            has = [int(column) for column in config["columns"][name]]  # -1: not learned
            places.append([(model, offset + column) for model, column in enumerate(has) if column >= 0])
            offset += len(places[-1])
        self._latency, self._tokens, self._cost = places  # (model, place among the quantities)
        self._priors = LabelPriors(self.arms, {model for model, _ in self._latency})
        self._residuals = np.exp(np.array(config["latency_residuals"]).reshape(-1, 3)).tolist()
        # success is shrunk towards the model's level, the more the fewer outcomes there are
        self._learned_weight = [1.0 - float(weight) for weight in config["prior_weight"]]
        self._default = list(config["models"]).index(config["default_model"])
        margin = config.get("margin") or {"near": 0.0, "far": 0.0}
        self._margin, self._more_margin = float(margin["near"]), float(margin["far"]) - float(margin["near"])

    def __call__(self, embedding: Floats, table: Floats, complexity: Floats, prompt_tokens: Floats) -> Predictions:
        """Return predictions for an embedding (n, d), a table (n, m), label probabilities (n, 4), prompt tokens (n,).

        Unknown prompt tokens are NaN and cost nothing."""
        rows = [
            self.predict_one(*row, self.difficulty(row[0], row[1]))
            for row in zip(embedding, table, complexity, prompt_tokens, strict=True)
        ]
        n_models = len(self.models)
        return Predictions(
            self.models,
            np.array([row.p_success for row in rows], np.float32).reshape(-1, n_models),
            np.array([row.latency_s for row in rows], np.float32).reshape(-1, n_models, 3),
            np.array([row.output_tokens for row in rows], np.float32).reshape(-1, n_models),
            np.array([row.cost_usd for row in rows], np.float32).reshape(-1, n_models),
            np.array([row.novelty for row in rows], np.float32),
        )

    @property
    def reads_difficulty(self) -> bool:
        """Return whether it has a difficulty head."""
        return self._reading is not None

    def now(self) -> dict[str, dict[Label, tuple[float, tuple[float, float]]]]:
        """Return each model's chance of success on every label with its interval, before a query is read."""
        rows = {label: self._levels(self._priors.success(one)) for label, one in zip(LABELS, _SURE, strict=True)}
        return {
            model: {label: (p[i], intervals[i]) for label, (p, intervals) in rows.items()}
            for i, model in enumerate(self.models)
        }

    def difficulty(self, embedding: Floats, table: Floats) -> Difficulty | None:
        """Return the difficulty of one query; None without a difficulty head."""
        return self._reading(embedding, table) if self._reading is not None else None

    def predict_one(
        self,
        embedding: Floats,
        table: Floats,
        complexity: Floats,
        prompt_tokens: float = math.nan,
        difficulty: Difficulty | None = None,
    ) -> Prediction:
        """Return predictions for one query: its embedding (d,), table (m,) and label probabilities (4,)."""
        expected, latency, tokens = self._priors(complexity)
        levels, lead = self._levels, 0.0
        if difficulty is not None:
            telling = _where_it_tells(complexity, difficulty)
            expected, lead = self._priors.success(telling), self._lead(telling, difficulty)
        families, n_learned, n_models = difficulty and difficulty.families, self._n_learned, len(expected)
        if self._heads is None:
            success, intervals = levels(expected, n_learned, families, lead)
            cost = self._costs(prompt_tokens, tokens)
            novel = self._novelty(embedding) if self._novelty is not None else 0.0
            return Prediction(success, latency, tokens, cost, intervals, levels.source, novel)
        success, _ = levels(expected, n_models, families, lead)  # their intervals come below
        outputs, novelty, margin_share = self._heads(embedding, table, complexity)
        values = outputs.tolist()
        learned = self._success(values, success, margin_share)
        intervals = levels.of_learned(learned)
        if n_learned < n_models:  # a query that is harder than usual for the measured models is so for the others
            lead += _mean_lead(learned, success)
            success, others = levels(expected, n_learned, families, lead)
            learned += success[n_learned:]
            intervals += others
        # a comparison costs less than a call of `min`, here and below
        exp = math.exp
        known = [exp(log if log < _MAX_LOG else _MAX_LOG) for log in values[n_learned:]]
        if self._latency:
            for (model, place), (at_50, at_90, at_95) in zip(self._latency, self._residuals, strict=True):
                typical = known[place]
                latency[model] = (typical * at_50, typical * at_90, typical * at_95)
        tokens = _combined(tokens, known, self._tokens)
        cost = _combined(self._costs(prompt_tokens, tokens), known, self._cost)
        return tuple.__new__(Prediction, (learned, latency, tokens, cost, intervals, levels.source, novelty))

    def _success(self, values: list[float], expected: Sequence[float], margin_share: float) -> list[float]:
        p = [
            P_LOW if (x := prior + own * (value - prior)) < P_LOW else P_HIGH if x > P_HIGH else x
            for value, own, prior in zip(values, self._learned_weight, expected, strict=False)
        ]
        margin = self._margin + self._more_margin * margin_share
        return _with_margin(p, self._default, margin) if margin else p

    def _costs(self, prompt_tokens: float, tokens: Sequence[float]) -> list[float]:
        if self._free is not None:
            return self._free
        prompt = _or_zero(prompt_tokens)
        return [
            prompt * price_in + _or_zero(output) * price_out
            for output, price_in, price_out in zip(tokens, self._price_in, self._price_out, strict=True)
        ]


def _where_it_tells(complexity: Floats, difficulty: Difficulty) -> Floats:
    """Return the label probabilities (4,) that success is read from.

    Complexity is work for a coordinator: it tells of tool calls and instructions. Of knowledge, maths and code the
    difficulty tells, and any label is as good as another."""
    told = difficulty.families[_TOOLS] + difficulty.families[_INSTRUCTIONS]
    mixed: Floats = complexity * np.float32(told) + np.float32((1.0 - told) / len(LABELS))
    return mixed


def _arm(catalogue: Catalogue, key: str) -> Model:
    return catalogue.arm(key) or catalogue[key]


def _with_learned_arms(catalogue: Catalogue, keys: Sequence[str]) -> Catalogue:
    """Return the catalogue with an arm for each way of asking that was learned and that it lacks."""
    lacking = [split_key(key) for key in keys if catalogue.arm(key) is None]
    known = [(model, think) for name, think in lacking if (model := catalogue.find(name)) is not None]
    return catalogue.extended(replace(model, arms=(Arm(think, model.prior),)) for model, think in known)


def _mean_lead(learned: Sequence[float], levels: Sequence[float]) -> float:
    """Return by how much a query is easier for some models than their levels say, in logits; below 0: harder."""
    return sum([logit(p) - logit(level) for p, level in zip(learned, levels, strict=False)]) / len(learned)


def _combined(prior: list[float], known: list[float], places: list[tuple[int, int]]) -> list[float]:
    """Return what was learned of some models, and the prior of the others."""
    if not places:
        return prior
    both = prior.copy()
    for model, place in places:
        both[model] = known[place]
    return both


def _or_zero(tokens: float) -> float:
    """Return the number of tokens; unknown ones (NaN) cost nothing."""
    return tokens if tokens == tokens else 0.0
