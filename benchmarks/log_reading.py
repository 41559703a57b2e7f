"""Measure whether DuckDB would read logs faster than Python does, where a user waits for them.

    pip install duckdb
    python -m benchmarks.log_reading [--events N] [--rounds N] [--json]

Two jobs: the outcomes of a JSON Lines file (`training.fit --outcomes`), and the outcomes of the events that a gateway
recorded (`training.learn`, `router-ml events export`). DuckDB reads JSON Lines in both, which the events are exported
to: its reader of SQLite files is an extension to be downloaded. It checks no row, and of the events it joins outcomes
with the last feedback alone, so its figures are bounds from below. `objects` makes the `Outcome` objects that all
readers want of its columns.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from router_ml.decide.router import Router
from router_ml.events.connect import open_store
from router_ml.events.event import Event, FeedbackEvent, OutcomeEvent, decision_event
from router_ml.events.export import export_events, export_outcomes, outcomes
from router_ml.jsonl import read_outcomes
from router_ml.types import Outcome
from training.command import command_parser

AT_ONCE = 10_000  # events of one transaction
COLUMNS = "query_id, model, success, latency_s, prompt_tokens, output_tokens"
JOINED = """
select o.decision_id, o.model, coalesce(f.score, o.success), o.latency_s, o.prompt_tokens, o.output_tokens
from (select * from read_json('{path}', format = 'newline_delimited', columns = {{
    event: 'varchar', decision_id: 'varchar', model: 'varchar', success: 'double', latency_s: 'double',
    prompt_tokens: 'bigint', output_tokens: 'bigint'}}) where event = 'outcome') o
left join (select decision_id, last(score) as score from read_json('{path}', format = 'newline_delimited', columns = {{
    event: 'varchar', decision_id: 'varchar', score: 'double'}}) where event = 'feedback' group by decision_id) f
using (decision_id)
"""


def traffic(n: int) -> list[Event]:
    """Return a third of decisions, of outcomes and of feedback."""
    decision = Router.heuristic().decide("find a free hour with Dana and mail her the agenda")
    events: list[Event] = []
    for i in range(n // 3):
        one = replace(decision, decision_id=f"d{i:08}")
        events.append(decision_event(one, unit=f"s{i // 4}", at_s=1e9 + i))
        tokens: dict[str, Any] = {"prompt_tokens": 40 + i % 900, "output_tokens": i % 300}
        events.append(OutcomeEvent(one.decision_id, one.model, None, 2.0 + i % 7, **tokens, at_s=1e9 + i))
        events.append(FeedbackEvent(one.decision_id, "thumb", float(i % 3 > 0), at_s=1e9 + i + 60))
    return events


def contenders(folder: Path) -> dict[str, dict[str, Callable[[], Any]]]:
    """Return the ways to do each job, by the files in a folder."""
    import duckdb

    store = open_store(folder, read_only=True)
    file, log = folder / "outcomes.jsonl", folder / "events.jsonl"
    flat, joined = f"select {COLUMNS} from read_json('{file}')", JOINED.format(path=log)

    def objects(query: str) -> list[Outcome]:
        return [
            Outcome(row[0], row[1], row[2], row[3], prompt_tokens=row[4], output_tokens=row[5])
            for row in duckdb.sql(query).fetchall()
        ]

    return {
        "outcomes of a file": {
            "read_outcomes": lambda: len(read_outcomes(file)),
            "json.loads alone": lambda: len([json.loads(line) for line in file.open("rb")]),
            "DuckDB, arrays": lambda: len(duckdb.sql(flat).fetchnumpy()["model"]),
            "DuckDB, objects": lambda: len(objects(flat)),
        },
        "outcomes of events": {
            "outcomes(store)": lambda: len(list(outcomes(store))),
            "DuckDB, arrays": lambda: len(duckdb.sql(joined).fetchnumpy()["model"]),
            "DuckDB, objects": lambda: len(objects(joined)),
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    cli = command_parser("benchmarks.log_reading", __doc__)
    cli.add_argument("--events", type=int, default=200_000, metavar="N", help="events of the store (%(default)s)")
    cli.add_argument("--rounds", type=int, default=5, metavar="N", help="(%(default)s)")
    cli.add_argument("--json", action="store_true", help="last line of standard output: the figures as JSON")
    options = cli.parse_args(argv)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = open_store(folder)
        events = traffic(options.events)
        for first in range(0, len(events), AT_ONCE):
            store.append(events[first : first + AT_ONCE])
        began_s = time.process_time()
        export_events(store, folder / "events.jsonl")
        print(f"to export {len(events):,} events took {time.process_time() - began_s:.2f} s of processor")
        export_outcomes(store, folder / "outcomes.jsonl")
        store.close()
        for job, ways in contenders(folder).items():
            walls: dict[str, list[float]] = {name: [] for name in ways}
            cpus: dict[str, list[float]] = {name: [] for name in ways}
            counts = {}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    began, cpu = time.perf_counter(), time.process_time()
                    counts[name] = way()
                    walls[name].append(time.perf_counter() - began)
                    cpus[name].append(time.process_time() - cpu)
            figures[job] = {
                name: {"rows": counts[name], "s": median(walls[name]), "cpu_s": median(cpus[name])} for name in ways
            }
    for job, rows in figures.items():
        for name, row in rows.items():
            print(f"{job:20} {name:18} {row['rows']:8,.0f} rows {row['s']:7.2f} s {row['cpu_s']:7.2f} s of processor")
    if options.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
