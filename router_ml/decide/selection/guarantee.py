"""A bound on what cheaper arms may lose beside the best one, certified on held-out outcomes.

An arm may replace the reference arm (the best single arm of the fit) where its predicted success is at most a *margin*
below the reference's; of those the cheapest is chosen. A fit counts, for each margin of a rising sequence, the losses
of that choice: success of the reference less success of the choice, in -1..1. A margin is certified if the
hypothesis "the mean loss is max_loss or more" is rejected for it and for every margin before it: fixed-sequence testing
(Angelopoulos et al. 2021, Learn then Test, arXiv:2110.01052). The test is by betting (Waudby-Smith and Ramdas 2024,
Estimating means of bounded random variables by betting, JRSSB 86): valid for any number of rows, it needs counts alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router_ml.arm import arm_key, arm_phrase, split_key
from router_ml.decide.selection.policy import Policy
from router_ml.types import Candidate

LOSSES: NDArray[np.float64] = np.linspace(-1.0, 1.0, 21)  # to which losses are rounded up
_BETS = np.geomspace(0.01, 0.99, 12)  # shares of the largest admissible bet, in equal parts
_MOST_OUTCOMES = 1e7  # where more are needed, the losses are said to be too large


class Step(NamedTuple):
    """A margin of p_success and the losses that it gave on held-out rows."""

    margin: float
    counts: NDArray[np.float64]  # (21,) rows, or groups of them, of each of `LOSSES`

    @property
    def n(self) -> int:
        """Paired outcomes."""
        return int(self.counts.sum())


class Certificate(NamedTuple):
    """What is certified for a policy. `more_outcomes` is None where the cheaper arms lose too much."""

    margin: float | None  # None: nothing, the reference arm serves
    n: int
    more_outcomes: int | None = 0


def log_evidence(counts: NDArray[np.float64], max_loss: float) -> float:
    """Return the log of the evidence (e-value) of counts (21,) of `LOSSES` against a mean loss of `max_loss` or more.

    If the mean is that large, the evidence exceeds 1/a with a probability of at most a (Markov)."""
    most = 1.0 / (1.0 - max_loss) if max_loss < 1.0 else 1.0
    wealth = np.log1p(np.outer(_BETS * most, max_loss - LOSSES)) @ counts
    top = float(wealth.max())
    return top + math.log(float(np.exp(wealth - top).mean()))


def outcomes_needed(counts: NDArray[np.float64], max_loss: float, confidence: float) -> int | None:
    """Return from how many paired outcomes of these shares a step is certified; None if no number will do."""
    shares, wanted = counts / counts.sum(), -math.log1p(-confidence)
    low, high = 0.0, 1.0
    while log_evidence(shares * high, max_loss) < wanted:
        low, high = high, 2.0 * high
        if high > _MOST_OUTCOMES:
            return None
    while high - low > 0.5:
        middle = (low + high) / 2.0
        low, high = (low, middle) if log_evidence(shares * middle, max_loss) >= wanted else (middle, high)
    return math.ceil(high)


class Guarantee:
    """Certificates from the table of a bundle, one for each pair of `max_loss` and `confidence`. Thread-safe."""

    def __init__(self, reference: str | None, arms: Collection[str], steps: Sequence[Step] = ()) -> None:
        """Take the key of the best single arm and the keys of those that the table was made of."""
        self.reference, self.arms, self.steps = reference, frozenset(arms), tuple(steps)
        self._certificates: dict[tuple[float, float], Certificate] = {}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None, reference: str | None = None, arms: Collection[str] = ()
    ) -> Guarantee:
        """Return the guarantee of a bundle. Raises KeyError, TypeError or ValueError for a table of another form."""
        steps = [
            Step(float(margin), np.array(counts, np.float64).reshape(len(LOSSES)))
            for margin, counts in (zip(config["margins"], config["counts"], strict=True) if config else ())
        ]
        return cls(reference, arms, steps)

    def certificate(self, max_loss: float, confidence: float) -> Certificate:
        """Return the largest margin that is certified, or how many outcomes are lacking."""
        key = (max_loss, confidence)
        if (found := self._certificates.get(key)) is None:
            found = self._certificates[key] = self._certified(max_loss, confidence)
        return found

    def _certified(self, max_loss: float, confidence: float) -> Certificate:
        best: Step | None = None
        for step in self.steps:
            if log_evidence(step.counts, max_loss) < -math.log1p(-confidence):
                break
            best = step
        if best is not None:
            return Certificate(best.margin, best.n)
        if not self.steps:
            return Certificate(None, 0, outcomes_needed(_no_loss(), max_loss, confidence))
        first = self.steps[0]
        needed = outcomes_needed(first.counts, max_loss, confidence)
        return Certificate(None, first.n, None if needed is None else max(needed - first.n, 1))

    def order(self, fit: list[Candidate], policy: Policy, notes: list[str]) -> list[Candidate]:
        """Return admissible candidates with the choice under `policy.max_loss` first, and note what is certified."""
        assert policy.max_loss is not None
        reference = next((c for c in fit if arm_key(c.model, c.think) == self.reference), None)
        if reference is None:
            notes.append(f"no guarantee: {self._phrase()} is not available within the limits; the likeliest serves")
            return _first(fit, max(fit, key=attrgetter("p_success")))
        found = self.certificate(policy.max_loss, policy.confidence)
        if found.margin is None:
            lack = "cheaper models lose more" if found.more_outcomes is None else (
                f"{found.more_outcomes} more paired outcomes needed"
            )  # fmt: skip
            notes.append(f"not certified: {lack}; the best model serves")
            return _first(fit, reference)
        least = reference.p_success - found.margin
        within = [c for c in fit if c.p_success >= least and arm_key(c.model, c.think) in self.arms]
        notes.append(
            f"within {100 * policy.max_loss:g} points of {self._phrase()} with {100 * policy.confidence:g} % "
            f"confidence ({found.n} outcomes)"
        )
        return _first(fit, min([reference, *within], key=lambda c: policy.success_weight * c.p_success - c.utility))

    def _phrase(self) -> str:
        return arm_phrase(*split_key(self.reference)) if self.reference else "the best model"


def _no_loss() -> NDArray[np.float64]:
    return np.where(np.abs(LOSSES) < 1e-9, 1.0, 0.0)


def _first(fit: list[Candidate], chosen: Candidate) -> list[Candidate]:
    return [chosen, *(c for c in fit if c is not chosen)]
