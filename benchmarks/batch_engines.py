"""Measure decisions per second of a batch on each engine, beside `select_models` on the same queries.

    python -m benchmarks.batch_engines [--bundle D] [--queries N] [--rounds N] [--engines local ray] [--json]

Contenders take turns, so that other load slows them alike; figures are medians, and the ratio is to `select_models`.
`total` counts the start of the workers, `steady` is from the first chunk on. A batch reads its rows from a file and
writes every decision with its candidates, which `select_models` does not. The files of all engines must be the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

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

SLICE = 10_000  # queries of one call of `select_models`, so that memory holds no more decisions
SELECT = "select_models"


def select_rate(router: Router, texts: Sequence[str]) -> tuple[float, float]:
    """Return decisions a second of `select_models`, twice: it has no workers to start."""
    began = time.perf_counter()
    for first in range(0, len(texts), SLICE):
        select_models(texts[first : first + SLICE], router=router)
    rate = len(texts) / (time.perf_counter() - began)
    return rate, rate


def batch_rate(job: BatchJob, out: Path, engine: str, workers: int | None) -> tuple[float, float]:
    """Return decisions a second of a batch: of the whole, and from the first chunk on."""
    first: list[tuple[float, int]] = []

    def report(done: Progress, share: float) -> None:
        if not first:
            first.append((time.perf_counter(), done.n_decided))

    began = time.perf_counter()
    done = run_batch(job, out, open_engine(engine, workers), restart=True, report=report)
    ended = time.perf_counter()
    at, n = first[0]
    return done.n_decided / (ended - began), (done.n_decided - n) / max(ended - at, 1e-9)


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
    """Print the figures; exit status 1 if two engines decided differently."""
    options = parser().parse_args(argv)
    bundle = options.bundle or active_bundle(load_settings())
    router, texts = Router.load(bundle), mixed_texts(options.queries)
    select_models(texts[:64], router=router)
    rates: dict[str, list[tuple[float, float]]] = {SELECT: [], **{name: [] for name in options.engines}}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "queries.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        job = BatchJob(str(source), bundle, resolve_policy("balanced"))
        files = {name: Path(folder) / f"{name}.jsonl" for name in options.engines}
        for number in range(options.rounds):
            rates[SELECT].append(select_rate(router, texts))
            for name, out in files.items():
                rates[name].append(batch_rate(job, out, name, options.workers))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        if len({out.read_bytes() for out in files.values()}) != 1:
            raise RouterError("the engines decided differently")
    rows = {
        name: {
            "total_per_s": median(total for total, _ in found),
            "steady_per_s": median(steady for _, steady in found),
            "total_ratio": median(t / s for (t, _), (s, _) in zip(found, rates[SELECT], strict=True)),
            "steady_ratio": median(t / s for (_, t), (s, _) in zip(found, rates[SELECT], strict=True)),
        }
        for name, found in rates.items()
    }
    for name, row in rows.items():
        print(
            f"{name:14} {row['total_per_s']:8,.0f} a second, {row['total_ratio']:.2f} of {SELECT}; "
            f"steady {row['steady_per_s']:8,.0f}, {row['steady_ratio']:.2f}"
        )
    if options.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
