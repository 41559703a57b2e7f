"""Learn from your own traffic: fit a challenger from new events, judge it offline, and try it beside what serves.

    python -m training.learn                      go on where the last run stood
    python -m training.learn --dry-run            say what would be done, and change nothing
    python -m training.learn --policy my.toml     with the [learn] table of a policy file

A job for cron, a timer or a container: examples/learn/ has one of each. It reads the event store of the environment's
settings, needs features or texts of queries there (ROUTER_ML_KEEP=features) and judged answers, and works in steps:

1. collect   decisions with their attempts, outcomes and feedback since the last time; without enough judged answers it
             says how many are missing and how to get them
2. fit       outcome heads on the encoder that serves, from 70 % of the sessions
3. gate      off-policy evaluation on the other 30 %: better, not worse, worse, or it cannot tell
4. register  in MLflow, with the window of events and the verdict; alias `challenger` unless it is worse
5. try       in shadow or as an A/B test that rolls back by itself; promoted by you, or by the job if it may

A killed run goes on after its last finished step. One run at a time. With --engine ray the vectors of texts that were
kept are computed on a Ray cluster (RAY_ADDRESS); kept features need none.

    [learn]
    min_judged = 200              # new judged answers before a challenger is learned
    then = "shadow"               # or "ab", "nothing"
    on_cannot_tell = "shadow"     # where the offline gate cannot tell
    shadow_hours = 0              # with then = "ab": so long in shadow first
    coverage = 1.0                # share of sessions that takes part
    auto_promote = false          # true: promote what the A/B recommends to ship
    # max_rows, gate_share, unit, queries, outcomes, seed, limits: see docs/teach.md

exit status: 0 done, or what runs goes on; 3 nothing to learn yet; 4 a person must act (promote, or acknowledge a halted
experiment); 2 wrong input; 1 something failed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from router_ml.settings import load_settings
from router_ml.terminal import run_command
from training.command import add_engine_option, command_parser
from training.embeddings import vector_engine
from training.learning.job import Learning
from training.learning.policy import read_learn_policy

_INTERRUPTED = "interrupted; the next run goes on after the last finished step"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.learn", __doc__)
    cli.add_argument(
        "--policy", type=Path, metavar="F", help="policy file with a [learn] table (else ROUTER_ML_POLICY)"
    )
    cli.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    add_engine_option(cli, "vectors of kept texts are computed")
    cli.add_argument("--quiet", action="store_true", help="no progress")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; the exit codes stand in the module's docstring."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    return run_command("training.learn", lambda: _run(options), failure=1, interrupted=_INTERRUPTED)


def _run(options: argparse.Namespace) -> int:
    settings = load_settings()
    path = options.policy or (Path(settings.policy) if settings.policy.endswith(".toml") else None)
    quiet = options.quiet or not sys.stderr.isatty()
    policy, engine = read_learn_policy(path), vector_engine(options.engine)
    return Learning(settings, policy, dry=options.dry_run, quiet=quiet, engine=engine).run()


if __name__ == "__main__":
    sys.exit(main())
