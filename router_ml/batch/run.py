"""One pass over a file: read chunks, decide them on an engine, write them in order."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from router_ml.batch.decider import BatchJob
from router_ml.batch.output import Progress, open_output
from router_ml.batch.source import open_source
from router_ml.engines.engine import Engine

SAVE_EVERY_S = 1.0  # what a killed run loses


def run_batch(
    job: BatchJob,
    out: Path,
    engine: Engine,
    *,
    restart: bool = False,
    stop_at_bad_row: bool = False,
    report: Callable[[Progress, float], None] = lambda progress, share: None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Decide the job's file into `out`, going on where an earlier run stopped; return what was done in all runs.

    `report` gets the progress and the share of the file that is done after each chunk. Raises `RowError` for a bad row
    with `stop_at_bad_row` (else it goes to `out`.rejects.jsonl), `InputError` for files that cannot be used,
    `BundleError` or `EncoderError` for the bundle, and `RouterError` if the engine fails. What was written stays, and
    the next call goes on from there."""
    source = open_source(Path(job.source))
    with open_output(out, _key(job), restart=restart) as output:
        saved_s = clock()
        for chunk in engine.map(job.decider, source.chunks(output.progress.place)):
            if stop_at_bad_row and chunk.error is not None:
                raise chunk.error
            output.write(chunk)
            if clock() - saved_s >= SAVE_EVERY_S:
                output.save()
                saved_s = clock()
            report(output.progress, output.progress.place.position / source.size)
        output.finish()
        return output.progress


def _key(job: BatchJob) -> Mapping[str, Any]:
    """Return what the output depends on, by the names of the options."""
    return {
        "batch": Path(job.source).name,
        "bundle": "rules" if job.bundle is None else job.bundle.resolve().name,
        "policy": f"{job.policy.name} {hashlib.sha256(repr(job.policy).encode()).hexdigest()[:8]}",
        "context": None if job.context is None else dict(job.context),
        "candidates": job.candidates,
    }
