"""Check the labelled corpus, and find it.

    python -m training.corpus            check the shipped corpus
    python -m training.corpus FILE       check another file of queries

Checks: schema, repeated texts, label balance, groups whole within a split, near-duplicates across splits, frames.
"""

from __future__ import annotations

import collections
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router_ml.decide.features.composition import compose
from router_ml.errors import InputError
from router_ml.jsonl import query_row, read_queries
from router_ml.settings import CHECKOUT
from router_ml.terminal import run_command
from router_ml.types import LABELS, Query
from training.command import command_parser
from training.splits import group_of, is_test

CORPUS = "queries.jsonl"
MAX_FRAME_USES = 12  # rows that may open with the same four words
BALANCE = (0.20, 0.30)  # each label's share
NEAR_DUPLICATE = 0.95  # cosine above which two rows may not be on both sides of a split


def data_dir() -> Path:
    """Return `data/` of a source checkout, else the copy inside the installed package."""
    checkout = CHECKOUT / "data"
    return checkout if (checkout / CORPUS).is_file() else Path(__file__).resolve().parent / "data"


def corpus_path() -> Path:
    """Return the path of the shipped corpus."""
    return data_dir() / CORPUS


def data_sha256(queries: Sequence[Query], *others: Path | None) -> str:
    """Return the SHA-256 of the rows of the queries in order of their ids, and of further files."""
    digest = hashlib.sha256()
    for query in sorted(queries, key=lambda q: q.id):
        digest.update(json.dumps(query_row(query), sort_keys=True, ensure_ascii=False).encode())
    for path in others:
        if path is not None:
            digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class CorpusProblem:
    """Something that is wrong with a corpus."""

    check: str
    detail: str


def check_corpus(queries: Sequence[Query]) -> list[CorpusProblem]:
    """Return all problems but near-duplicates, which need vectors."""
    return [*_repeated(queries), *_balance(queries), *_frames(queries)]


def whole_text(query: Query) -> str:
    """Return all text of a row: what the encoder reads, and the names of the offered tools, which it does not."""
    names = ", ".join(tool.name for tool in query.context.tools[:8])
    return compose(query.text, query.context) + (f" [SEP] tools: {names}" if names else "")


def near_duplicates(queries: Sequence[Query], vectors: NDArray[np.float32]) -> list[CorpusProblem]:
    """Return pairs across the test split whose vectors (unit rows) have a cosine above `NEAR_DUPLICATE`.

    Rows in other scripts are passed over: to the English encoder their unknown word pieces are all alike."""
    readable = np.array([_is_latin(whole_text(query)) for query in queries])
    queries, vectors = [q for q, known in zip(queries, readable, strict=True) if known], vectors[readable]
    test = np.array([is_test(group_of(query)) for query in queries])
    close = vectors[test] @ vectors[~test].T > NEAR_DUPLICATE
    inside, outside = np.flatnonzero(test), np.flatnonzero(~test)
    return [
        CorpusProblem("near-duplicate across splits", f"{queries[inside[i]].id} and {queries[outside[j]].id}")
        for i, j in zip(*np.nonzero(close), strict=True)
    ]


def _is_latin(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    return sum(char < "\u0250" for char in letters) >= 0.9 * len(letters)


def _repeated(queries: Sequence[Query]) -> list[CorpusProblem]:
    seen: dict[str, str] = {}
    problems = []
    for query in queries:
        text = whole_text(query).lower()
        first = seen.setdefault(text, query.id)
        if first != query.id:
            problems.append(CorpusProblem("repeated text", f"{first} and {query.id}: {query.text[:60]!r}"))
    return problems


def _balance(queries: Sequence[Query]) -> list[CorpusProblem]:
    counts = collections.Counter(query.label for query in queries if query.label)
    total = max(sum(counts.values()), 1)
    low, high = BALANCE
    return [
        CorpusProblem("label balance", f"{label}: {counts[label] / total:.0%}, allowed {low:.0%} to {high:.0%}")
        for label in LABELS
        if not low <= counts[label] / total <= high
    ]


def _frames(queries: Sequence[Query]) -> list[CorpusProblem]:
    openings = collections.Counter(" ".join(query.text.lower().split()[:4]) for query in queries)
    return [
        CorpusProblem("frame", f"{count} rows begin with {opening!r}")
        for opening, count in openings.items()
        if count > MAX_FRAME_USES and len(opening.split()) == 4
    ]


def describe(queries: Sequence[Query]) -> str:
    """Return rows per label, share with context, languages and domains, as text."""
    counts = collections.Counter(query.label for query in queries)
    context = sum(query.raw_context is not None for query in queries) / len(queries)
    languages = collections.Counter(str(query.extra.get("language", "en")) for query in queries)
    foreign = 1 - languages["en"] / len(queries)
    labels = ", ".join(f"{label} {counts[label]}" for label in LABELS)
    return (
        f"{len(queries)} rows: {labels}; {context:.0%} with context; "
        f"{foreign:.0%} in {len(languages) - 1} other languages; "
        f"{len({query.extra.get('domain') for query in queries})} domains"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Check a corpus; exit code 1 if something is wrong with it, 2 for a file that cannot be read."""
    parser = command_parser("training.corpus", __doc__)
    parser.add_argument("file", nargs="?", type=Path, default=corpus_path(), help="queries (default: the shipped ones)")
    parser.add_argument("--no-vectors", action="store_true", help="skip the near-duplicate check (no encoder needed)")
    options = parser.parse_args(argv)
    return run_command("training.corpus", lambda: _check(options.file, vectors=not options.no_vectors), failure=1)


def _check(path: Path, *, vectors: bool) -> int:
    queries = read_queries(path)
    if not queries:
        raise InputError(f"{path} holds no row; give a file of queries")
    problems = check_corpus(queries)
    if vectors:
        from training.embeddings import frozen_vectors

        problems += near_duplicates(queries, frozen_vectors([whole_text(query) for query in queries]))
    print(describe(queries))
    for problem in problems:
        print(f"{problem.check}: {problem.detail}")
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
