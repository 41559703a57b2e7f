"""What each model would do with a query: its chance to succeed, its latency, its tokens, its cost.

Learned from outcomes where there are any; a model without outcomes rides on its priors for the predicted label, at
once and without a fit. A query unlike the training queries is judged by the transfer head: a heavily regularised map
of the surface features, which keeps to each model's mean and carries over to tasks it has not seen. Another model must
beat the default model's chance of success by a margin, which grows with the novelty of the query.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.catalogue import Catalogue, Model, model_from
from router_ml.errors import BundleFormatError
from router_ml.predictors.forest import Forest
from router_ml.predictors.heads import Floats
from router_ml.predictors.neighbours import Neighbours
from router_ml.schema import LABELS

FORMAT = 1
QUANTITIES = ("latency_s", "output_tokens", "cost_usd")  # learned beside success, in the log
TABLE_LIMIT = np.float32(4.0)  # standardised features are cut here
TRANSFER_LIMIT = np.float32(1.0)  # and here for the transfer head: which way, hardly how far
NEVER = 1.0  # a margin that no advantage reaches
_BELOW = np.float32(1.01)  # what is held back stands just under the default model, never level with it
P_LOW, P_HIGH = np.float32(0.005), np.float32(0.995)
_Z = np.array([0.0, 1.2815516, 1.6448536], dtype=np.float32)  # standard normal quantiles at .5, .9, .95


class Predictions(NamedTuple):
    """Predictions for n queries and M models."""

    models: tuple[str, ...]
    p_success: Floats  # (n, M)
    latency_s: Floats  # (n, M, 3): p50, p90, p95
    output_tokens: Floats  # (n, M), expected; NaN unknown
    cost_usd: Floats  # (n, M)
    novelty: Floats  # (n,), 0 like the training queries .. 1 unlike any


class Signals(NamedTuple):
    """What the learned heads say of n queries, before it is laid over the priors."""

    values: Floats  # (n, outputs): success, then the log of each quantity, model by model
    novelty: Floats  # (n,)
    doubt: Floats  # (n,), as novelty but rising much sooner: how much of the margin for novel queries counts


def with_margin(p: NDArray[Any], default: int, margin: float | NDArray[Any]) -> NDArray[Any]:
    """`p` (n, M) with the advantage of each model over the default model made smaller by a margin, down to none."""
    ahead = np.maximum(p - p[:, default : default + 1], 0.0)
    held: NDArray[Any] = p - np.minimum(ahead, margin) * _BELOW
    return held


class LearnedHeads:
    """The arrays a fit exported: one matrix product, a forest, and stored neighbours where the fit chose them."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        def array(name: str) -> Floats:
            return np.ascontiguousarray(arrays[name], dtype=np.float32)

        self._centre, self._scale = array("table_centre"), array("table_scale")
        self._weights, self._bias = array("weights"), array("bias")  # (inputs, columns): outputs, basis, centroids
        self._transfer, self._transfer_bias = array("transfer_weights"), array("transfer_bias")
        self._n_outputs = len(self._transfer_bias)
        self._n_basis = int(config["basis"])
        novelty = config["novelty"]
        self._embedding_unit, self._table_unit = float(novelty["embedding_unit"]), float(novelty["table_unit"])
        doubt = config.get("doubt", novelty)
        self._near = np.array([[novelty["near"]], [doubt["near"]]], np.float32)
        self._reach = np.array([[novelty["far"]], [doubt["far"]]], np.float32) - self._near
        forest = {name: arrays[f"forest_{name}"] for name in ("feature", "threshold", "keeps", "values")}
        self._forest = Forest.from_arrays(forest) if forest["values"].size else None
        self._neighbours, self._neighbour_weights = self._stored(config.get("neighbours"), arrays)

    @staticmethod
    def _stored(
        config: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[Neighbours | None, Floats]:
        if not config:
            return None, np.zeros(0, np.float32)
        keys = arrays["neighbour_keys"].astype(np.float32)
        outcomes = arrays["neighbour_outcomes"].astype(np.float32)
        return Neighbours(keys, outcomes, int(config["k"])), arrays["neighbour_weights"].astype(np.float32)

    def __call__(self, embedding: Floats, table: Floats, complexity: Floats) -> Signals:
        z = np.minimum(np.maximum((table - self._centre) * self._scale, -TABLE_LIMIT), TABLE_LIMIT)
        product = np.concatenate((embedding, z, complexity), axis=1) @ self._weights
        product += self._bias
        n_outputs, n_basis = self._n_outputs, self._n_basis
        values, basis = product[:, :n_outputs], product[:, n_outputs : n_outputs + n_basis]
        if self._forest is not None:
            values = values + self._forest(np.concatenate((basis, z), axis=1))
        if self._neighbours is not None:
            values[:, : len(self._neighbour_weights)] += self._neighbours(basis) * self._neighbour_weights
        novelty, doubt = self._novelty_and_doubt(product[:, n_outputs + n_basis :], z)
        if novelty.any():
            known = np.minimum(np.maximum(z, -TRANSFER_LIMIT), TRANSFER_LIMIT) @ self._transfer + self._transfer_bias
            values = values + novelty[:, None] * (known - values)
        return Signals(values, novelty, doubt)

    def _novelty_and_doubt(self, squares: Floats, z: Floats) -> Floats:
        """From the distance to the nearest centroid and the size of the table, against those of the training rows."""
        distance = squares.min(axis=1) * self._embedding_unit + np.einsum("ij,ij->i", z, z) * self._table_unit
        result: Floats = np.minimum(np.maximum((distance - self._near) / self._reach, 0.0), 1.0).astype(np.float32)
        return result


class _Layout(NamedTuple):
    """Where the learned columns of one quantity go."""

    source: NDArray[np.intp]  # columns of `Signals.values`
    target: NDArray[np.intp] | slice  # models


class OutcomePredictor:
    """Predictions for every model of a catalogue, and for learned models that the catalogue lacks. Thread-safe.

    `default_model` is the best single model of the training data: the one to keep where nothing speaks for another."""

    def __init__(
        self, catalogue: Catalogue, config: Mapping[str, Any] | None = None, heads: LearnedHeads | None = None
    ) -> None:
        config = config or {}
        self.catalogue = catalogue
        learned = [catalogue[name].name for name in config.get("models", ())]
        self.models = (*learned, *(name for name in catalogue.names if name not in set(learned)))
        self.default_model: str | None = (
            catalogue[config["default_model"]].name if config.get("default_model") else None
        )
        self._heads = heads
        self._set_priors([catalogue[name] for name in self.models])
        if heads is not None:
            self._set_learned(config, len(learned))

    @classmethod
    def from_arrays(
        cls, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], catalogue: Catalogue
    ) -> OutcomePredictor:
        """The predictor stored in a bundle; an empty `config` gives the priors alone.

        Raises `BundleFormatError` for a newer format, and KeyError or ValueError for arrays that do not fit."""
        if config.get("format", 0) > FORMAT:
            raise BundleFormatError(
                f"outcome heads of format {config['format']}; this version reads up to {FORMAT}: upgrade router_ml"
            )
        profiles = [model_from(entry, "bundle profile") for entry in config.get("profiles", ())]
        heads = LearnedHeads(config, arrays) if config.get("models") else None
        return cls(catalogue.extended(profiles), config, heads)

    @property
    def learned(self) -> tuple[str, ...]:
        """The models whose predictions were learned from outcomes."""
        return self.models[: self._n_learned] if self._heads is not None else ()

    @property
    def priors_only(self) -> OutcomePredictor:
        """The same models, in the same order, by their priors alone: for when there is no embedding."""
        if self._heads is None:
            return self
        ordered = Catalogue(tuple(self.catalogue[name] for name in self.models), self.catalogue.source)
        return OutcomePredictor(ordered)

    def _set_priors(self, models: list[Model]) -> None:
        self._prior_success = _per_label([m.prior.success for m in models])
        sd = np.array([m.prior.latency_log_sd for m in models], dtype=np.float32)
        # the median of a log-normal with that mean
        median = _per_label([m.prior.latency_s for m in models]) * np.exp(-0.5 * sd**2)
        self._prior_latency = (median[:, :, None] * np.exp(sd[:, None] * _Z)).astype(np.float32)
        self._prior_tokens = _per_label([m.prior.output_tokens or dict.fromkeys(LABELS, math.nan) for m in models])
        self._price_in = np.array([m.price_input_usd_per_mtok for m in models], dtype=np.float32) * np.float32(1e-6)
        self._price_out = np.array([m.price_output_usd_per_mtok for m in models], dtype=np.float32) * np.float32(1e-6)
        self._has_prices = bool(self._price_in.any() or self._price_out.any())

    def _set_learned(self, config: Mapping[str, Any], n_learned: int) -> None:
        columns = [np.array(config["columns"][name], dtype=np.intp) for name in QUANTITIES]  # -1: not learned
        offset = n_learned
        layouts = []
        for has in columns:
            target = np.flatnonzero(has >= 0)
            contiguous = len(target) == n_learned
            layouts.append(_Layout(offset + has[target], slice(0, n_learned) if contiguous else target))
            offset += len(target)
        self._latency, self._tokens, self._cost = layouts
        self._n_learned = n_learned
        self._residuals = np.exp(np.array(config["latency_residuals"], dtype=np.float32).reshape(-1, 3))
        # success never stands alone: with few outcomes the catalogue's prior keeps a say
        say = np.array(config["prior_weight"], dtype=np.float32)
        self._say = say if say.any() else None
        self._prior_rows = self._prior_success[:, :n_learned] * say
        self._default = list(config["models"]).index(config["default_model"])
        margin = config.get("margin") or {"near": 0.0, "far": 0.0}
        self._margin, self._more_margin = float(margin["near"]), float(margin["far"]) - float(margin["near"])

    def __call__(self, embedding: Floats, table: Floats, complexity: Floats, prompt_tokens: Floats) -> Predictions:
        """Predictions for an embedding (n, d), a table (n, m), label probabilities (n, 4), prompt tokens (n,).

        Unknown prompt tokens are NaN and cost nothing."""
        label = complexity.argmax(axis=1)  # the priors' rules speak of labels: simple -> the fastest, and so on
        p_success = self._prior_success.take(label, axis=0)
        latency = self._prior_latency.take(label, axis=0)
        tokens = self._prior_tokens.take(label, axis=0)
        novelty = np.zeros(len(complexity), dtype=np.float32)
        learned: Floats | None = None
        if self._heads is not None:
            signals = self._heads(embedding, table, complexity)
            novelty = signals.novelty
            p_success[:, : self._n_learned] = self._success(signals.values[:, : self._n_learned], label, signals.doubt)
            if signals.values.shape[1] > self._n_learned:
                learned = np.exp(np.minimum(signals.values, 12.0))
                if len(self._latency.source):
                    p50 = learned.take(self._latency.source, axis=1)
                    latency[:, self._latency.target] = p50[:, :, None] * self._residuals
                if len(self._tokens.source):
                    tokens[:, self._tokens.target] = learned.take(self._tokens.source, axis=1)
        cost = self._costs(prompt_tokens, tokens)
        if learned is not None and len(self._cost.source):
            cost[:, self._cost.target] = learned.take(self._cost.source, axis=1)
        return Predictions(self.models, p_success, latency, tokens, cost, novelty)

    def _success(self, p: Floats, label: NDArray[np.intp], doubt: Floats) -> Floats:
        if self._say is not None:
            p = p * (1.0 - self._say) + self._prior_rows.take(label, axis=0)
        p = np.minimum(np.maximum(p, P_LOW), P_HIGH)
        if self._margin or doubt.any():
            p = with_margin(p, self._default, (self._margin + self._more_margin * doubt)[:, None])
        return p

    def _costs(self, prompt_tokens: Floats, tokens: Floats) -> Floats:
        if not self._has_prices:
            return np.zeros(tokens.shape, dtype=np.float32)
        known_prompt = np.nan_to_num(prompt_tokens, nan=0.0)[:, None]
        return known_prompt * self._price_in + np.nan_to_num(tokens, nan=0.0) * self._price_out


def _per_label(priors: list[Mapping[Any, float]]) -> Floats:
    """A table (4, M) of one prior."""
    return np.array([[prior[label] for label in LABELS] for prior in priors], dtype=np.float32).reshape(-1, 4).T.copy()
