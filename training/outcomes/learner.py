"""What a learner of outcomes is: it is fitted on rows, predicts, and exports arrays that serving computes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from router_ml.decide.features.extractor import Features
from training.arrays import Arrays, Index, Matrix
from training.outcomes.basis import Basis, fit_basis
from training.outcomes.targets import Targets


class Setting(NamedTuple):
    """Which of a learner's settings predicts success, and which the quantities; 0 if a learner has one."""

    success: int = 0
    quantities: int = 0


class Export(NamedTuple):
    """A learner's share of the predictions, as the sum of the forms that serving computes; None: no such part."""

    weights: Matrix | None = None  # (inputs, K), acts on `Basis.inputs`
    bias: Matrix | None = None  # (K,)
    forest: Arrays | None = None  # feature, threshold, keeps (nodes, trees) and values (trees, leaves, K)
    neighbours: Arrays | None = None  # keys (n, q), outcomes (n, M) and share (M,)


class FittedLearner(Protocol):
    """A learner fitted on some rows."""

    def predict(self, features: Features, complexity: Matrix) -> Matrix:
        """Return predictions (settings, n, K) of all targets, for each setting the learner has."""
        ...

    def export(self, share: Matrix, setting: Setting) -> Export:
        """Return the learner with its prediction of each target multiplied by `share` (K,)."""
        ...


class Learner(Protocol):
    """A way to learn all targets at once: one file each, and a row in `learners.LEARNERS`."""

    def fit(self, rows: TrainingRows) -> FittedLearner:
        """Fit on training rows."""
        ...


@dataclass(frozen=True)
class TrainingRows:
    """Rows with outcomes, and what several learners need of them."""

    features: Features
    complexity: Matrix  # (n, 4)
    targets: Targets
    seed: int
    tune: bool  # whether a learner may try several settings

    def __len__(self) -> int:
        return len(self.complexity)

    def rows(self, index: Index) -> TrainingRows:
        """Return some of the rows."""
        targets = self.targets.rows(index)
        return TrainingRows(self.features.rows(index), self.complexity[index], targets, self.seed, self.tune)

    @cached_property
    def basis(self) -> Basis:
        """Scalings and directions learned from these rows."""
        return fit_basis(self.features, self.complexity, self.seed)

    @cached_property
    def inputs(self) -> Matrix:
        """The linear learners' inputs (n, p + m + 4)."""
        return self.basis.inputs(self.features, self.complexity)

    @cached_property
    def means(self) -> Matrix:
        """Means of the targets (K,)."""
        return self.targets.means()
