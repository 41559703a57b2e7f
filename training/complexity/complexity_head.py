"""Fit the complexity head: a calibrated multinomial logistic regression, exported as one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from router_ml.decide.predictors.heads import LinearHead, softmax
from router_ml.types import LABELS
from training.arrays import Labels, Matrix, Singles
from training.splits import grouped_folds

TABLE_WEIGHT = 0.5  # of the standardised surface columns beside the logits or the embedding
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # C, the inverse of the L2 penalty
MAX_ITER = 400


@dataclass(frozen=True)
class ComplexityFit:
    """A fitted head on [first block | table], with the strength that cross-validation chose."""

    estimator: LogisticRegression
    scaler: StandardScaler
    strength: float
    losses: dict[float, float]  # cross-validated log loss of each strength

    def probabilities(self, block: Singles, table: Singles) -> Singles:
        """Return what scikit-learn itself predicts (n, 4), which a parity test compares with the export."""
        result: Singles = self.estimator.predict_proba(_inputs(block, self.scaler.transform(table))).astype(np.float32)
        return result

    def head(self, projection: Singles | None = None, offset: Singles | None = None) -> LinearHead:
        """Return the same predictions as one affine map on [embedding | table].

        Where the first block was logits, these are `embedding @ projection.T + offset`, with `projection` (4, dim) and
        `offset` (4,)."""
        weights, bias = _all_classes(self.estimator)
        width = weights.shape[1] - len(self.scaler.mean_)
        first, second = weights[:, :width], weights[:, width:] * TABLE_WEIGHT / self.scaler.scale_
        bias = bias - second @ self.scaler.mean_
        if projection is not None and offset is not None:
            bias = bias + first @ offset
            first = first @ projection
        return LinearHead(np.concatenate([first, second], axis=1).astype(np.float32), bias.astype(np.float32))


def fit_complexity(
    block: Singles, table: Singles, labels: Labels, groups: list[str], *, seed: int = 0, tune: bool = True
) -> ComplexityFit:
    """Fit on a first block (held-out logits of a tuned encoder, or an embedding) and the table beside it.

    The strength is the one of least cross-validated log loss, which is also what calibrates it."""
    scaler = StandardScaler().fit(table)
    inputs = _inputs(block, scaler.transform(table))
    candidates = STRENGTHS if tune else (0.03,)
    losses = {strength: _loss(inputs, labels, groups, strength, seed) for strength in candidates} if tune else {}
    strength = min(losses, key=losses.__getitem__) if losses else candidates[0]
    return ComplexityFit(_estimator(strength).fit(inputs, labels), scaler, strength, losses)


def held_out_probabilities(
    block: Singles, table: Singles, labels: Labels, groups: list[str], strength: float, seed: int = 0
) -> Singles:
    """Return each row's probabilities (n, 4) from a fit that did not see its group."""
    inputs = _inputs(block, StandardScaler().fit_transform(table))
    out = np.zeros((len(labels), len(LABELS)), dtype=np.float32)
    for train, held in grouped_folds(groups, 4, seed):
        if len(held) == 0 or len(np.unique(labels[train])) < 2:  # too few groups to learn from, or to judge
            out[held] = np.bincount(labels, minlength=len(LABELS)) / len(labels)
            continue
        estimator = _estimator(strength).fit(inputs[train], labels[train])
        out[held[:, None], estimator.classes_] = estimator.predict_proba(inputs[held])
    return out


def fit_inverse_temperature(probabilities: Singles, labels: Labels) -> np.float32:
    """Return the factor on the logits that makes held-out labels likeliest (Guo et al. 2017, arXiv 1706.04599, eq. 9).

    An encoder tuned on all groups is more confident, and rightly so, than those of the cross-validation on which the
    head was fitted."""
    candidates = np.exp(np.linspace(np.log(0.5), np.log(2.0), 57)).astype(np.float32)
    rows = np.arange(len(labels))
    losses = [-np.log(rescaled(probabilities, f)[rows, labels] + 1e-9).mean() for f in candidates]
    return np.float32(candidates[int(np.argmin(losses))])


def rescaled(probabilities: Singles, inverse_temperature: np.float32) -> Singles:
    """Return probabilities whose logits are multiplied by a factor."""
    return softmax(np.log(probabilities + np.float32(1e-12)) * inverse_temperature)


def _inputs(block: Singles, standardised: Singles) -> Singles:
    return np.concatenate([block, standardised * TABLE_WEIGHT], axis=1).astype(np.float32)


def _estimator(strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=MAX_ITER)


def _loss(inputs: Singles, labels: Labels, groups: list[str], strength: float, seed: int) -> float:
    losses = []
    for train, held in grouped_folds(groups, 3, seed):
        if len(held) == 0 or len(np.unique(labels[train])) < 2:
            continue
        estimator = _estimator(strength).fit(inputs[train], labels[train])
        probabilities = np.full((len(held), len(LABELS)), 1e-6)
        probabilities[:, estimator.classes_] = estimator.predict_proba(inputs[held])
        losses.append(log_loss(labels[held], probabilities / probabilities.sum(1, keepdims=True), labels=range(4)))
    return float(np.mean(losses)) if losses else float("inf")


def _all_classes(estimator: LogisticRegression) -> tuple[Matrix, Matrix]:
    """Return weights and bias for all four labels; a label never seen gets a logit that is never the largest."""
    coefficients, intercepts = estimator.coef_, estimator.intercept_
    if len(estimator.classes_) == 2:  # scikit-learn stores the difference only
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weights = np.zeros((len(LABELS), coefficients.shape[1]))
    bias = np.full(len(LABELS), -20.0)
    weights[estimator.classes_], bias[estimator.classes_] = coefficients, intercepts
    return weights, bias
