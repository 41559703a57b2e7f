"""Decides the chunks of a file, with one router and one encoder thread for each process."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from router_ml.arm import arm_key
from router_ml.batch.chunk import Chunk, DecidedChunk
from router_ml.catalogue import load_catalogue
from router_ml.context import parse_context
from router_ml.decide.query import ContextLike, read_query
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy
from router_ml.errors import ContextError, QueryError, RowError
from router_ml.jsonl import decode_object
from router_ml.settings import load_settings
from router_ml.types import Decision

ID_BYTES = 8  # as many as a decision's random id has
LONGEST_REJECT = 10_000  # bytes of a bad row that are repeated in the file of rejects


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What is decided and how; a value that every process gets."""

    source: str  # named in errors
    bundle: Path | None  # None: by rules
    policy: Policy
    context: Mapping[str, Any] | None = None  # of rows without one
    candidates: bool = True  # whether rows list all candidates

    def decider(self) -> ChunkDecider:
        """Return what decides, with its bundle loaded. Raises `BundleError` or `EncoderError`."""
        return ChunkDecider(self)


class Asked(NamedTuple):
    """A row that can be decided."""

    line: int
    id: str
    query: Any
    context: ContextLike


class ChunkDecider:
    """Decides chunk after chunk. The same chunk always gets the same rows, whichever process decides it.

    Ids and the draws of an exploring policy are derived from the rows, not random."""

    def __init__(self, job: BatchJob) -> None:
        self._job, self._random = job, random.Random(0)
        settings = load_settings()
        options: dict[str, Any] = {"new_id": str, "draw": lambda: self._random.random()}
        self._router = (
            Router.heuristic(load_catalogue(settings.catalogue), **options)
            if job.bundle is None
            else Router.load(job.bundle, settings=settings, encoder_workers=1, **options)
        )

    def __call__(self, chunk: Chunk) -> DecidedChunk:
        """Return the decisions of a chunk."""
        asked: list[Asked] = []
        errors: list[RowError] = []
        for line, raw in enumerate(chunk.lines, start=chunk.first_line):
            if raw.strip():
                try:
                    asked.append(self._read(line, raw))
                except RowError as error:
                    errors.append(error)
        seed = hashlib.blake2b(b"".join(chunk.lines), digest_size=ID_BYTES, salt=b"batch").digest()
        self._random.seed(seed + chunk.first_line.to_bytes(8, "big"))
        made = self._router.decide_many([row.query for row in asked], [row.context for row in asked], self._job.policy)
        return DecidedChunk(
            chunk.end,
            b"".join(self._row(row, decision, seed) for row, decision in zip(asked, made, strict=True)),
            b"".join(_reject(error, chunk.lines[error.line - chunk.first_line]) for error in errors),
            Counter(arm_key(decision.model, decision.think) for decision in made),
            len(errors),
            errors[0] if errors else None,
            next((decision.reason for decision in made if decision.degraded), ""),
        )

    def _read(self, line: int, raw: bytes) -> Asked:
        row = decode_object(self._job.source, line, raw)
        name = row.get("id")
        if not isinstance(name, str | int | None) or isinstance(name, bool):
            raise RowError(self._job.source, line, "id", f"must be a string, found {type(name).__name__}")
        field = "text" if "messages" not in row else "messages"
        query, given = row.get(field), row.get("context")
        if field == "text" and not isinstance(query, str):
            raise RowError(self._job.source, line, "text", "must be a string: the query")
        try:
            context: ContextLike = parse_context(self._job.context if given is None else given)
            if field == "messages":
                query, context = read_query(query, context)
        except ContextError as error:
            where = f"context.{error.field}" if error.field else "context"
            raise RowError(self._job.source, line, where, str(error)) from error
        except QueryError as error:
            raise RowError(self._job.source, line, "messages", str(error)) from error
        return Asked(line, str(line) if name is None else str(name), query, context)

    def _row(self, asked: Asked, decision: Decision, seed: bytes) -> bytes:
        key = hashlib.blake2b(f"{asked.line} {asked.id} {decision.bundle} {decision.policy}".encode(), key=seed)
        values = decision.as_dict() | {"decision_id": key.hexdigest()[: 2 * ID_BYTES]}
        if not self._job.candidates:
            del values["ranked"], values["excluded"]
        return json.dumps({"id": asked.id, "line": asked.line, **values}, ensure_ascii=False).encode() + b"\n"


def _reject(error: RowError, raw: bytes) -> bytes:
    row = raw[:LONGEST_REJECT].decode("utf-8", "replace").rstrip("\r\n")
    values = {"file": error.file, "line": error.line, "field": error.field, "problem": error.problem, "row": row}
    return json.dumps(values).encode() + b"\n"
