"""The part of `router-ml route` that decides a whole file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from router_ml.batch.decider import BatchJob
from router_ml.batch.output import Progress, rejects_path
from router_ml.batch.run import run_batch
from router_ml.bundles.registry import active_bundle
from router_ml.cli.choosing import chosen_context, chosen_policy
from router_ml.decide.selection.policy import resolve_policy
from router_ml.engines.engine import ENGINES, LOCAL, open_engine
from router_ml.errors import BundleMissing, InputError
from router_ml.settings import Settings, load_settings
from router_ml.terminal import end_progress, show_progress

SKIP, STOP = "skip", "stop"


def add_batch_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of a batch."""
    group = verb.add_argument_group("batch")
    group.add_argument("--batch", type=Path, metavar="IN", help="file to decide: JSON Lines, or Parquet (.parquet)")
    group.add_argument("--out", type=Path, help="file of the decisions, in the order of IN; .parquet for Parquet")
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=LOCAL,
        help="this machine, or a Ray cluster (RAY_ADDRESS names it, else Ray starts here; extra 'ray')",
    )
    group.add_argument(
        "--workers",
        type=_count,
        metavar="N",
        help="processes, each with an encoder (one a core; with ray one a CPU of the cluster, and no more)",
    )
    group.add_argument(
        "--bad-rows", choices=(SKIP, STOP), default=SKIP, help="write them to OUT.rejects.jsonl, or stop at the first"
    )
    group.add_argument("--restart", action="store_true", help="begin anew, and replace OUT")
    group.add_argument("--no-candidates", action="store_true", help="leave 'ranked' and 'excluded' out of the rows")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, found {text!r}")
    return int(text)


def route_batch(options: argparse.Namespace) -> int:
    """Decide a file; exit status 1 where rows could not be read. Raises as `run_batch` does."""
    if options.batch is None or options.out is None or options.query:
        raise InputError("give --batch IN and --out OUT together, and no query")
    settings = load_settings()
    policy, context = resolve_policy(chosen_policy(options, settings)), chosen_context(options)
    job = BatchJob(str(options.batch), _bundle(options, settings), policy, context, not options.no_candidates)
    began_s, began_rows = time.monotonic(), -1

    def rate(done: Progress) -> float:
        return (done.n_decided - began_rows) / max(time.monotonic() - began_s, 1e-9)

    def report(done: Progress, share: float) -> None:
        nonlocal began_s, began_rows
        if began_rows < 0:  # the first chunk waits for the workers to load the bundle
            began_s, began_rows = time.monotonic(), done.n_decided
        show_progress("deciding", share, f"{share:.0%} {done.n_decided:,} decided, {rate(done):,.0f} a second")

    try:
        done = run_batch(
            job,
            options.out,
            open_engine(options.engine, options.workers),
            restart=options.restart,
            stop_at_bad_row=options.bad_rows == STOP,
            report=report,
        )
    finally:
        end_progress()
    models = ", ".join(f"{name} {n / done.n_decided:.0%}" for name, n in done.models.most_common())
    print(f"{done.n_decided:,} decided ({models or 'none'}), {rate(done):,.0f} a second: {options.out}")
    if done.degraded:
        print(f"router-ml: not all was learned: {done.degraded}", file=sys.stderr)
    if done.n_rejected:
        where = rejects_path(options.out)
        print(f"router-ml: {done.n_rejected:,} rows could not be read; {where} names them", file=sys.stderr)
    return 1 if done.n_rejected else 0


def _bundle(options: argparse.Namespace, settings: Settings) -> Path | None:
    """Return the folder of the bundle, frozen for all workers; None, and a word, where there is none."""
    if options.bundle is not None:
        return Path(options.bundle)
    try:
        return active_bundle(settings)
    except BundleMissing as error:
        print(f"router-ml: deciding by rules: {error}", file=sys.stderr)
        return None
