"""Convert public routing data on your disk into queries.jsonl and outcomes.jsonl.

    python -m training.datasets routellm FILE.csv [FILE.csv ...] --out DIR
    python -m training.datasets bfcl --questions DIR --scores DIR --results DIR [--models A B] --out DIR
    python -m training.datasets table FILE.csv|.jsonl|.parquet --out DIR

routellm   the evaluation CSVs of RouteLLM: a `prompt` column and one true/false column per model
bfcl       the Berkeley Function Calling Leaderboard: questions (gorilla_openfunctions_v1_test_*.json), results/MODEL
           (answers with latency and tokens) and score/MODEL (which ids failed)
table      RouterBench: one row per prompt, a score column per model and `MODEL|total_cost`; or
           LLMRouterBench and LLMRouter: one row per prompt and model (query, model_name, performance, cost, tokens)

Nothing is downloaded, and pickled tables are refused: convert those to CSV or Parquet first.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from router_ml.errors import InputError
from router_ml.jsonl import write_rows
from router_ml.terminal import run_command
from training.command import command_parser

Row = Mapping[str, Any]
Converted = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # query rows, outcome rows

_PROMPT = ("prompt", "query", "question", "text", "input", "origin_query")
_TASK = ("eval_name", "task_name", "task", "dataset", "category", "subject", "slice", "benchmark")
_IDENTITY = ("sample_id", "query_id", "prompt_id", "id")
_MODEL = ("model_name", "model", "llm")
_SCORE = ("performance", "score", "success", "correct", "accuracy")
_COST = ("cost_usd", "total_cost", "cost")
_LATENCY = {"latency_s": 1.0, "latency": 1.0, "response_time": 1.0, "latency_ms": 1e-3}
_PROMPT_TOKENS = ("prompt_tokens", "input_tokens", "query_tokens")
_OUTPUT_TOKENS = ("output_tokens", "completion_tokens", "response_tokens")
_NOT_MODELS = {"oracle_model_to_route_to", "answer", "answers", "choices", "target", "ground_truth", "label"}
_TRUE = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


def routellm(paths: Sequence[Path]) -> Converted:
    """Convert RouteLLM's CSVs: every column of true/false (or 0..1) beside the prompt is a model.

    Raises `InputError` if a file has no prompt or no such column."""
    queries: list[dict[str, Any]] = []
    outcomes: list[dict[str, Any]] = []
    for path in paths:
        rows = list(_read(path))
        prompt = _column(rows, _PROMPT, path, "prompt")
        models = [name for name in rows[0] if name != prompt and _is_score_column(rows, name)]
        if not models:
            raise InputError(f"{path}: no column of true/false beside {prompt!r}; is this a RouteLLM evaluation file?")
        for i, row in enumerate(rows):
            identity = f"{path.stem}_{i}"
            queries.append(_query(identity, str(row[prompt]), path.stem))
            outcomes += [_outcome(identity, model, _score(row[model], path, i)) for model in models]
    return queries, outcomes


def table(paths: Sequence[Path]) -> Converted:
    """Convert a wide table (RouterBench) or a long one (LLMRouterBench, LLMRouter), recognised by their columns.

    Raises `InputError` for columns that are neither."""
    queries: dict[str, dict[str, Any]] = {}
    outcomes: list[dict[str, Any]] = []
    for path in paths:
        rows = list(_read(path))
        prompt = _column(rows, _PROMPT, path, "prompt")
        is_long = _find(rows[0], _MODEL) is not None and _find(rows[0], _SCORE) is not None
        found, measured = (_long if is_long else _wide)(rows, prompt, path)
        queries |= found
        outcomes += measured
    return list(queries.values()), outcomes


def _wide(rows: list[Row], prompt: str, path: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    aside = {prompt, *_TASK, *_IDENTITY, *_NOT_MODELS}
    models = [name for name in rows[0] if "|" not in name and name not in aside and _is_score_column(rows, name)]
    if not models:
        raise InputError(
            f"{path}: found neither (model, score) columns nor a score column per model; "
            f"it has {', '.join(list(rows[0])[:8])}"
        )
    task, identity = _find(rows[0], _TASK), _find(rows[0], _IDENTITY)
    queries, outcomes = {}, []
    for i, row in enumerate(rows):
        name = str(row[identity]) if identity else f"{path.stem}_{i}"
        queries[name] = _query(name, _unlisted(row[prompt]), str(row[task]) if task else None)
        for model in models:
            if _known(row[model]):
                cost = row.get(f"{model}|total_cost")
                outcomes.append(_outcome(name, model, _score(row[model], path, i), cost_usd=_number(cost, path, i)))
    return queries, outcomes


def _long(rows: list[Row], prompt: str, path: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    first = rows[0]
    model, score = _column(rows, _MODEL, path, "model"), _column(rows, _SCORE, path, "score")
    task, identity = _find(first, _TASK), _find(first, _IDENTITY)
    cost, latency = _find(first, _COST), _find(first, tuple(_LATENCY))
    prompt_tokens, output_tokens = _find(first, _PROMPT_TOKENS), _find(first, _OUTPUT_TOKENS)
    queries: dict[str, dict[str, Any]] = {}
    outcomes: dict[tuple[str, str], dict[str, Any]] = {}
    for i, row in enumerate(rows):
        text = _unlisted(row[prompt])
        slice_name = str(row[task]) if task else None
        name = str(row[identity]) if identity else _digest(slice_name or "", text)
        queries.setdefault(name, _query(name, text, slice_name))
        if not _known(row[score]):
            continue
        seconds = _number(row[latency], path, i) if latency else None
        outcome = _outcome(
            name,
            str(row[model]),
            _score(row[score], path, i),
            latency_s=None if seconds is None or latency is None else seconds * _LATENCY[latency],
            cost_usd=_number(row[cost], path, i) if cost else None,
            prompt_tokens=_number(row[prompt_tokens], path, i) if prompt_tokens else None,
            output_tokens=_number(row[output_tokens], path, i) if output_tokens else None,
        )
        if outcomes.setdefault((name, str(row[model])), outcome) is not outcome:
            raise InputError(
                f"{path}: row {i + 1} repeats model {row[model]!r} for query {name!r}; delete one of the rows"
            )
    return queries, list(outcomes.values())


def bfcl(questions: Path, scores: Path, results: Path | None, models: Sequence[str] = ()) -> Converted:
    """Convert folders of the Berkeley Function Calling Leaderboard.

    A question counts as right unless the score file lists its id as failed.

    Raises `InputError` if a folder holds nothing of the kind, or a model lacks files."""
    asked = _bfcl_questions(questions)
    found = models or sorted(folder.name for folder in scores.iterdir() if folder.is_dir()) if scores.is_dir() else []
    if not found:
        raise InputError(f"{scores}: no folder per model; give the leaderboard's score folder")
    outcomes: list[dict[str, Any]] = []
    for model in found:
        judged = list(_bfcl_scores(scores / model, asked))
        if not judged:
            raise InputError(
                f"{scores / model}: no score file is of a category of --questions; give files of one version"
            )
        measured = _bfcl_results(results / model) if results is not None else {}
        outcomes += [_outcome(name, model, right, **measured.get(name, {})) for name, right in judged]
    used = {outcome["query_id"] for outcome in outcomes}
    return [query for query in asked.values() if query["id"] in used], outcomes


def _bfcl_questions(folder: Path) -> dict[str, dict[str, Any]]:
    queries: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*_test_*.json")) or sorted(folder.glob("BFCL_*.json")):
        category = _bfcl_category(path)
        for i, row in enumerate(_json_lines(path)):
            if "question" not in row:
                raise InputError(f"{path}: row {i + 1} has no 'question'; is this a leaderboard question file?")
            name = str(row.get("id", f"{category}_{i}"))
            tools = row.get("function", [])
            context = {"tools": tools if isinstance(tools, list) else [tools]}
            queries[name] = {**_query(name, _bfcl_text(row["question"]), category), "context": context}
    if not queries:
        raise InputError(
            f"{folder}: no leaderboard question file (gorilla_openfunctions_v1_test_*.json, BFCL_v3_*.json)"
        )
    return queries


def _bfcl_text(question: Any) -> str:
    """Return the user's words of a question, which is a text or turns of messages."""
    if isinstance(question, str):
        return question
    if isinstance(question, Mapping):
        return str(question.get("content", "")) if question.get("role", "user") == "user" else ""
    return "\n".join(text for part in question if (text := _bfcl_text(part)))


def _bfcl_category(path: Path) -> str:
    name = path.stem.removesuffix("_score").removesuffix("_result")
    for mark in ("_test_", "BFCL_v1_", "BFCL_v2_", "BFCL_v3_", "BFCL_v4_"):
        if mark in name:
            return name.split(mark, 1)[1]
    return name


def _bfcl_scores(folder: Path, asked: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for path in sorted(folder.rglob("*_score.json")):
        category = _bfcl_category(path)
        of_category = [name for name, query in asked.items() if query["slice"] == category]
        header, *failures = [*_json_lines(path)] or [{}]
        if not of_category or "accuracy" not in header:
            continue
        failed = {str(row["id"]) if not str(row["id"]).isdigit() else f"{category}_{row['id']}" for row in failures}
        expected = int(header.get("total_count", len(of_category)))
        if expected != len(of_category):
            raise InputError(
                f"{path} judges {expected} questions, but --questions has {len(of_category)} of {category!r}"
            )
        yield from ((name, 0.0 if name in failed else 1.0) for name in of_category)


def _bfcl_results(folder: Path) -> dict[str, dict[str, float | None]]:
    measured: dict[str, dict[str, float | None]] = {}
    for path in sorted(folder.rglob("*_result.json")):
        category = _bfcl_category(path)
        for i, row in enumerate(_json_lines(path)):
            identity = str(row.get("id", row.get("idx", i)))
            measured[identity if not identity.isdigit() else f"{category}_{identity}"] = {
                "latency_s": _total(row.get("latency")),
                "prompt_tokens": _total(row.get("input_token_count", row.get("input_tokens"))),
                "output_tokens": _total(row.get("output_token_count", row.get("output_tokens"))),
            }
    return measured


def _total(value: Any) -> float | None:
    """Return a number, or the sum of nested lists of numbers as multi-turn results have; None for anything else."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return None
    if isinstance(value, int | float):
        return float(value)
    parts = [_total(part) for part in value]
    return None if not parts or None in parts else float(sum(part for part in parts if part is not None))


def _read(path: Path) -> Iterable[Row]:
    rows: list[Row]
    try:
        if path.suffix == ".csv":
            csv.field_size_limit(1 << 26)
            with path.open(encoding="utf-8", newline="") as handle:
                rows = list(csv.DictReader(handle))
        elif path.suffix in (".json", ".jsonl"):
            rows = list(_json_lines(path))
        elif path.suffix == ".parquet":
            rows = _parquet(path)
        else:
            raise InputError(f"{path}: give a .csv, .json, .jsonl or .parquet file; other kinds may run code when read")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not rows:
        raise InputError(f"{path} holds no row; give a file with rows")
    return rows


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise InputError(f"{path}: reading Parquet needs pyarrow; run \"pip install 'router-ml[train]'\"") from error
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    """Yield the objects of JSON Lines, or of one JSON list."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines() if x]
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON or JSON Lines: {error}") from error
    if not all(isinstance(value, dict) for value in values):
        raise InputError(f"{path} holds values that are not objects; give JSON Lines with one object a line")
    yield from values


def _find(row: Row, names: Iterable[str]) -> str | None:
    lowered = {str(key).lower(): str(key) for key in row}
    return next((lowered[name] for name in names if name in lowered), None)


def _column(rows: list[Row], names: Sequence[str], path: Path, what: str) -> str:
    found = _find(rows[0], names)
    if found is None:
        raise InputError(
            f"{path}: no {what} column ({', '.join(names)}); it has {', '.join(map(str, list(rows[0])[:8]))}"
        )
    return found


def _is_score_column(rows: list[Row], name: str) -> bool:
    known = [row.get(name) for row in rows if _known(row.get(name))]
    return bool(known) and all(_parsed(value) is not None and 0 <= (_parsed(value) or 0) <= 1 for value in known)


def _known(value: Any) -> bool:
    return value is not None and value != "" and value == value


def _parsed(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            return _TRUE[text] if text in _TRUE else float(text)
        except ValueError:
            return None
    return None


def _score(value: Any, path: Path, row: int) -> float:
    score = _parsed(value)
    if score is None or not 0 <= score <= 1:
        raise InputError(f"{path}: row {row + 1}: a score must be true, false or between 0 and 1, got {value!r}")
    return score


def _number(value: Any, path: Path, row: int) -> float | None:
    if not _known(value):
        return None
    number = _parsed(value)
    if number is None or number < 0:
        raise InputError(f"{path}: row {row + 1}: must be a number, 0 or more, got {value!r}")
    return number


def _unlisted(text: Any) -> str:
    """Join the Python list of messages that RouterBench writes as a prompt; return anything else as it is."""
    if isinstance(text, str) and text.startswith("["):
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return "\n".join(parts)
    return str(text)


def _query(identity: str, text: str, slice_name: str | None) -> dict[str, Any]:
    return {
        "id": identity,
        "text": text,
        "context": None,
        "label": None,
        "group": _digest("", " ".join(text.lower().split())),  # the same words are never on both sides of a split
        "slice": slice_name,
    }


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


def _outcome(identity: str, model: str, success: float, **measured: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {"query_id": identity, "model": model, "success": success, "latency_s": None}
    return row | {key: value for key, value in measured.items() if value is not None}


def write(converted: Converted, out: Path) -> str:
    """Write both files and return a summary in one line. Raises `InputError` for repeated query ids."""
    queries, outcomes = converted
    repeated = [name for name, count in Counter(query["id"] for query in queries).items() if count > 1]
    if repeated:
        raise InputError(f"{len(repeated)} query ids are repeated ({repeated[0]!r}); give each file once")
    write_rows(out / "queries.jsonl", queries)
    write_rows(out / "outcomes.jsonl", outcomes)
    models = {outcome["model"] for outcome in outcomes}
    return f"{out}: {len(queries)} queries, {len(outcomes)} outcomes of {len(models)} models"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    cli = command_parser("training.datasets", __doc__)
    kinds = cli.add_subparsers(dest="kind", required=True)
    for name in ("routellm", "table"):
        kind = kinds.add_parser(name)
        kind.add_argument("files", type=Path, nargs="+", help="files to convert")
        kind.add_argument("--out", type=Path, required=True, help="folder of queries.jsonl and outcomes.jsonl")
    kind = kinds.add_parser("bfcl")
    kind.add_argument("--questions", type=Path, required=True, help="folder of the question files")
    kind.add_argument("--scores", type=Path, required=True, help="folder of score files, one folder per model")
    kind.add_argument("--results", type=Path, help="folder of result files, for latency and tokens")
    kind.add_argument("--models", nargs="*", default=[], help="some of the models (default: all)")
    kind.add_argument("--out", type=Path, required=True, help="folder of queries.jsonl and outcomes.jsonl")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; exit code 2 for input of an unknown form."""
    options = parser().parse_args(argv)
    convert: dict[str, Callable[[], Converted]] = {
        "routellm": lambda: routellm(options.files),
        "table": lambda: table(options.files),
        "bfcl": lambda: bfcl(options.questions, options.scores, options.results, options.models),
    }
    return run_command("training.datasets", lambda: print(write(convert[options.kind](), options.out)), failure=1)


if __name__ == "__main__":
    sys.exit(main())
