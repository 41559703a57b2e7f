"""Measure decisions per second of a batch on each engine, beside `select_models` on the same queries.

    python -m benchmarks.batch_engines [--bundle D] [--queries N] [--rounds N] [--engines local ray] [--json]

Contenders take turns, each in a process of its own, and figures are medians; ratios are to `select_models` in the same
round. `total` counts the start of the workers, `steady` is from the first chunk on, and `cpu` is decisions per second
of processor time of all processes from the first chunk on: other load changes it least. A batch reads its rows from a
file and writes every decision with its candidates, which `select_models` does not. The engines' files must be the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from benchmarks.speed import mixed_texts
from router_ml import select_models
from router_ml.batch.decider import BatchJob
from router_ml.batch.output import Progress
from router_ml.batch.run import run_batch
from router_ml.bundles.registry import active_bundle
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import resolve_policy
from router_ml.engines.engine import ENGINES, open_engine
from router_ml.errors import RouterError
from router_ml.settings import load_settings
from training.command import command_parser

SLICE = 1_000  # queries of one call of `select_models`, so that memory holds no more decisions
SELECT = "select_models"


class Rates(NamedTuple):
    """Decisions per second."""

    total: float
    steady: float
    cpu: float


class Mark(NamedTuple):
    """How far a contender was at some time."""

    at_s: float
    cpu_s: float
    rows: int


def _mark(rows: int) -> Mark:
    """Return the time, and the processor time of this process and all below it."""
    spent = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent += times.user + times.system
    return Mark(time.perf_counter(), spent, rows)


def _rates(began_s: float, marks: Sequence[Mark]) -> Rates:
    first, last = marks[0], marks[-1]
    rows = last.rows - first.rows
    return Rates(
        last.rows / (time.perf_counter() - began_s),
        rows / (last.at_s - first.at_s),
        rows / (last.cpu_s - first.cpu_s),
    )


def select_rates(bundle: Path, source: Path) -> Rates:
    """Decide the rows of a file by `select_models`; loading is not counted."""
    router = Router.load(bundle)
    texts = [json.loads(line)["text"] for line in source.read_text(encoding="utf-8").splitlines()]
    began_s, marks = time.perf_counter(), []
    for first in range(0, len(texts), SLICE):
        marks.append(_mark(first))
        select_models(texts[first : first + SLICE], router=router)
    return _rates(began_s, [*marks, _mark(len(texts))])


def batch_rates(bundle: Path, source: Path, out: Path, engine: str, workers: int | None) -> Rates:
    """Decide the rows of a file by a batch."""
    marks: list[Mark] = []
    job = BatchJob(str(source), bundle, resolve_policy("balanced"))
    began_s = time.perf_counter()
    opened = open_engine(engine, workers)

    def report(done: Progress, share: float) -> None:
        marks.append(_mark(done.n_decided))

    run_batch(job, out, opened, restart=True, report=report)
    return _rates(began_s, marks)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("benchmarks.batch_engines", __doc__)
    cli.add_argument("--bundle", type=Path, metavar="D", help="bundle that decides (the active one)")
    cli.add_argument("--queries", type=int, default=20_000, metavar="N", help="queries of a round (%(default)s)")
    cli.add_argument("--rounds", type=int, default=3, metavar="N", help="(%(default)s)")
    cli.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="(all)")
    cli.add_argument("--workers", type=int, metavar="N", help="processes of an engine (one a core)")
    cli.add_argument("--json", action="store_true", help="last line of standard output: the figures as JSON")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures. Raises `RouterError` if two engines decided differently."""
    options = parser().parse_args(argv)
    bundle: Path = options.bundle or active_bundle(load_settings())
    found: dict[str, list[Rates]] = {SELECT: [], **{name: [] for name in options.engines}}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "queries.jsonl"
        lines = (json.dumps({"text": text}) + "\n" for text in mixed_texts(options.queries))
        source.write_text("".join(lines), encoding="utf-8")
        files = {name: Path(folder) / f"{name}.jsonl" for name in options.engines}
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as alone:
            for number in range(options.rounds):
                found[SELECT].append(alone.submit(select_rates, bundle, source).result())
                for name, out in files.items():
                    out.unlink(missing_ok=True)
                    found[name].append(alone.submit(batch_rates, bundle, source, out, name, options.workers).result())
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        if len({out.read_bytes() for out in files.values()}) > 1:
            raise RouterError("the engines decided differently")
    figures = {
        name: {
            unit: {
                "per_s": median(getattr(rates, unit) for rates in mine),
                "ratio": median(
                    getattr(rates, unit) / getattr(other, unit)
                    for rates, other in zip(mine, found[SELECT], strict=True)
                ),
            }
            for unit in Rates._fields
        }
        for name, mine in found.items()
    }
    for name, row in figures.items():
        print(f"{name:14}", *(f"{unit} {x['per_s']:7,.0f}/s {x['ratio']:5.2f}" for unit, x in row.items()), sep="  ")
    if options.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
