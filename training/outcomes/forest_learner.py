"""A forest for all outcomes of all models together, exported to arrays the serving code walks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from router_ml.decide.predictors.forest import ALL, MAX_LEAVES

SHARE_OF_FEATURES = 0.5
MIN_LEAF = 4
_NEVER = np.float32(np.inf)


def fit_forest(x: NDArray[Any], targets: NDArray[Any], seed: int, trees: int) -> ExtraTreesRegressor:
    """Extremely randomised trees (Geurts et al. 2006) of at most 32 leaves on all targets at once.

    One set of splits for every model's outcomes finds the kinds of queries on which the models differ, and its leaves
    hold enough rows to say by how much. Targets must be complete."""
    model = ExtraTreesRegressor(
        trees, max_leaf_nodes=MAX_LEAVES, min_samples_leaf=MIN_LEAF, max_features=SHARE_OF_FEATURES, random_state=seed
    )
    return model.fit(x.astype(np.float32), targets[:, 0] if targets.shape[1] == 1 else targets)


def predict_forest(model: ExtraTreesRegressor, x: NDArray[Any]) -> NDArray[np.float64]:
    """The forest's predictions (n, targets), also for one target."""
    predicted: NDArray[np.float64] = model.predict(x.astype(np.float32))
    return predicted.reshape(len(x), -1)


def export_forest(model: ExtraTreesRegressor) -> dict[str, NDArray[Any]]:
    """Arrays `feature`, `threshold`, `keeps` (nodes, trees) and `values` (trees, 32, targets) whose sum over trees is
    the forest's prediction."""
    trees = [estimator.tree_ for estimator in model.estimators_]
    n_targets = trees[0].value.shape[1]
    shape = (MAX_LEAVES - 1, len(trees))
    feature = np.zeros(shape, np.int32)
    threshold = np.full(shape, _NEVER, np.float32)
    keeps = np.full(shape, ALL, np.uint32)
    values = np.zeros((len(trees), MAX_LEAVES, n_targets), np.float32)
    for t, tree in enumerate(trees):
        leaves, spans = _left_to_right(tree)
        values[t, : len(leaves)] = tree.value[leaves, :, 0] / len(trees)
        for row, (node, (low, high)) in enumerate(spans.items()):
            feature[row, t] = tree.feature[node]
            threshold[row, t] = _not_above(tree.threshold[node])
            keeps[row, t] = int(ALL) & ~(((1 << (high - low)) - 1) << low)
    return {"feature": feature, "threshold": threshold, "keeps": keeps, "values": values}


def _left_to_right(tree: Any) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """The leaves in order, and for each inner node the span of leaves of its left branch."""
    leaves: list[int] = []
    spans: dict[int, tuple[int, int]] = {}

    def walk(node: int) -> None:
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            leaves.append(node)
            return
        low = len(leaves)
        walk(left)
        spans[node] = (low, len(leaves))
        walk(right)

    walk(0)
    return leaves, spans


def _not_above(threshold: float) -> np.float32:
    """The greatest single-precision number not above a threshold: `x > t` then answers as in double precision."""
    single = np.float32(threshold)
    return np.nextafter(single, np.float32(-np.inf)) if float(single) > threshold else single
