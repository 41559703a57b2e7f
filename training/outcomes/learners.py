"""The registry of learners, and the blends that a fit chooses from.

To add a learner, write a file with a class that satisfies `learner.Learner` and give it a row in `LEARNERS`: every fit
then tries it alone. To try it together with others, add a blend.
"""

from __future__ import annotations

from collections.abc import Mapping

from training.outcomes.forest_learner import ForestLearner
from training.outcomes.learner import Learner
from training.outcomes.neighbour_learner import NearestNeighbours
from training.outcomes.ridge_learner import Ridge

Blend = Mapping[str, float]  # shares of learners, which add up to 1

LEARNERS: dict[str, Learner] = {"linear": Ridge(), "forest": ForestLearner(), "knn": NearestNeighbours()}
QUANTITY_BLEND: Blend = {"linear": 0.5, "forest": 0.5}  # of latency, tokens and cost
SUCCESS_BLENDS: dict[str, Blend] = {
    "linear + forest + knn": {"linear": 1 / 4, "forest": 2 / 4, "knn": 1 / 4},
    "linear + forest": {"linear": 1 / 3, "forest": 2 / 3},
    "forest + knn": {"forest": 1 / 2, "knn": 1 / 2},
    "forest": {"forest": 1.0},
    "linear": {"linear": 1.0},
    "linear + knn": {"linear": 1 / 2, "knn": 1 / 2},
    "knn": {"knn": 1.0},
}  # in order of preference: a later one must be significantly better


def success_blends() -> dict[str, Blend]:
    """Return the blends to try: those of `SUCCESS_BLENDS`, then each further learner alone."""
    return {**SUCCESS_BLENDS, **{name: {name: 1.0} for name in LEARNERS if name not in SUCCESS_BLENDS}}
