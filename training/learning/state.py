"""What `training.learn` remembers between runs: the watermark, the job under way, the experiment that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError
from router_ml.files import atomic_write

FORMAT = 1
REMEMBERED = 50


@dataclass(frozen=True)
class LearnJob:
    """A challenger under way. Each step is written down once it is done, so that a killed run goes on after it."""

    bundle: str  # its name in the registry
    until_seq: int
    judged: int
    sha256: str
    verdict: str = ""  # of the gate
    why: str = ""
    registered: bool = False


@dataclass(frozen=True)
class Running:
    """The experiment in which a challenger is tried."""

    bundle: str
    experiment: str
    mode: str  # "shadow" or "live"
    started_s: float


@dataclass(frozen=True)
class LearnState:
    """Everything that is remembered."""

    watermark: int = 0  # events up to this place in the store were learned from
    job: LearnJob | None = None
    running: Running | None = None
    history: tuple[Mapping[str, Any], ...] = ()  # the latest last

    def noted(self, **row: Any) -> LearnState:
        """Return the state with one more row of history."""
        return replace(self, history=(*self.history, row)[-REMEMBERED:])


def read_state(path: Path) -> LearnState:
    """Return the state in a file; an absent file is the beginning. Raises `StoreError` if it cannot be understood."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        job, running = row.get("job"), row.get("running")
        if row["format"] > FORMAT:
            raise ValueError(f"it has format {row['format']}")
        return LearnState(
            int(row["watermark"]),
            None if job is None else LearnJob(**job),
            None if running is None else Running(**running),
            tuple(row.get("history", ())),
        )
    except FileNotFoundError:
        return LearnState()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it to learn from all events anew") from error


def write_state(path: Path, state: LearnState) -> None:
    """Replace the state in one step."""
    atomic_write(path, json.dumps({"format": FORMAT, **asdict(state)}, indent=1) + "\n")
