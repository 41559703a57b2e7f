"""Six weeks of traffic in which everything changes, routed and learned from as in service.

    python -m benchmarks.six_weeks              one run (about a minute)
    python -m benchmarks.six_weeks --runs 5     five runs, the worst of each figure

Day 10: a model gets worse. Day 20: a new model arrives, of which only a cautious prior is known. Day 30: the queries
shift to harder families. Three in ten answers are judged. The real selector chooses, under a policy that explores 10 %
at first and halves that with the outcomes learned from, down to 2 %. Two light learners stand for the real ones: each
judged answer moves its model's posterior at once, and each night heads are fitted again, judged by the off-policy gate
on requests that they did not learn from, and tested in an A/B test (`Trial`) before they are promoted.

Figures are expected utilities (success less the price of seconds), so that luck plays no part. *Static best* is the
single model that is best over all six weeks, *best of the day* the single model that is best on each day, and the
*oracle* knows what every model can do on every day.
"""

from __future__ import annotations

import math
import random
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router_ml.catalogue import Model
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.selector import Forecast, Selector
from router_ml.experiments.experiment import Arm, Experiment, Limits, Variant
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import UnitRequest
from router_ml.terminal import format_table, run_command
from router_ml.types import LABELS, Context, Prior
from training.arrays import Index, Matrix
from training.command import command_parser, write_json
from training.offpolicy.gate import judge
from training.offpolicy.log import Log

DAYS, PER_DAY, JUDGED = 42, 5_000, 0.3
WORSE, ARRIVES, SHIFTS = 10, 20, 30  # days
MODELS, LATENCY_S = ("small", "medium", "large", "new"), np.array([1.0, 1.8, 5.0, 2.5])
FAMILIES = 4  # chat, knowledge, maths, code
SKILL = np.array([[2.6, 1.6, 0.4, 0.3], [2.6, 2.0, 1.2, 1.5], [2.8, 2.5, 2.2, 2.0], [2.7, 2.0, 2.6, 2.4]])  # logits
LOSS = np.array([0.2, 1.5, 1.5, 1.5])  # of the medium model, from the day on which it gets worse
SLOPE = np.array([1.0, 0.9, 0.6, 0.7])  # logits lost per unit of difficulty
POLICY = Policy(
    "six weeks", latency_weight_per_s=0.02, latency_budget_s=None, exploration=0.10, exploration_floor=0.02,
    exploration_half_life_outcomes=5_000,
)  # fmt: skip
LIMITS = Limits(latency_tolerance_ratio=1.5, latency_margin_ratio=1.6, slo_s=None)  # seconds have their price above
HALF_LIFE_DAYS = 5.0  # of what the heads are fitted on
GATE_DAYS, HELD_OUT = 7, 0.3
TEST_DAYS = 2  # an A/B test that did no harm for so long ends in a promotion, if the gate passed the challenger
SD, FAMILY_CORRELATION, DRIFT = 0.5, 0.8, 0.002  # of a model's shift in logits; variance that each judged answer adds
PARTS_OF_DAY = 4


@dataclass
class Heads:
    """What is predicted: logistic heads as a bundle has them, and per model a shift that each judged answer moves."""

    weights: Matrix  # (M, 2 * families)
    outcomes: int = 0
    shift: Matrix = field(default_factory=lambda: np.zeros((len(MODELS), FAMILIES)))
    covariance: Matrix = field(default_factory=lambda: np.stack([_prior_covariance()] * len(MODELS)))

    def logits(self, x: Matrix, family: int) -> Matrix:
        """Return the logit of success (M,) for one query."""
        found: Matrix = self.weights @ x + self.shift[:, family]
        return found

    def learn(self, model: int, x: Matrix, family: int, success: float) -> None:
        """Take one judged answer: an extended Kalman step of the model's shift (West, Harrison & Migon 1985)."""
        covariance = self.covariance[model]
        covariance += DRIFT * _CORRELATION
        p = 1 / (1 + math.exp(-float(self.weights[model] @ x + self.shift[model, family])))
        gain = covariance[:, family] / (1 / max(p * (1 - p), 0.02) + covariance[family, family])
        self.shift[model] += gain * (success - p) / max(p * (1 - p), 0.02)
        self.covariance[model] = covariance - np.outer(gain, covariance[family])


_CORRELATION = FAMILY_CORRELATION + (1 - FAMILY_CORRELATION) * np.eye(FAMILIES)


def _prior_covariance() -> Matrix:
    found: Matrix = SD**2 * _CORRELATION
    return found


@dataclass
class Served:
    """Requests as they were served; one list entry each."""

    at: list[int] = field(default_factory=list)  # number of the request
    chosen: list[int] = field(default_factory=list)
    preferred: list[int] = field(default_factory=list)
    propensity: list[float] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    control: list[bool] = field(default_factory=list)
    predicted: list[Matrix] = field(default_factory=list)


@dataclass(frozen=True)
class Traffic:
    """All queries of the six weeks, and what is true of each model on each."""

    family: Index  # (n,)
    x: Matrix  # (n, 2 * families)
    success: Matrix  # (n, M)
    utility: Matrix  # (n, M), -inf where a model is not there yet


def traffic(rng: np.random.Generator) -> Traffic:
    """Return the queries and the truth."""
    n = DAYS * PER_DAY
    day = np.arange(n) // PER_DAY
    mix = np.where((day >= SHIFTS)[:, None], [0.25, 0.2, 0.3, 0.25], [0.5, 0.25, 0.1, 0.15])
    family = (rng.random(n)[:, None] > mix.cumsum(axis=1)).sum(axis=1).clip(0, FAMILIES - 1)
    difficulty = rng.standard_normal(n) + 0.3 * (day >= SHIFTS)
    logits = SKILL[:, family].T - SLOPE * difficulty[:, None]
    logits[:, 1] -= np.where(day >= WORSE, LOSS[family], 0.0)
    success = 1 / (1 + np.exp(-logits))
    utility = success - POLICY.latency_weight_per_s * LATENCY_S
    utility[day < ARRIVES, MODELS.index("new")] = -np.inf
    return Traffic(family, _inputs(family, difficulty), success, utility)


def _inputs(family: Index, difficulty: Matrix) -> Matrix:
    own = np.eye(FAMILIES)[family]
    return np.hstack((own, own * difficulty[:, None]))


def first_heads(rng: np.random.Generator) -> Heads:
    """Return heads from 300 benchmark queries of each model that is there, and a cautious prior for the new one."""
    n = 300
    family = rng.integers(0, FAMILIES, n)
    difficulty = rng.standard_normal(n)
    x = _inputs(family, difficulty)
    weights = np.tile(np.repeat([1.5, -0.7], FAMILIES), (len(MODELS), 1))
    for model in range(len(MODELS) - 1):
        p = 1 / (1 + np.exp(-(SKILL[model, family] - SLOPE[model] * difficulty)))
        weights[model] = _logistic(x, (rng.random(n) < p).astype(float), np.ones(n), weights[model])
    return Heads(weights)


def _logistic(x: Matrix, y: Matrix, weight: Matrix, prior: Matrix, penalty: float = 4.0) -> Matrix:
    """Return weights of a logistic regression, shrunk to those of a prior."""
    found = prior.copy()
    for _ in range(8):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + penalty * np.eye(x.shape[1])
        found = found + np.linalg.solve(hessian, x.T @ (weight * (y - p)) - penalty * (found - prior))
    return found


class SixWeeks:
    """One run."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.traffic, self.heads = traffic(rng), first_heads(rng)
        self.first = self.heads.weights
        self.luck, self.judged = rng.random(DAYS * PER_DAY), rng.random(DAYS * PER_DAY) < JUDGED
        self.held_out, self.coin = rng.random(DAYS * PER_DAY) < HELD_OUT, rng.random(DAYS * PER_DAY) < 0.5
        self.draw = random.Random(seed).random
        self.served = Served()
        self.trial: Trial | None = None
        self.challenger: Heads | None = None
        self.words: dict[str, int] = {}
        self.endings: dict[str, int] = {}
        self.gate_passed = False
        self.began = 0

    def run(self, progress: bool) -> dict[str, Any]:
        """Serve six weeks and return the figures."""
        for day in tqdm(range(DAYS), desc="days", disable=not progress):
            models = len(MODELS) if day >= ARRIVES else len(MODELS) - 1
            self._serve_day(day, models)
            if self.trial is None:
                self._propose(day, models)
        return self._figures()

    def _serve_day(self, day: int, models: int) -> None:
        catalogue = [Model(name, Prior(dict.fromkeys(LABELS, 1.0), dict.fromkeys(LABELS, 0.5))) for name in MODELS]
        selector = Selector(catalogue[:models])
        for i in range(day * PER_DAY, (day + 1) * PER_DAY):
            tested = self.challenger if self.trial is not None and self.coin[i] else None
            heads = tested or self.heads
            selector.outcomes = heads.outcomes
            self._serve(i, heads, selector, models, tested is None)
            if self.trial is not None and i % 250 == 249:
                self._analyse(i)

    def _serve(self, i: int, heads: Heads, selector: Selector, models: int, control: bool) -> None:
        x, family = self.traffic.x[i], int(self.traffic.family[i])
        p = 1 / (1 + np.exp(-heads.logits(x, family)))
        latency = [(s, s, s) for s in LATENCY_S[:models].tolist()]
        forecast = Forecast(p[:models].tolist(), latency, [math.nan] * models, [0.0] * models)
        found = selector.select(forecast, Context(), POLICY, draw=self.draw)
        chosen = MODELS.index(found.ranked[0].model)
        right = float(self.luck[i] < self.traffic.success[i, chosen])
        served = self.served
        served.at.append(i)
        served.chosen.append(chosen)
        served.preferred.append(MODELS.index(max(found.ranked, key=lambda c: c.utility).model))
        served.propensity.append(found.propensity)
        served.reward.append(right if self.judged[i] else math.nan)
        served.control.append(control)
        served.predicted.append(p)
        if self.trial is not None:
            failure = 1 - right if self.judged[i] else None
            name = f"d{i}"
            side: Arm = "control" if control else "challenger"
            self.trial.add(UnitRequest(name, name, side, float(i), failure, float(LATENCY_S[chosen]), 0.02, 0.0))
        if self.judged[i]:
            for learner in (self.heads, self.challenger):
                if learner is not None:
                    learner.learn(chosen, x, family, right)

    def _analyse(self, i: int) -> None:
        assert self.trial is not None
        kind: str = self.trial.analyse(float(i)).kind
        if kind == "HOLD":
            if i - self.began < TEST_DAYS * PER_DAY:
                return
            kind = "no harm, and the gate passed it" if self.gate_passed else "no proof"
        if kind in ("SHIP", "no harm, and the gate passed it"):
            assert self.challenger is not None
            self.heads = self.challenger
        self.endings[kind] = self.endings.get(kind, 0) + 1
        self.trial = self.challenger = None

    def _propose(self, day: int, models: int) -> None:
        """Fit a challenger at night, have it judged by the gate, and start its test."""
        served, now = self.served, (day + 1) * PER_DAY
        at, chosen = np.array(served.at), np.array(served.chosen)
        reward, judged = np.array(served.reward), self.judged[: len(served.at)]
        learned_from = judged & ~self.held_out[: len(at)]
        weights = self.heads.weights.copy()
        for model in range(models):
            rows = np.flatnonzero(learned_from & (chosen == model))
            recency = 0.5 ** ((now - at[rows]) / (HALF_LIFE_DAYS * PER_DAY))
            weights[model] = _logistic(self.traffic.x[rows], reward[rows], recency, weights[model])
        challenger = Heads(weights, int(learned_from.sum()))
        rows = np.flatnonzero(self.held_out[: len(at)] & np.array(served.control) & (at >= now - GATE_DAYS * PER_DAY))
        log = self._log(rows)
        verdict = judge(log, self._choices(challenger, rows))
        self.words[verdict.word] = self.words.get(verdict.word, 0) + 1
        if verdict.word != "worse":
            self.challenger, self.gate_passed, self.began = challenger, verdict.passes, now
            experiment = Experiment(
                f"day-{day}", Variant("now"), Variant("new"), float(now), unit="request", judgement_s=0.0, limits=LIMITS
            )
            self.trial = Trial(experiment)

    def _log(self, rows: Index) -> Log:
        served = self.served
        admissible = np.isfinite(self.traffic.utility[rows])
        return Log(
            MODELS,
            np.array(served.chosen)[rows],
            np.array(served.preferred)[rows],
            np.array(served.propensity)[rows],
            admissible,
            np.array(served.reward)[rows],
            np.arange(len(rows)),
            self.traffic.x[rows],
            np.array([served.predicted[i] for i in rows]),
            np.ones(len(rows), bool),
        )

    def _choices(self, heads: Heads, rows: Index) -> Index:
        p = 1 / (1 + np.exp(-(self.traffic.x[rows] @ heads.weights.T)))
        value = p - POLICY.latency_weight_per_s * LATENCY_S
        value[~np.isfinite(self.traffic.utility[rows])] = -np.inf
        found: Index = value.argmax(axis=1)
        return found

    def _figures(self) -> dict[str, Any]:
        utility, chosen = self.traffic.utility, np.array(self.served.chosen)
        rows = np.arange(len(chosen))
        own, oracle = utility[rows, chosen], utility.max(axis=1)
        always = utility[:, : len(MODELS) - 1]
        static = always[:, always.mean(axis=0).argmax()]
        by_day = utility.reshape(DAYS, PER_DAY, len(MODELS))
        best = by_day[np.arange(DAYS), :, by_day.mean(axis=1).argmax(axis=1)].ravel()
        frozen = utility[rows, self._choices(Heads(self.first), rows)]
        explored = chosen != np.array(self.served.preferred)
        last = rows >= (DAYS - 7) * PER_DAY
        return {
            "below_oracle_last_week": 100 * float((oracle - own)[last].mean()),
            "below_oracle": 100 * float((oracle - own).mean()),
            "above_static": 100 * float((own - static).mean()),
            "static_below_oracle_last_week": 100 * float((oracle - static)[last].mean()),
            "days_below_static": _longest(own - static),
            "days_below_best_of_day": _longest(own - best),
            "explored_first_week": float(explored[: 7 * PER_DAY].mean()),
            "explored_last_week": float(explored[last].mean()),
            "gate": self.words,
            "tests": self.endings,
            "weeks": [
                {
                    "router": 100 * float(own[week].mean()),
                    "frozen": 100 * float(frozen[week].mean()),
                    "static": 100 * float(static[week].mean()),
                    "best_of_day": 100 * float(best[week].mean()),
                    "oracle": 100 * float(oracle[week].mean()),
                    "explored": float(explored[week].mean()),
                }
                for week in np.split(rows, 6)
            ],
        }


def _longest(difference: Matrix) -> float:
    """Return the longest time in days for which the mean of each quarter of a day was more than .5 points below."""
    below = difference.reshape(DAYS * PARTS_OF_DAY, -1).mean(axis=1) < -0.005
    longest = length = 0
    for part in below:
        length = length + 1 if part else 0
        longest = max(longest, length)
    return longest / PARTS_OF_DAY


_ROWS = {
    "router": "router",
    "frozen": "router that learns nothing",
    "static": "static best",
    "best_of_day": "best of the day",
    "oracle": "oracle",
}


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures as text: the weeks of the first run, then the worst of all runs."""
    rows = [("points of utility", *(f"week {week}" for week in range(1, 7)))]
    for key, name in _ROWS.items():
        rows.append((name, *(f"{week[key]:.2f}" for week in found[0]["weeks"])))
    rows.append(("share explored", *(f"{week['explored']:.1%}" for week in found[0]["weeks"])))
    worst = {key: max(run[key] for run in found) for key in found[0] if isinstance(found[0][key], float)}
    lines = [
        format_table(rows),
        "",
        f"below the oracle in the last week: {worst['below_oracle_last_week']:.2f} points (static best "
        f"{found[0]['static_below_oracle_last_week']:.2f})",
        f"longest time more than .5 points below the static best: {worst['days_below_static']:.2f} days; "
        f"below the best of the day: {worst['days_below_best_of_day']:.2f} days",
        f"gate: {_counts(found, 'gate')}",
        f"A/B tests: {_counts(found, 'tests')}",
    ]
    return "\n".join(lines)


def _counts(found: Sequence[Mapping[str, Any]], key: str) -> str:
    total: dict[str, int] = {}
    for run in found:
        for word, count in run[key].items():
            total[word] = total.get(word, 0) + count
    return ", ".join(f"{count} {word}" for word, count in sorted(total.items(), key=lambda item: -item[1]))


def parser() -> ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.six_weeks", __doc__)
    cli.add_argument("--runs", type=int, default=1, help="runs, of which the worst is shown (%(default)s)")
    cli.add_argument("--seed", type=int, default=0, help="seed of the first (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write the figures to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation."""
    options = parser().parse_args(argv)

    def command() -> None:
        with threadpool_limits(1):
            found = [SixWeeks(options.seed + run).run(sys.stderr.isatty()) for run in range(options.runs)]
        print(summary(found))
        write_json(options.json, found)

    return run_command("benchmarks.six_weeks", command)


if __name__ == "__main__":
    sys.exit(main())
