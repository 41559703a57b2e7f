"""Measures models of an Ollama host on queries of yours: how often each succeeds, and how long it takes.

    python -m training.benchmark --models A B --suite --out out.jsonl              the shipped tool-calling cases
    python -m training.benchmark --models A B --queries Q.jsonl --out out.jsonl    your own queries
    python -m training.benchmark ... --resume                                      go on after a kill
    python -m training.benchmark ... --rescore                                     score the kept answers again

Each row of --out is an outcome that `python -m training.fit --queries Q.jsonl --outcomes out.jsonl` learns from. Beside
it lie out.answers.jsonl (every answer, so that rows can be scored again without asking again) and out.run.json (how
the figures were measured; a run never goes on in another way than it began).

What a query row may say about a good answer, besides `text`, `context` and `label`; without any of it a row is timed
and its success stays null:

    "expected_calls"  [{"name", "arguments": {...}, "optional": [...]}]: the calls to make, in any order; [] for none.
                      Types are coerced ("5" and 5, "true" and true, "Dana" and ["Dana"]), texts compared without case,
                      spacing and a final full stop, dates and times as such, lists in any order. `optional` names
                      arguments that may be left out; one without a value in `arguments` may be anything. A value may be
                      {"$any": [values]}, {"$contains": text or [texts]}, {"$regex": expression}, {"$present": true}.
                      Any other argument that is given and not empty is wrong.
    "allowed_calls"   ["name"]: tools that may be called besides, such as a look-up that not every model needs.
    "tool_results"    [{"name", "arguments"?: {...}, "result"}]: what the tools give back. With it the conversation goes
                      on until the model calls nothing more, and the calls of all turns count; a call that no entry
                      fits gets {"status": "ok"}. Without it there is one turn.
    "expected"        checks of the final text, all of which must pass: "exact", "contains" (a text or a list, all),
                      "contains_any", "regex", "json_schema", "asks" (true: it asks the user back), "judge" (a criterion
                      in words, decided by --judge MODEL once all models are measured).
    "context"         besides its usual keys: "now", the user's date and time, told to the model.

Success is 1 where everything expected was met, else 0. A model's failure (an error, no answer in time) counts as 0
and its reason stands in `error`; a host that cannot be reached ends the run, which --resume continues.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ollama

from router_ml.catalogue import load_catalogue
from router_ml.errors import InputError
from router_ml.hosts.names import normal
from router_ml.jsonl import query_row, read_outcomes, read_queries, write_rows
from router_ml.settings import base_url, load_settings, without_credentials
from router_ml.terminal import run_command
from router_ml.types import Query
from training.corpus import data_dir, data_sha256
from training.measuring.comparison import Comparison, compare, comparison_table
from training.measuring.conversation import SYSTEM, Manner
from training.measuring.expectation import expectation
from training.measuring.record import record
from training.measuring.run import Benchmark, Plan

log = logging.getLogger(__name__)

SUITE = "tool_calling.jsonl"


def suite_path() -> Path:
    """The shipped tool-calling cases."""
    return data_dir() / SUITE


def prepare(options: argparse.Namespace) -> tuple[Plan, Path]:
    """The plan of a run and the file its queries can be read from. Raises `InputError`."""
    paths = [path for path in (options.queries, suite_path() if options.suite else None) if path is not None]
    if not paths:
        raise InputError("nothing to ask: give --queries FILE, or --suite for the shipped tool-calling cases")
    queries = [query for path in paths for query in read_queries(path)]
    repeated = len(queries) - len({query.id for query in queries})
    if repeated:
        raise InputError(f"{repeated} ids stand in both --queries and the suite; rename those in {options.queries}")
    queries = queries[: options.limit]
    if not queries:
        raise InputError(f"{paths[0]} has no rows")
    _check_expectations(queries, options.judge)
    source = paths[0]
    continues = options.resume or options.rescore or options.retry_errors
    if not continues and options.out.exists() and options.out.stat().st_size:
        raise InputError(f"{options.out} has rows already; --resume goes on with them, or choose another --out")
    if len(paths) > 1:
        source = options.out.with_suffix(".queries.jsonl")
        write_rows(source, map(query_row, queries))
    models = {normal(name): name for name in reversed(options.models)}
    plan = Plan(
        models=tuple(name for name in options.models if models.get(normal(name)) == name),
        queries=tuple(queries),
        out=options.out,
        host=base_url(options.host, "--host") if options.host else load_settings().ollama_host,
        manner=_manner(options),
        catalogue=load_catalogue(options.catalogue),
        judge=options.judge,
        warm_up=not options.no_warm_up,
        retry_errors=options.retry_errors,
        rescore=options.rescore,
    )
    if options.judge and normal(options.judge) in models:
        log.warning("%s judges itself too; models are known to favour their own answers", options.judge)
    return plan, source


def _check_expectations(queries: Sequence[Query], judge: str | None) -> None:
    expected = [expectation(query) for query in queries]
    unscored = sum(not e.scored for e in expected)
    judged = sum(e.judged is not None for e in expected)
    if unscored:
        log.warning("%d of %d queries say nothing of a good answer: they are timed, not scored", unscored, len(queries))
    if judged and judge is None:
        log.warning("%d queries need a judge and stay unscored; --rescore --judge MODEL can score them later", judged)


def _manner(options: argparse.Namespace) -> Manner:
    values = {
        "temperature": options.temperature,
        "seed": options.seed,
        "num_predict": options.max_tokens,
        "num_ctx": options.num_ctx,
    }
    return Manner(
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


def run(plan: Plan, *, timeout_s: float, quiet: bool = False) -> Comparison:
    """Measure what is missing and compare all of it."""
    client = ollama.Client(host=plan.host, timeout=timeout_s)
    benchmark = Benchmark(plan, client, quiet=quiet)
    benchmark.run()
    return compare(plan.queries, plan.models, read_outcomes(plan.out), benchmark.warm_up_s)


def report(options: argparse.Namespace, plan: Plan, source: Path, comparison: Comparison) -> None:
    """Print the comparison and log it."""
    print(comparison_table(comparison))
    print(f"\noutcomes: {plan.out}\nlearn:    python -m training.fit --queries {source} --outcomes {plan.out}")
    if not options.no_mlflow:
        params: dict[str, Any] = {
            "host": without_credentials(plan.host),
            "queries": len(plan.queries),
            "data_sha256": data_sha256(plan.queries),
            "think": plan.manner.think,
            "judge": plan.judge,
            **plan.manner.options,
        }
        record(options.experiment, comparison, read_outcomes(plan.out), params)
    if options.json:
        print(json.dumps({"outcomes": str(plan.out), "queries": str(source), "models": comparison.as_dict()}))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    text = (__doc__ or "").split("\n", 1)
    cli = argparse.ArgumentParser(
        prog="python -m training.benchmark",
        description=text[0],
        epilog=text[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = cli.add_argument_group("what")
    what.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="as Ollama calls them")
    what.add_argument("--queries", type=Path, metavar="F", help="queries, JSON Lines")
    what.add_argument("--suite", action="store_true", help="the shipped tool-calling cases (as well)")
    what.add_argument("--limit", type=_at_least(1), metavar="N", help="the first N queries only")
    what.add_argument("--out", type=Path, required=True, metavar="F", help="where the outcomes go, JSON Lines")
    what.add_argument("--host", metavar="URL", help="the Ollama host (OLLAMA_HOST, or http://127.0.0.1:11434)")
    what.add_argument("--judge", metavar="MODEL", help="the model that decides on `expected.judge`")
    what.add_argument("--catalogue", type=Path, metavar="F", help="models with prices, TOML (the packaged ones)")
    again = cli.add_argument_group("going on")
    again.add_argument("--resume", action="store_true", help="go on with the rows of --out")
    again.add_argument("--retry-errors", action="store_true", help="ask again where a row has an error")
    again.add_argument("--rescore", action="store_true", help="score all kept answers again, then go on")
    how = cli.add_argument_group("how models are asked")
    how.add_argument("--system", type=Path, metavar="F", help="a file with the system prompt (a built-in one)")
    how.add_argument("--think", choices=("on", "off"), help="thinking, where a model can (as it does by itself)")
    how.add_argument("--temperature", type=float, default=0.0, help="(%(default)s)")
    how.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    how.add_argument("--max-tokens", type=_at_least(1), default=2048, help="the longest answer (%(default)s)")
    how.add_argument("--num-ctx", type=_at_least(1), help="context length (the host's own)")
    how.add_argument("--max-turns", type=_at_least(1), default=8, help="turns with tool results (%(default)s)")
    how.add_argument("--keep-alive", default="10m", help="how long a model stays in memory (%(default)s)")
    how.add_argument("--timeout", type=float, default=300.0, metavar="S", help="seconds for one turn (%(default)s)")
    how.add_argument("--no-warm-up", action="store_true", help="let the first row of a model pay for its loading")
    out = cli.add_argument_group("reporting")
    out.add_argument("--experiment", default="router_ml benchmarks", help="MLflow experiment (%(default)s)")
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
    """Run a benchmark; exit code 2 for bad input, 1 where the host fails, 130 where it was interrupted."""
    options = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopped = f"stopped; what was measured is in {options.out}, and --resume goes on with it"
    return run_command("training.benchmark", lambda: _run(options), failure=1, interrupted=stopped)


def _run(options: argparse.Namespace) -> None:
    plan, source = prepare(options)
    comparison = run(plan, timeout_s=options.timeout, quiet=options.quiet)
    report(options, plan, source, comparison)


if __name__ == "__main__":
    sys.exit(main())
