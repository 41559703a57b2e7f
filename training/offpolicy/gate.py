"""The off-policy gate: is a challenger better than what served, judged on logged decisions alone?

    verdict = judge(log, challenger)
    print(verdict)                   # better | not worse | worse | cannot tell, with its numbers
    verdict.passes                   # better or not worse

It compares the challenger with what would have been chosen without exploration, on the decisions that a draw made. What
it takes for granted: propensities are the true ones, and whether an answer is judged depends on the arm and the query,
not on the answer being right. Sources of the estimators: see `estimate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from training.arrays import Index, Matrix
from training.offpolicy.estimate import Interval, Values, difference, values, weights
from training.offpolicy.log import Challenger, Log
from training.offpolicy.nuisance import LEAST_JUDGED, expected_rewards, judging

Word: TypeAlias = Literal["better", "not worse", "worse", "cannot tell"]

MARGIN = 0.02  # success that a challenger may be worse by and still pass as "not worse"
LEAST_EFFECTIVE = 200.0  # effective sample size
LEAST_TRIED = 10  # judged answers of the challenger's choice where it chooses otherwise
IMBALANCE = 0.2  # standardised difference that weighting by the chance of being judged may leave (Austin 2009: 0.1)
_REACH = 2.326 + 0.842  # standard errors for 99 % confidence with a power of 80 %

_COUNTS = ("decisions", "judged", "sessions", "explored", "disagreement")


@dataclass(frozen=True)
class Verdict:
    """The result of the gate; `reasons` are whole sentences."""

    word: Word
    reasons: tuple[str, ...]
    decisions: int
    judged: int
    sessions: int
    explored: float  # share that went to another arm than the preferred one
    disagreement: float  # share in which the challenger chooses otherwise
    margin: float
    difference: Interval | None = None  # challenger less preferred, per decision
    challenger: Values | None = None
    preferred: Values | None = None
    unsupported: Mapping[str, float] = field(default_factory=dict)  # share of decisions by the arm it would have taken
    judged_share: Mapping[str, float] = field(default_factory=dict)  # by arm
    needed: Mapping[str, int] = field(default_factory=dict)  # judged answers that would tell, by share explored

    @property
    def passes(self) -> bool:
        """Return whether the challenger may go on to shadow or an A/B test."""
        return self.word in ("better", "not worse")

    @property
    def numbers(self) -> dict[str, float]:
        """Return what a tracker logs: finite numbers only."""
        found: dict[str, float] = {name: float(getattr(self, name)) for name in _COUNTS}
        if self.difference is not None:
            found |= {f"difference_{name}": value for name, value in self.difference._asdict().items()}
        for side, worth in (("challenger", self.challenger), ("preferred", self.preferred)):
            if worth is not None:
                found |= {f"{side}_dr": worth.dr.value, f"{side}_ips": worth.ips, f"{side}_snips": worth.snips}
                found[f"{side}_effective"] = worth.effective
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; NaN and infinity are null."""
        values = dataclasses.asdict(self)
        found: dict[str, Any] = _plain({"verdict": values.pop("word"), "passes": self.passes, **values})
        return found

    def __str__(self) -> str:
        return "\n".join([f"{self.word}: {self.reasons[0]}", *(f"  {reason}" for reason in self.reasons[1:])])


def _plain(value: Any) -> Any:
    if isinstance(value, Interval | Values):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def judge(log: Log, challenger: Challenger | Index, *, margin: float = MARGIN, seed: int = 0) -> Verdict:
    """Return the verdict on a challenger: what it would have chosen (n,) as arm numbers, or a function of the log.

    -1 stands for an arm that the log does not have. `margin` is in units of the reward."""
    target = challenger(log) if callable(challenger) else challenger
    drawn = log.drawn
    notes = []
    if drawn.any() and not drawn.all():
        notes.append(f"{_share((~drawn).mean())} of the decisions were pinned, held or not explored and are left out.")
        log, target = log.where(drawn), target[drawn]
    return _Judging(log, target, margin, seed, notes).verdict()


class _Judging:
    """One judgement: the checks in order, then the estimate."""

    def __init__(self, log: Log, target: Index, margin: float, seed: int, notes: list[str]) -> None:
        rows = np.arange(len(log))
        self.log, self.margin, self.seed, self.notes = log, margin, seed, notes
        self.differs = target != log.preferred
        self.supported = ~self.differs | ((target >= 0) & log.admissible[rows, np.maximum(target, 0)])
        self.asked = target
        self.target: Index = np.where(self.supported, target, log.preferred)  # what cannot be judged counts as equal

    def verdict(self) -> Verdict:
        """Return the verdict of the first check that fails, else that of the interval."""
        log, missing = self.log, float((~self.supported).mean()) if len(self.log) else 0.0
        for arm in np.unique(self.asked[~self.supported]):
            name = log.arms[arm] if arm >= 0 else "an arm the log does not have"
            known = "never admissible, so it can never be judged on this log" if arm < 0 or not log.admissible[
                :, arm
            ].any() else "not admissible there, so nothing is known of it"  # fmt: skip
            share = float((self.asked[~self.supported] == arm).mean()) * missing
            self.notes.append(f"In {_share(share)} it would have taken {name}, which was {known}.")
        if not len(log):
            return self._said("cannot tell", "There are no decisions.")
        if not self.differs.any():
            return self._said("not worse", "It chooses as the present router does in every logged decision.")
        if missing > self.margin:
            why = f"{_share(missing)} of its choices cannot be judged on this log, more than the margin allows."
            return self._said("cannot tell", why)
        if not log.drawn.any():
            return self._said("cannot tell", "Nothing was explored, so only one arm was ever seen.", power=True)
        tried = int(((log.chosen == self.target) & self.differs & self.supported & log.judged).sum())
        if self.differs[self.supported].any() and tried < LEAST_TRIED:
            why = f"Where it chooses otherwise its choice was tried and judged {tried} times; {LEAST_TRIED} are needed."
            return self._said("cannot tell", why, power=True)
        judged = judging(log, self.seed)
        if (refused := self._unbalanced(judged)) is not None:
            return self._said("cannot tell", refused)
        expected = expected_rewards(log, self.seed)
        found = values(log, self.target, expected, judged)
        base = values(log, log.preferred, expected, judged)
        if found.effective < LEAST_EFFECTIVE:
            why = f"The effective sample size is {found.effective:.0f}; {LEAST_EFFECTIVE:.0f} are needed."
            return self._said("cannot tell", why, power=True, challenger=found, preferred=base)
        gap = difference(log, self.target, log.preferred, expected, judged)
        return self._weighed(self._widened(gap, missing), found, base)

    def _weighed(self, gap: Interval, found: Values, base: Values) -> Verdict:
        points = f"{100 * gap.value:+.1f} points, 95 % interval {100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
        self.notes += [
            f"The challenger is worth {found.dr.value:.3f} a decision, the present router {base.dr.value:.3f} (doubly "
            f"robust; IPS {found.ips:.3f} and {base.ips:.3f}, self-normalised {found.snips:.3f} and {base.snips:.3f}).",
            f"Effective sample size {found.effective:.0f}.",
        ]
        parts: dict[str, Any] = {"difference": gap, "challenger": found, "preferred": base}
        limit = f"{100 * self.margin:g} points"
        if gap.low > 0:
            return self._said("better", f"The difference is {points}.", **parts)
        if gap.at_least > -self.margin:
            why = f"The difference is {points}; with 99 % confidence it is not worse by more than {limit}."
            return self._said("not worse", why, **parts)
        if gap.high < 0:
            return self._said("worse", f"The difference is {points}.", **parts)
        why = f"The difference is {points}, which may be worse by more than {limit}."
        return self._said("cannot tell", why, power=True, **parts)

    def _widened(self, gap: Interval, missing: float) -> Interval:
        """Return the interval with the worst and the best that the unjudgeable share could be (Manski 1990)."""
        if not missing:
            return gap
        reward = self.log.reward[self.log.judged]
        most = missing * max(float(np.ptp(reward)) if len(reward) else 0.0, 1.0)
        return gap._replace(low=gap.low - most, high=gap.high + most, at_least=gap.at_least - most)

    def _unbalanced(self, judged: Matrix) -> str | None:
        """Return why who was judged cannot be weighted away, or None; note it where it can."""
        log = self.log
        if log.judged.all():
            return None
        shares = self._judged_share()
        self.notes.append(
            "Judged were " + ", ".join(f"{_share(share)} of {arm}" for arm, share in shares.items())
            + "; answers are weighted by the inverse of their chance to be judged."
        )  # fmt: skip
        for arm in np.unique(self.target[self.differs]):
            if log.admissible[:, arm].any() and not log.judged[log.chosen == arm].any():
                return f"No answer of {log.arms[arm]} was judged."
        if (rare := float((judged <= LEAST_JUDGED).mean())) > 0.01:
            return f"{_share(rare)} of the decisions have hardly a chance to be judged."
        weight = weights(log, log.chosen, judged) * log.propensity
        seen = np.column_stack((log.features, np.eye(len(log.arms))[log.chosen]))
        spread = np.where(seen.std(axis=0) > 1e-9, seen.std(axis=0), np.inf)
        worst = float(np.max(np.abs(np.average(seen, axis=0, weights=weight) - seen.mean(axis=0)) / spread))
        if worst > IMBALANCE:
            return (
                f"Judged and unjudged decisions differ too much to be weighted ({worst:.2f} standard deviations are "
                f"left, {IMBALANCE:g} allowed); judge a random sample."
            )
        return None

    def _judged_share(self) -> dict[str, float]:
        log = self.log
        taken = [(name, log.chosen == arm) for arm, name in enumerate(log.arms)]
        return {name: float(log.judged[mask].mean()) for name, mask in taken if mask.any()}

    def _needed(self) -> dict[str, int]:
        """Return how many judged answers would show an equal challenger to be not worse, by the share explored."""
        log = self.log
        reward = log.reward[log.judged]
        variance = float(reward.var()) if len(reward) > 1 else 0.25
        others = max(float(log.admissible.sum(axis=1).mean()) - 1, 1.0)
        return {
            f"{share:.0%}": judged_needed(float(self.differs.mean()), variance, share / others, self.margin)
            for share in (0.02, 0.05, 0.10)
        }

    def _said(self, word: Word, why: str, *, power: bool = False, **parts: Any) -> Verdict:
        log, needed = self.log, self._needed() if power else {}
        if needed:
            rate = max(float(log.judged.mean()), 1e-9)
            told = ", ".join(
                f"{n:,} judged answers" + (f" ({n / rate:,.0f} requests)" if rate > 1e-6 else "") + f" at {share}"
                for share, n in needed.items()
            )
            self.notes.append(f"Exploration would tell of a challenger as good as the present router after {told}.")
        return Verdict(
            word,
            (why, *self.notes),
            decisions=len(log),
            judged=int(log.judged.sum()),
            sessions=len(np.unique(log.session)),
            explored=float((log.chosen != log.preferred)[log.drawn].mean()) if log.drawn.any() else 0.0,
            disagreement=float(self.differs.mean()) if len(log) else 0.0,
            margin=self.margin,
            unsupported={
                log.arms[arm] if arm >= 0 else "other": float(((self.asked == arm) & ~self.supported).mean())
                for arm in np.unique(self.asked[~self.supported])
            },
            judged_share=self._judged_share(),
            needed=needed,
            **parts,
        )


def judged_needed(disagreement: float, variance: float, propensity: float, distance: float) -> int:
    """Return how many judged answers put a difference `distance` away from the limit with 99 % confidence and a power
    of 80 %.

    The variance of the difference of two values per decision is about disagreement * variance / propensity, with the
    variance of the reward and the propensity of the challenger's choice where it chooses otherwise."""
    return int(np.ceil((_REACH / distance) ** 2 * disagreement * variance / propensity))


def _share(value: float) -> str:
    return f"{100 * float(value):.1f} %"
