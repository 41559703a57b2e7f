"""How fast a host is, whichever model it runs: one answer of any model tells what to expect of the others.

To generate a token a server reads the weights that take part in it once, so tokens/s times these gigabytes is about
the same for all models of a host (memory bandwidth). The rate at which prompts are read falls with the same size, and
loading takes seconds per gigabyte of file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

from router_ml.hosts.average import Estimate, combined
from router_ml.hosts.rates import LiveRates
from router_ml.library import known

# A model speaks for its host longer than for itself: where it is slow, what others once showed still counts.
PACE_HALF_LIFE_S = 7200.0
PACE_LOG_SD = 0.35  # of one model around its host's pace: quantisation, cache and overheads differ
_OUTLIER_LOG = 1.0  # so far from the median, in the log, a model says half as much of its host
_CACHED_S = 1.0  # a pace is computed anew after so long, or after an answer
GB_PER_BILLION = 0.6  # of weights at 4 bits, the usual quantisation
_ACTIVE = re.compile(r"(\d+(?:\.\d+)?)b-a(\d+(?:\.\d+)?)b", re.IGNORECASE)  # "30b-a3b": 3 of 30 billion a token


def active_share(model: str) -> float:
    """Return the share of a model's weights that takes part in one token, by the library or by its name, else 1."""
    entry = known(model)
    if entry is not None:
        return entry.active_b / entry.parameters_b
    found = _ACTIVE.search(model)
    share = float(found[2]) / max(float(found[1]), 1e-9) if found else 1.0
    return share if 0 < share <= 1 else 1.0


class Pace:
    """The pace of one host, from the live rates of the models that answered there. Thread-safe.

    What it says of a model rests on the others: a model's own rates are a second opinion, which fades sooner."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answered: dict[str, tuple[LiveRates, float, float]] = {}  # rates, GB on disk, GB read for a token
        self._cached: dict[tuple[str, str], tuple[Estimate | None, float]] = {}  # and until when

    def answered(self, model: str, rates: LiveRates, disk_gb: float, read_gb: float) -> None:
        """Note that a model of a known size answered, so that its rates tell the pace."""
        self._answered[model] = (rates, disk_gb, read_gb)
        self._cached = {}

    def decode_tokens_per_s(self, model: str, read_gb: float) -> Estimate | None:
        """Return the decode rate to expect of a model that reads so many gigabytes for a token; None if unknown."""
        return self._of_others("decode", model, 1.0 / read_gb)

    def prompt_tokens_per_s(self, model: str, read_gb: float) -> Estimate | None:
        """Return the same for the rate at which prompts are read."""
        return self._of_others("prompt", model, 1.0 / read_gb)

    def load_s(self, model: str, disk_gb: float) -> Estimate | None:
        """Return the seconds to expect of a load; None if unknown."""
        return self._of_others("load", model, disk_gb)

    def _of_others(self, what: str, model: str, factor: float) -> Estimate | None:
        pace, until_s = self._cached.get((what, model), (None, -math.inf))
        now_s = self._clock()
        if now_s >= until_s:
            others = [entry for name, entry in list(self._answered.items()) if name != model]
            pace = robust_mean(vote for entry in others if (vote := _VOTES[what](*entry)) is not None)
            self._cached[what, model] = (pace, now_s + _CACHED_S)
        return pace and pace.scaled(factor, PACE_LOG_SD)


def _decode_gb_per_s(rates: LiveRates, disk_gb: float, read_gb: float) -> Estimate | None:
    seen = rates.decode(PACE_HALF_LIFE_S)
    return seen and seen.scaled(read_gb)


def _prompt_gb_per_s(rates: LiveRates, disk_gb: float, read_gb: float) -> Estimate | None:
    seen = rates.prompt(PACE_HALF_LIFE_S)
    return seen and seen.scaled(read_gb)


def _load_s_per_gb(rates: LiveRates, disk_gb: float, read_gb: float) -> Estimate | None:
    seen = rates.load()
    return seen and seen.scaled(1.0 / disk_gb)


_VOTES = {"decode": _decode_gb_per_s, "prompt": _prompt_gb_per_s, "load": _load_s_per_gb}


def robust_mean(estimates: Iterable[Estimate]) -> Estimate | None:
    """Return the mean of what several models say of their host, each with an error of its own (`PACE_LOG_SD`).

    A model far from the weighted median counts less, as under Cauchy errors: one that does not fit in the accelerator,
    or reads less than its size says, does not speak for the others."""
    votes = sorted(estimate.scaled(1.0, PACE_LOG_SD) for estimate in estimates)
    if not votes:
        return None
    half = sum(1.0 / vote.variance for vote in votes) / 2
    for median in votes:
        half -= 1.0 / median.variance
        if half <= 0:
            break
    return combined(
        Estimate(vote.log, vote.variance * (1.0 + ((vote.log - median.log) / _OUTLIER_LOG) ** 2)) for vote in votes
    )
