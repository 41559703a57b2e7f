"""Ask one arm first, and another where the answer is probably wrong.

Seen from the question alone, right and wrong answers of a small model look alike; the mean log-probability of the
answer's tokens tells them apart (arXiv:2605.02241). A fit learns, for each arm, a logistic map from that and the
success predicted from the question to the probability that this answer is right. Where asking another arm now gains
more utility than it costs, it is asked.

A wrong answer also says something of the question: the share of the surprise that held for other arms on the same
questions lowers, or raises, what is expected of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from router_ml.arm import arm_key, arm_phrase
from router_ml.decide.logistic import logit, sigmoid
from router_ml.decide.selection.limits import LATENCY
from router_ml.decide.selection.policy import Policy
from router_ml.numbers import is_number
from router_ml.types import Candidate, Context

NO_MAP = "the bundle has no map of log-probabilities; fit it on outcomes with `logprob_mean`"


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """From the log-probability of one arm's answers to the probability that they are right; z is standardised.

    logit P(right) = intercept + p_weight * logit(p_success) + signal_weight * z"""

    centre: float  # of the mean log-probability
    scale: float
    intercept: float
    p_weight: float
    signal_weight: float
    usual: tuple[float, float]  # z to expect: intercept, and slope on logit(p_success)
    residuals: tuple[float, ...]  # equally likely deviations of z from that
    shared: float  # share of the surprise, in log-odds, that holds for other arms on the same question
    outcomes: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AnswerCheck:
        """Return the check of a bundle. Raises KeyError, TypeError or ValueError for one of another form."""
        values = {f.name: _numbers(config[f.name]) for f in fields(cls)}
        check = cls(**{**values, "outcomes": int(values["outcomes"])})
        if not check.scale > 0 or len(check.usual) != 2 or not check.residuals:
            raise ValueError("the map of log-probabilities does not fit together")
        return check

    def as_config(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def p_right(self, p_success: float, logprob_mean: float) -> float:
        """Return the probability that an answer is right. Beyond what was seen the signal counts no further."""
        usual = self._usual(p_success)
        low, high = usual + min(self.residuals), usual + max(self.residuals)
        z = (logprob_mean - self.centre) / self.scale
        return self._p_right(p_success, min(max(z, low), high))

    def spread(self, p_success: float) -> list[float]:
        """Return equally likely probabilities that the answer will turn out to have."""
        usual = self._usual(p_success)
        return [self._p_right(p_success, usual + residual) for residual in self.residuals]

    def other(self, p_other: float, p_success: float, p_right: float) -> float:
        """Return the success of another arm on the same question, once this arm's answer is known."""
        return sigmoid(logit(p_other) + self.shared * (logit(p_right) - logit(p_success)))

    def _usual(self, p_success: float) -> float:
        return self.usual[0] + self.usual[1] * logit(p_success)

    def _p_right(self, p_success: float, z: float) -> float:
        return sigmoid(self.intercept + self.p_weight * logit(p_success) + self.signal_weight * z)


class Second(NamedTuple):
    """An arm to ask after the first: what its answer is worth more than the one that is there."""

    candidate: Candidate
    p_success: float
    gain: float  # of utility, what the call takes subtracted


class Ruling(NamedTuple):
    """What follows from the first answer."""

    second: Second | None  # None: the answer is served
    reason: str


@dataclass(frozen=True, slots=True)
class Cascade:
    """The checks of a bundle, by key of the arm; `lacking` says why an arm has none. Immutable."""

    checks: Mapping[str, AnswerCheck] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None, arms: Sequence[str]) -> Cascade:
        """Return the cascade of a bundle that learned these arms. Raises as `AnswerCheck.from_config` does."""
        if not config:
            return cls()
        pairs = list(zip(arms, config["checks"], config["lacking"], strict=True))
        checks = {arm: AnswerCheck.from_config(check) for arm, check, _ in pairs if check is not None}
        return cls(checks, {arm: str(why) for arm, check, why in pairs if check is None})

    def check(self, candidate: Candidate) -> AnswerCheck | None:
        """Return the check of an arm's answers, or None."""
        return self.checks.get(arm_key(candidate.model, candidate.think))

    def why_not(self, candidate: Candidate) -> str:
        """Return why an arm's answers are not judged; "" if they are."""
        key = arm_key(candidate.model, candidate.think)
        if key in self.checks:
            return ""
        if not self.checks and not self.lacking:
            return NO_MAP
        return f"{_phrase(candidate)}: {self.lacking.get(key, 'it has no outcomes of its own')}"

    def order(
        self, fit: list[Candidate], policy: Policy, context: Context, notes: list[str], stays: bool = False
    ) -> list[Candidate]:
        """Return admissible candidates with the arm in front that is best asked first, and note why.

        It changes only where somebody will judge the answer (`context.judged`), and where utility alone chose: what a
        rule prefers (`stays`), a certificate or the default for an unusual query stays."""
        chosen = fit[0]
        stays = stays or not context.judged or policy.max_loss is not None
        if not stays and chosen.utility == max(c.utility for c in fit):
            values = [self.value(c, fit, policy, context) for c in fit]
            chosen = fit[values.index(max(values))]
        if why := self.why_not(chosen):
            notes.append(f"no cascade: {why}")
        if chosen is fit[0]:
            return fit
        notes.append(f"asked first, {_phrase(fit[0])} where the answer is probably wrong")
        return [chosen, *(c for c in fit if c is not chosen)]

    def value(self, first: Candidate, fit: Sequence[Candidate], policy: Policy, context: Context) -> float:
        """Return the utility of asking an arm first and, where that will pay, another."""
        check = self.check(first)
        if check is None:
            return first.utility
        warm_s = first.latency_s.p50 - first.load_s
        others = [c for c in fit if c is not first and _in_budget(c, warm_s, policy, context)]
        if not others:
            return first.utility
        outcomes = check.spread(first.p_success)
        gains = [max(0.0, self._best(check, first, others, p, policy).gain) for p in outcomes]
        return first.utility + sum(gains) / len(gains)

    def rule(
        self,
        first: Candidate,
        logprob_mean: float,
        others: Sequence[Candidate],
        policy: Policy,
        context: Context,
        warm_s: float,
        left_s: float,
    ) -> tuple[float, Ruling]:
        """Return the probability that the first answer is right, and which arm is asked instead, if any.

        `warm_s` is how long the request has taken, loads left out; `left_s` what is left until its deadline. An arm
        that would need longer at its p95 is not asked. The first arm must have a check."""
        check = self.checks[arm_key(first.model, first.think)]
        p_right = check.p_right(first.p_success, logprob_mean)
        if not others:
            return p_right, Ruling(None, "no other model can take the request")
        in_time = [c for c in others if c.latency_s.p95 <= left_s and _in_budget(c, warm_s, policy, context)]
        if not in_time:
            return p_right, Ruling(None, "no other model would answer in the time left")
        if p_right < policy.min_p_success:
            best = max((self._second(check, first, c, p_right, policy) for c in in_time), key=lambda s: s.p_success)
            if best.p_success >= policy.min_p_success:
                return p_right, Ruling(best, f"under the minimum of {policy.min_p_success:g}")
        best = self._best(check, first, in_time, p_right, policy)
        if best.gain > 0:
            return p_right, Ruling(best, f"worth {best.gain:.2f} more")
        return p_right, Ruling(None, f"{_phrase(best.candidate)} would gain too little ({best.p_success:.2f})")

    def _best(
        self, check: AnswerCheck, first: Candidate, others: Sequence[Candidate], p_right: float, policy: Policy
    ) -> Second:
        return max((self._second(check, first, c, p_right, policy) for c in others), key=lambda s: s.gain)

    def _second(self, check: AnswerCheck, first: Candidate, other: Candidate, p_right: float, policy: Policy) -> Second:
        p = check.other(other.p_success, first.p_success, p_right)
        worth = other.utility + policy.success_weight * (p - other.p_success)
        return Second(other, p, worth - policy.success_weight * p_right)


def _in_budget(candidate: Candidate, spent_s: float, policy: Policy, context: Context) -> bool:
    """Return whether an arm keeps the request within its latency budget after some seconds; loads do not count."""
    budget_s: float | None = LATENCY.bound(policy, context)
    return budget_s is None or not spent_s + candidate.warm_p95_s > budget_s


def _phrase(candidate: Candidate) -> str:
    return arm_phrase(candidate.model, candidate.think)


def _numbers(value: Any) -> Any:
    """Return a number, or a list of them as a tuple. Raises ValueError for others, or what is not finite."""
    if isinstance(value, list | tuple):
        return tuple(_numbers(item) for item in value)
    if not is_number(value) or not math.isfinite(value):
        raise ValueError("the map of log-probabilities does not hold numbers")
    return float(value)
