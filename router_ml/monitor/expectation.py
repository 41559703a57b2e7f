"""Baseline failure rates; they adapt slowly, so that an incident is not absorbed before the alert fires."""

from __future__ import annotations

import math

_MEMORY = 3000.0  # events; 150 requests move the baseline by a twentieth of a fault's size
_CENTRE = math.log(9)  # minus the log odds of one failure in ten, about which predictions are tilted
_LEAST, _MOST = 0.02, 0.6  # predictions are clipped to these


class CalibratedFailures:
    """Probability that an answer is wrong: the predicted one, recalibrated by a shift and a slope of its log odds.

    Online logistic calibration (Platt 1999) by recursive Newton steps with exponential forgetting towards a prior that
    says that predictions are right."""

    def __init__(self, *, memory: float = _MEMORY) -> None:
        self._keep = 1 - 1 / memory
        self._shift, self._tilt = 0.0, 0.0
        self._shifts, self._both, self._tilts = 1.0, 0.0, 10.0  # the information matrix, the prior's first
        self._prior = (1.0, 10.0)
        self.seen = 0

    def usual(self, predicted: float) -> float:
        """Return the probability of a failure, raised by half a standard error of its log odds."""
        x, odds = self._odds(predicted)
        variance = (self._tilts - 2 * self._both * x + self._shifts * x * x) / self._determinant()
        return min(max(_chance(odds + 0.5 * math.sqrt(variance)), _LEAST), _MOST)

    def learn(self, predicted: float, wrong: bool) -> None:
        """Take one judged answer."""
        x, odds = self._odds(predicted)
        chance = _chance(odds)
        weight, keep = chance * (1 - chance), self._keep
        self._shifts = self._prior[0] + keep * (self._shifts - self._prior[0]) + weight
        self._both = keep * self._both + weight * x
        self._tilts = self._prior[1] + keep * (self._tilts - self._prior[1]) + weight * x * x
        step = (wrong - chance) / self._determinant()
        self._shift += (self._tilts - self._both * x) * step
        self._tilt += (self._shifts * x - self._both) * step
        self.seen += 1

    def _odds(self, predicted: float) -> tuple[float, float]:
        predicted = min(max(predicted, 0.01), _MOST)
        odds = math.log(predicted / (1 - predicted))
        x = odds + _CENTRE
        return x, odds + self._shift + self._tilt * x

    def _determinant(self) -> float:
        return self._shifts * self._tilts - self._both * self._both


def _chance(odds: float) -> float:
    return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))


class ErrorShare:
    """Share of calls that return no answer: one slow mean, for prompts do not explain it.

    It starts at one in a hundred with the weight of 200 calls."""

    def __init__(self, *, memory: float = _MEMORY) -> None:
        self._share, self._memory = 0.01, memory
        self.seen = 0

    def usual(self) -> float:
        """Return the share."""
        return min(max(self._share, 0.01), _MOST)

    def learn(self, error: bool) -> None:
        """Take one call."""
        self.seen += 1
        self._share += max(1 / self._memory, 1 / (200 + self.seen)) * (error - self._share)
