"""Exploration: a share of requests goes to another admissible candidate, so that outcomes of all are seen.

Who gets it is drawn with inverse gap weighting (Abe & Long 1999; SquareCB: Foster & Rakhlin 2020, arXiv:2002.04926),
with the share as a cap: a candidate that should lose little is tried often, one that should lose much seldom. With n
candidates, a `share` and a `gap` the expected loss is at most share * gap * (n - 1) utility a request, however bad the
others are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from router_ml.types import Candidate


def share_after(share: float, floor: float, half_life_outcomes: float | None, outcomes: float) -> float:
    """Return the share explored by a bundle that learned from so many outcomes: halved with each half-life, down to
    the floor."""
    if half_life_outcomes is None:
        return share
    return max(min(share, floor), share * math.exp2(-outcomes / half_life_outcomes))


def propensities(fit: Sequence[Candidate], share: float, gap: float | None) -> list[float]:
    """Return with which probability each of the admissible candidates is chosen; the first is the preferred one.

    The others share `share` in proportion to 1 / (1 + loss / gap), where the loss is the utility by which they stand
    below the first; what they do not take up stays with the first, and none gets more than the first. Without a
    `gap` every candidate, the first included, gets `share` / n."""
    if gap is None:
        others = [share / len(fit)] * (len(fit) - 1)
    else:
        best = fit[0].utility
        weights = [1.0 / (1.0 + max(best - candidate.utility, 0.0) / gap) for candidate in fit[1:]]
        total = sum(weights)
        scale = min(share / max(total, 1.0), 1.0 / (1.0 + total))
        others = [scale * weight for weight in weights]
    return [1.0 - sum(others), *others]


def drawn(chances: Sequence[float], share: float, draw: Callable[[], float]) -> int:
    """Return the index of the candidate that two uniform numbers draw: whether to explore at all, and whom to."""
    if draw() >= share:
        return 0
    left = draw() * share - (share - sum(chances[1:]))  # the part of the share that stays with the first
    if left < 0.0:
        return 0
    for index, chance in enumerate(chances[1:], 1):
        left -= chance
        if left < 0.0:
            return index
    return 0
