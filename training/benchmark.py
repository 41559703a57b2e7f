"""Measure models of an Ollama host on your queries: how often each succeeds, and how long it takes.

    python -m training.benchmark --models A B --suite --out out.jsonl              the shipped tool-calling cases
    python -m training.benchmark --models A B --queries Q.jsonl --out out.jsonl    your own queries
    python -m training.benchmark ... --resume                                      continue after an interruption
    python -m training.benchmark ... --rescore                                     score the stored answers again

Each row of --out is an outcome that `python -m training.fit --queries Q.jsonl --outcomes out.jsonl` learns from. Beside
it are out.answers.jsonl (every answer, so that rows can be scored again without asking again) and out.run.json (how
the figures were measured; a run is continued with the same settings only).

What a query row may say about a good answer, besides `text`, `context` and `label`; without any of it a row is timed
and its success stays null:

    "expected_calls"  [{"name", "arguments": {...}, "optional": [...]}]: the calls to make, in any order; [] for none.
                      Types are coerced ("5" and 5, "true" and true, "Dana" and ["Dana"]), texts compared without case,
                      spacing and a final full stop, dates and times as such, lists in any order. `optional` names
                      arguments that may be left out; one without a value in `arguments` may be anything. A value may be
                      {"$any": [values]}, {"$contains": text or [texts]}, {"$regex": expression}, {"$present": true}.
                      Any other argument that is given and not empty is wrong.
    "allowed_calls"   ["name"]: further tools that may be called, such as a look-up that not every model needs.
    "tool_results"    [{"name", "arguments"?: {...}, "result"}]: what the tools return. With it the conversation
                      continues until the model calls nothing more, and the calls of all turns count; a call that
                      matches no entry gets {"status": "ok"}. Without it there is one turn.
    "expected"        checks of the final text, all of which must pass: "exact", "contains" (a text or a list, all),
                      "contains_any", "regex", "json_schema", "asks" (true: it asks a clarifying question), "judge" (a
                      criterion as text, decided by --judge MODEL once all models are measured).
    "context"         besides its usual keys: "now", the user's date and time, given to the model.

Success is 1 where everything expected was met, else 0. A model's failure (an error, no answer in time) counts as 0,
with the reason in `error`; a host that cannot be reached ends the run, which --resume continues.

A benchmark waits for its host, so one process asking one query at a time is right for one host, and measures it without
other load. --engine ray asks from the nodes of a Ray cluster (RAY_ADDRESS), one query at a time on each: with
--host http://127.0.0.1:11434 each node asks its own Ollama, so that N equal nodes need 1/N of the time. Every node's
host must have the same models. Rows, their order and --resume are the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from router_ml.catalogue import load_catalogue
from router_ml.engines.engine import LOCAL, Engine, open_engine
from router_ml.errors import InputError
from router_ml.hosts.names import normal
from router_ml.jsonl import query_row, read_outcomes, read_queries, write_rows
from router_ml.settings import base_url, load_settings, without_credentials
from router_ml.terminal import run_command
from router_ml.types import Query
from training.command import add_engine_option, command_parser
from training.corpus import data_dir, data_sha256
from training.measuring.benchmark_run import Benchmark, BenchmarkPlan
from training.measuring.benchmark_tracking import record
from training.measuring.comparison import Comparison, compare, comparison_table
from training.measuring.conversation import SYSTEM, ChatSettings
from training.measuring.expected_answer import expected_answer
from training.tracking.tracker import BENCHMARKS

log = logging.getLogger(__name__)

SUITE = "tool_calling.jsonl"


def suite_path() -> Path:
    """Return the path of the shipped tool-calling cases."""
    return data_dir() / SUITE


def prepare(options: argparse.Namespace) -> tuple[BenchmarkPlan, Path]:
    """Return the plan of a run and the file of its queries. Raises `InputError`."""
    paths = [path for path in (options.queries, suite_path() if options.suite else None) if path is not None]
    if not paths:
        raise InputError("no queries: give --queries FILE, or --suite for the shipped tool-calling cases")
    queries = [query for path in paths for query in read_queries(path)]
    repeated = len(queries) - len({query.id for query in queries})
    if repeated:
        raise InputError(f"{repeated} ids are in both --queries and the suite; rename those in {options.queries}")
    queries = queries[: options.limit]
    if not queries:
        raise InputError(f"{paths[0]} has no rows; give a file of queries")
    _check_expectations(queries, options.judge)
    source = paths[0]
    continues = options.resume or options.rescore or options.retry_errors
    if not continues and options.out.exists() and options.out.stat().st_size:
        raise InputError(f"{options.out} has rows already; continue with --resume, or choose another --out")
    if len(paths) > 1:
        source = options.out.with_suffix(".queries.jsonl")
        write_rows(source, map(query_row, queries))
    models = {normal(name): name for name in reversed(options.models)}
    plan = BenchmarkPlan(
        models=tuple(name for name in options.models if models.get(normal(name)) == name),
        queries=tuple(queries),
        out=options.out,
        host=base_url(options.host, "--host") if options.host else load_settings().ollama_host,
        settings=_settings(options),
        catalogue=load_catalogue(options.catalogue),
        judge=options.judge,
        warm_up=not options.no_warm_up,
        retry_errors=options.retry_errors,
        rescore=options.rescore,
        arms=options.arms,
        timeout_s=options.timeout,
    )
    if options.judge and normal(options.judge) in models:
        log.warning("%s judges its own answers, too, which models tend to favour", options.judge)
    return plan, source


def _check_expectations(queries: Sequence[Query], judge: str | None) -> None:
    expected = [expected_answer(query) for query in queries]
    unscored = sum(not e.scored for e in expected)
    judged = sum(e.judged is not None for e in expected)
    if unscored:
        log.warning("%d of %d queries expect nothing of an answer: they are timed, not scored", unscored, len(queries))
    if judged and judge is None:
        log.warning("%d queries need a judge and stay unscored; --rescore --judge MODEL can score them later", judged)


def _settings(options: argparse.Namespace) -> ChatSettings:
    values = {
        "temperature": options.temperature,
        "seed": options.seed,
        "num_predict": options.max_tokens,
        "num_ctx": options.num_ctx,
    }
    return ChatSettings(
        system=_system(options.system),
        options={key: value for key, value in values.items() if value is not None},
        think=None if options.think is None else options.think == "on",
        keep_alive=options.keep_alive,
        max_turns=options.max_turns,
    )


def _system(path: Path | None) -> str:
    try:
        return SYSTEM if path is None else path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the system prompt {path}: {error}") from error


def measuring_engine(name: str, workers: int | None = None) -> Engine | None:
    """Return the engine whose workers ask, by default one on each node; None for one in this process, which is what
    `local` is. Raises `InputError` for an unknown or missing one."""
    return None if name == LOCAL and (workers or 1) == 1 else open_engine(name, workers, waiting=True)


def run(plan: BenchmarkPlan, engine: Engine | None = None, *, quiet: bool = False) -> Comparison:
    """Measure what is missing and compare everything."""
    benchmark = Benchmark(plan, engine, quiet=quiet)
    benchmark.run()
    return compare(plan.queries, plan.models, read_outcomes(plan.out), benchmark.warm_up_s)


def report(options: argparse.Namespace, plan: BenchmarkPlan, source: Path, comparison: Comparison) -> None:
    """Print the comparison and log it to MLflow."""
    print(comparison_table(comparison))
    print(f"\noutcomes: {plan.out}\nlearn:    python -m training.fit --queries {source} --outcomes {plan.out}")
    if not options.no_mlflow:
        params: dict[str, Any] = {
            "host": without_credentials(plan.host),
            "queries": len(plan.queries),
            "data_sha256": data_sha256(plan.queries),
            "think": plan.settings.think,
            "judge": plan.judge,
            **plan.settings.options,
        }
        record(options.experiment, comparison, read_outcomes(plan.out), params)
    if options.json:
        print(json.dumps({"outcomes": str(plan.out), "queries": str(source), "models": comparison.as_dict()}))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.benchmark", __doc__)
    what = cli.add_argument_group("what")
    what.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="as Ollama calls them")
    what.add_argument("--queries", type=Path, metavar="F", help="queries, JSON Lines")
    what.add_argument("--suite", action="store_true", help="the shipped tool-calling cases (as well)")
    what.add_argument("--limit", type=_at_least(1), metavar="N", help="the first N queries only")
    what.add_argument("--out", type=Path, required=True, metavar="F", help="where the outcomes go, JSON Lines")
    what.add_argument("--host", metavar="URL", help="the Ollama host (OLLAMA_HOST, or http://127.0.0.1:11434)")
    what.add_argument("--judge", metavar="MODEL", help="the model that decides on `expected.judge`")
    what.add_argument("--catalogue", type=Path, metavar="F", help="models with prices, TOML (the packaged ones)")
    again = cli.add_argument_group("continuing a run")
    again.add_argument("--resume", action="store_true", help="continue with the rows of --out")
    again.add_argument("--retry-errors", action="store_true", help="ask again where a row has an error")
    again.add_argument("--rescore", action="store_true", help="score all stored answers again, then continue")
    how = cli.add_argument_group("how models are asked")
    how.add_argument("--system", type=Path, metavar="F", help="a file with the system prompt (a built-in one)")
    ways = how.add_mutually_exclusive_group()
    ways.add_argument("--think", choices=("on", "off"), help="thinking, where a model can (default: the model's own)")
    ways.add_argument(
        "--arms",
        action="store_true",
        help="ask a model that can think in each way of its [[model.arm]] tables, else without and with thinking; rows "
        "say how in 'think'",
    )
    how.add_argument("--temperature", type=float, default=0.0, help="(%(default)s)")
    how.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    how.add_argument("--max-tokens", type=_at_least(1), default=2048, help="maximum tokens of an answer (%(default)s)")
    how.add_argument("--num-ctx", type=_at_least(1), help="context length (default: the host's)")
    how.add_argument("--max-turns", type=_at_least(1), default=8, help="turns with tool results (%(default)s)")
    how.add_argument("--keep-alive", default="10m", help="how long a model stays in memory (%(default)s)")
    how.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for one turn (%(default)s)")
    how.add_argument("--no-warm-up", action="store_true", help="include loading in the first row of each model")
    where = cli.add_argument_group("where from")
    add_engine_option(where, "hosts are asked from")
    where.add_argument(
        "--workers",
        type=_at_least(1),
        metavar="N",
        help="requests at once (1; with ray one for each node); more than a host runs at once lengthen its latencies",
    )
    out = cli.add_argument_group("reporting")
    out.add_argument("--experiment", default=BENCHMARKS, help="MLflow experiment (%(default)s)")
    out.add_argument("--no-mlflow", action="store_true", help="do not log to MLflow")
    out.add_argument("--json", action="store_true", help="last line of standard output: the comparison as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress bar")
    return cli


def _at_least(low: int) -> Any:
    def whole(text: str) -> int:
        value = int(text)
        if value < low:
            raise ValueError(text)
        return value

    whole.__name__ = f"whole number of {low} or more"
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; exit code 2 for bad input, 1 if the host fails, 130 if it was interrupted."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    interrupted = f"interrupted; what was measured is in {options.out}, and --resume continues with it"
    return run_command("training.benchmark", lambda: _run(options), failure=1, interrupted=interrupted)


def _run(options: argparse.Namespace) -> None:
    engine = measuring_engine(options.engine, options.workers)
    plan, source = prepare(options)
    report(options, plan, source, run(plan, engine, quiet=options.quiet))


if __name__ == "__main__":
    sys.exit(main())
