"""A forest for all outcomes of all models together, exported to the arrays that serving walks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.forest import ALL, MAX_LEAVES
from training.arrays import Arrays, Matrix
from training.outcomes.basis import Basis
from training.outcomes.learner import Export, Setting, TrainingRows
from training.outcomes.ridge_learner import PENALTY, fit_ridge

SUCCESS_TREES, QUANTITY_TREES = 128, 72
FEATURE_SHARE = 0.5  # of the features, tried at each split
MIN_LEAF_ROWS = 4
_NO_SPLIT = np.float32(np.inf)


class ForestLearner:
    """Two forests, one for success and one for the quantities: what explains latency is not what explains success."""

    def fit(self, rows: TrainingRows) -> FittedForest:
        """Fit on the deviations from the targets' means; unknown targets are filled by ridge regression."""
        n_models = rows.targets.n_models
        inputs, deviations = rows.basis.forest_inputs(rows.features), _imputed(rows) - rows.means
        blocks = []
        for columns, trees in ((slice(0, n_models), SUCCESS_TREES), (slice(n_models, None), QUANTITY_TREES)):
            block = deviations[:, columns]
            if block.shape[1]:
                scale = np.maximum(block.std(axis=0), 1e-3)
                blocks.append(_Block(fit_forest(inputs, block / scale, rows.seed, trees), columns, scale))
        return FittedForest(rows.basis, rows.means, tuple(blocks))


def _imputed(rows: TrainingRows) -> Matrix:
    values = rows.targets.values
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    ridge = fit_ridge(rows.inputs, rows.targets.filled(rows.means), PENALTY)
    return np.where(unknown, ridge(rows.inputs), values)


class _Block(NamedTuple):
    """A forest on some of the targets, each divided by its standard deviation."""

    model: Any
    columns: slice
    scale: Matrix


@dataclass(frozen=True)
class FittedForest:
    """The means of the targets plus what the forests add to them."""

    basis: Basis
    means: Matrix
    blocks: tuple[_Block, ...]

    def predict(self, features: Features, complexity: Matrix) -> Matrix:
        """Return predictions (1, n, K)."""
        inputs = self.basis.forest_inputs(features)
        out = np.broadcast_to(self.means, (len(inputs), len(self.means))).copy()
        for block in self.blocks:
            out[:, block.columns] += predict_forest(block.model, inputs) * block.scale
        return out[None]

    def export(self, share: Matrix, setting: Setting) -> Export:
        """Return the means as a bias and the trees of all blocks side by side."""
        parts = [export_forest(block.model) for block in self.blocks]
        values = []
        for part, block in zip(parts, self.blocks, strict=True):
            whole = np.zeros((*part["values"].shape[:2], len(self.means)))
            whole[:, :, block.columns] = part["values"] * block.scale
            values.append(whole)
        forest: Arrays = {
            name: np.concatenate([part[name] for part in parts], axis=1) for name in ("feature", "threshold", "keeps")
        }
        return Export(bias=self.means * share, forest=forest | {"values": np.concatenate(values) * share})


def fit_forest(x: NDArray[Any], targets: NDArray[Any], seed: int, trees: int) -> ExtraTreesRegressor:
    """Fit extremely randomised trees (Geurts et al. 2006) of at most 32 leaves on all targets at once.

    One set of splits for every model's outcomes finds the kinds of queries on which the models differ, and its leaves
    hold enough rows to estimate by how much. Targets must be complete."""
    model = ExtraTreesRegressor(
        trees, max_leaf_nodes=MAX_LEAVES, min_samples_leaf=MIN_LEAF_ROWS, max_features=FEATURE_SHARE, random_state=seed
    )
    return model.fit(x.astype(np.float32), targets[:, 0] if targets.shape[1] == 1 else targets)


def predict_forest(model: ExtraTreesRegressor, x: NDArray[Any]) -> Matrix:
    """Return the forest's predictions (n, targets), also for one target."""
    predicted: Matrix = model.predict(x.astype(np.float32))
    return predicted.reshape(len(x), -1)


def export_forest(model: ExtraTreesRegressor) -> Arrays:
    """Return arrays `feature`, `threshold`, `keeps` (nodes, trees) and `values` (trees, 32, targets).

    The sum of the values over the trees is the forest's prediction."""
    trees = [estimator.tree_ for estimator in model.estimators_]
    n_targets = trees[0].value.shape[1]
    shape = (MAX_LEAVES - 1, len(trees))
    feature = np.zeros(shape, np.int32)
    threshold = np.full(shape, _NO_SPLIT, np.float32)
    keeps = np.full(shape, ALL, np.uint32)
    values = np.zeros((len(trees), MAX_LEAVES, n_targets), np.float32)
    for t, tree in enumerate(trees):
        leaves, spans = _left_to_right(tree)
        values[t, : len(leaves)] = tree.value[leaves, :, 0] / len(trees)
        for row, (node, (low, high)) in enumerate(spans.items()):
            feature[row, t] = tree.feature[node]
            threshold[row, t] = _single_not_above(tree.threshold[node])
            keeps[row, t] = int(ALL) & ~(((1 << (high - low)) - 1) << low)
    return {"feature": feature, "threshold": threshold, "keeps": keeps, "values": values}


def _left_to_right(tree: Any) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Return the leaves in order, and for each inner node the range of leaves of its left branch."""
    leaves: list[int] = []
    spans: dict[int, tuple[int, int]] = {}

    def visit(node: int) -> None:
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            leaves.append(node)
            return
        low = len(leaves)
        visit(left)
        spans[node] = (low, len(leaves))
        visit(right)

    visit(0)
    return leaves, spans


def _single_not_above(threshold: float) -> np.float32:
    """Return the greatest single-precision number not above a threshold, so that `x > t` gives the same answer."""
    single = np.float32(threshold)
    return np.nextafter(single, np.float32(-np.inf)) if float(single) > threshold else single
