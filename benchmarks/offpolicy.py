"""How far the off-policy gate can be trusted: simulated traffic with a known truth.

    python -m benchmarks.offpolicy                  1,000 simulations of each world (some minutes)
    python -m benchmarks.offpolicy --runs 100       the same in less time

Each log holds 5,000 judged answers of three models of which 5 % explored. The challenger chooses otherwise for a fifth
of the queries. The first table shows how often the 95 % interval of the difference holds the truth, beside *naive
matching*: the mean over the answers on which challenger and log agree. The second shows how often a challenger passes.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks.offpolicy_worlds import World, logged
from router_ml.terminal import format_table, run_command
from training.arrays import Index
from training.command import command_parser, write_json
from training.offpolicy.gate import Verdict, judge
from training.offpolicy.log import Bools, Log

WORLDS = (
    World("stationary"),
    World("sessions", sessions=True),
    World("heavy tails", heavy_tails=True),
    World("judged by arm and query", missing=True),
    World("all of these", sessions=True, heavy_tails=True, missing=True),
)
GAP = 0.05  # of the default policy
GAINS = (-0.03, 0.0, 0.03)
GATED = (
    ("equal parts", World("", gap=None)),
    ("inverse gap", World("", gap=GAP)),
    ("inverse gap, all of these", World("", gap=GAP, sessions=True, heavy_tails=True, missing=True)),
    ("inverse gap, 30 % otherwise", World("", gap=GAP, disagreement=0.3)),
    ("inverse gap, 1,500 judged", World("", gap=GAP, judged=1_500)),
)


def coverage(world: World, runs: int) -> dict[str, float]:
    """Return how often the interval of the difference held the truth, and the same of naive matching."""
    told, held, errors, widths, naive_held, naive_errors = 0, 0, [], [], 0, []
    for log, challenger, truth, verdict in _judged(world, runs):
        naive, naive_error = _matching(log, challenger)
        naive_errors.append(naive - truth)
        naive_held += abs(naive - truth) <= 1.96 * naive_error
        if verdict.difference is not None:
            told += 1
            held += verdict.difference.low <= truth <= verdict.difference.high
            errors.append(verdict.difference.value - truth)
            widths.append(verdict.difference.high - verdict.difference.low)
    return {
        "told": told / runs,
        "covers": held / max(told, 1),
        "bias": float(np.mean(errors)),
        "width": float(np.mean(widths)),
        "naive_covers": naive_held / runs,
        "naive_bias": float(np.mean(naive_errors)),
    }


def passing(world: World, runs: int) -> dict[str, float]:
    """Return the share of verdicts, and how many decisions went to another arm than the preferred one."""
    words: dict[str, float] = dict.fromkeys(("better", "not worse", "worse", "cannot tell"), 0.0)
    explored = 0.0
    for _, _, _, verdict in _judged(world, runs):
        words[verdict.word] += 1 / runs
        explored += verdict.explored / runs
    return {**words, "passes": words["better"] + words["not worse"], "explored": explored}


def _judged(world: World, runs: int) -> Iterator[tuple[Log, Index, float, Verdict]]:
    for run in tqdm(range(runs), desc=f"{world.name} {100 * world.gain:+.0f}", disable=not sys.stderr.isatty()):
        log, challenger, truth = logged(world, np.random.default_rng(run))
        yield log, challenger, truth, judge(log, challenger)


def _matching(log: Log, challenger: Index) -> tuple[float, float]:
    """Return the difference of the mean rewards where each agrees with the log, and its standard error."""
    groups: list[Bools] = [log.judged & (log.chosen == target) for target in (challenger, log.preferred)]
    means = [float(log.reward[group].mean()) for group in groups]
    return means[0] - means[1], float(np.sqrt(sum(log.reward[group].var() / group.sum() for group in groups)))


def run(runs: int) -> dict[str, Any]:
    """Return both tables."""
    with threadpool_limits(1):  # the matrices are small: threads would only wait for each other
        return {
            "runs": runs,
            "coverage": {w.name: coverage(replace(w, gain=GAINS[2], gap=GAP), runs) for w in WORLDS},
            "passing": {
                name: {f"{100 * gain:+.0f}": passing(replace(world, name=name, gain=gain), runs) for gain in GAINS}
                for name, world in GATED
            },
        }


def summary(found: Mapping[str, Any]) -> str:
    """Return the tables as text."""
    rows = [("world", "95 % interval covers", "bias", "width", "naive matching covers", "its bias")]
    for name, row in found["coverage"].items():
        points = (f"{100 * row[key]:+.2f}" for key in ("bias", "width", "naive_bias"))
        bias, width, naive = points
        rows.append((name, f"{row['covers']:.1%}", bias, width.lstrip("+"), f"{row['naive_covers']:.1%}", naive))
    gates = [("exploration of 5 %", "goes elsewhere", *(f"truly {gain} passes" for gain in ("-3", "+0", "+3")))]
    for name, by_gain in found["passing"].items():
        shares = [f"{row['passes']:.1%}" for row in by_gain.values()]
        gates.append((name, f"{by_gain['+0']['explored']:.1%}", *shares))
    head = f"{found['runs']} simulations of each; the challenger is truly 3 points better; points of success"
    return f"{head}\n{format_table(rows)}\n\nHow often a challenger passes\n{format_table(gates)}"


def parser() -> ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.offpolicy", __doc__)
    cli.add_argument("--runs", type=int, default=1000, help="simulations of each world (%(default)s)")
    cli.add_argument("--json", type=Path, metavar="F", help="write the figures to this file")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulations."""
    options = parser().parse_args(argv)

    def command() -> None:
        found = run(options.runs)
        print(summary(found))
        write_json(options.json, found)

    return run_command("benchmarks.offpolicy", command)


if __name__ == "__main__":
    sys.exit(main())
