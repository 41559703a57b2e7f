"""How a benchmark was run, stored beside its rows, so that figures measured in different ways are never mixed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from router_ml.errors import InputError
from router_ml.files import atomic_write
from router_ml.jsonl import query_row
from router_ml.settings import without_credentials
from router_ml.types import Query
from training.measuring.conversation import ChatSettings


class RunFile:
    """`<out>.run.json`: how models are asked, how many at once, their digests, the hashes of the queries, and the
    warm-up durations."""

    def __init__(self, path: Path, host: str, settings: ChatSettings, workers: int = 1) -> None:
        self.path = path
        self._now: dict[str, Any] = {
            "host": without_credentials(host),
            "manner": asdict(settings),
            "models": {},
            "queries": {},
            "warm_up": {},
            "judge": None,
            "workers": workers,
        }

    def agree(self, queries: Sequence[Query], digests: Mapping[str, str], judge: str | None, rescored: bool) -> None:
        """Check the settings against an earlier part of the run and store what is new.

        Another judge may decide only where all rows are scored again. Raises `InputError` naming the first
        difference."""
        before = self._read()
        now = self._now | {"models": dict(digests), "queries": {query.id: _digest(query) for query in queries}}
        now = json.loads(json.dumps(now))
        if before.get("host", now["host"]) != now["host"]:
            raise self._differs(f"host {before['host']}, not {now['host']}")
        if before and (earlier_workers := before.get("workers", 1)) != now["workers"]:
            raise self._differs(f"{earlier_workers} requests at once, not {now['workers']} (--workers)")
        for key, value in now["manner"].items():
            if before.get("manner", {}).get(key, value) != value:
                raise self._differs(f"{key} {before['manner'][key]!r:.80}, not {value!r:.80}")
        for part in ("models", "queries"):
            for name, digest in now[part].items():
                if before.get(part, {}).get(name, digest) != digest:
                    raise self._differs(f"another version of {part[:-1].replace('querie', 'query')} {name!r}")
            now[part] = before.get(part, {}) | now[part]
        earlier = before.get("judge")
        if judge and earlier and judge != earlier and not rescored:
            raise self._differs(f"judge {earlier}, not {judge} (--rescore judges all of them again)")
        self._now = now | {"warm_up": before.get("warm_up", {}), "judge": judge or earlier}
        self._write()

    def warmed(self, model: str, load_s: float) -> None:
        """Store how long a model took to load."""
        self._now["warm_up"][model] = round(load_s, 4)
        self._write()

    @property
    def warm_up_s(self) -> Mapping[str, float]:
        """Seconds each model took to be loaded, apart from its measured rows."""
        return dict(self._now["warm_up"])

    def _differs(self, what: str) -> InputError:
        return InputError(
            f"{self.path}: the earlier rows were measured with {what}; use the same settings, or another --out"
        )

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"cannot read {self.path} ({error}); choose another --out") from error

    def _write(self) -> None:
        try:
            atomic_write(self.path, json.dumps(self._now, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; choose another --out") from error


def _digest(query: Query) -> str:
    """Return a hash of what the model is asked; what is expected may change and be scored again."""
    row = query_row(query)
    asked = {key: row.get(key) for key in ("text", "context", "tool_results")}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
