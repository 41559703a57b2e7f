"""The files that name the running experiment and record a halt. Every process reads them, few write.

Files and not the event store, because a rollback must hold when the database is read-only, and must be seen by all
processes within a second at the cost of two `stat` calls. They are readable by their owner only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from router_ml.errors import ExperimentError
from router_ml.experiments.experiment import Experiment, experiment_from, experiment_row
from router_ml.files import atomic_write
from router_ml.moved import renamed

ACTIVE = "active.json"
HALT = "latch.json"  # named so since the first version
RECORDS = "records"
FINISHED = "finished"

Signature: TypeAlias = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """An experiment was halted by its verdict; no unit is enrolled until a person acknowledges it."""

    experiment: str
    kind: str
    at_s: float
    reason: str
    record: str = ""  # name of the record's file


class ExperimentState:
    """The experiment files of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def signature(self) -> Signature:
        """Return a value that changes whenever one of the files does."""
        return tuple(_stamp(self.folder / name) for name in (ACTIVE, HALT))

    def active(self) -> Experiment | None:
        """Return the experiment that runs, or None. Raises `ExperimentError` if its file cannot be understood."""
        row = _read(self.folder / ACTIVE)
        return None if row is None else experiment_from(row)

    def halt(self) -> Halt | None:
        """Return the halt, or None. A file that cannot be read counts as a halt, to be safe."""
        try:
            row = _read(self.folder / HALT)
            return None if row is None else _halt_from(row)
        except (ExperimentError, KeyError, TypeError, ValueError):
            return Halt("unknown", "ROLLBACK", 0.0, f"{self.folder / HALT} cannot be read")

    latch = renamed("latch", "halt")

    def start(self, experiment: Experiment) -> None:
        """Begin an experiment. Raises `ExperimentError` if one runs or a halt was not acknowledged."""
        halt = self.halt()
        if halt is not None:
            raise ExperimentError(
                f"experiment {halt.experiment!r} was halted ({halt.kind}); "
                "see 'router-ml experiment report', then 'router-ml experiment clear'"
            )
        running = self.active()
        if running is not None:
            raise ExperimentError(f"experiment {running.id!r} runs already; stop it first")
        _write(self.folder / ACTIVE, experiment_row(experiment))

    def stop(self) -> Experiment:
        """End the running experiment and store its definition. Raises `ExperimentError` if none runs."""
        experiment = self.active()
        if experiment is None:
            raise ExperimentError("no experiment runs")
        self._retire(experiment)
        return experiment

    def clear(self) -> Halt:
        """Acknowledge a halt and remove it with its experiment. Raises `ExperimentError` if nothing is halted."""
        halt = self.halt()
        if halt is None:
            raise ExperimentError("no experiment is halted")
        try:
            experiment = self.active()
        except ExperimentError:
            (self.folder / ACTIVE).unlink(missing_ok=True)
            experiment = None
        if experiment is not None:  # first, so that no moment exists in which it runs without its halt
            self._retire(experiment)
        (self.folder / HALT).unlink(missing_ok=True)
        return halt

    def end(self, halt: Halt) -> None:
        """Write down that an experiment is halted. Raises `OSError` if the disk refuses."""
        _write(self.folder / HALT, asdict(halt))

    def keep_record(self, name: str, record: str) -> str:
        """Store the record of a verdict and return its file's name. Raises `OSError` if the disk refuses."""
        atomic_write(self.folder / RECORDS / f"{name}.json", record)
        return f"{name}.json"

    def record(self, name: str) -> str:
        """Return a stored record. Raises `ExperimentError` if there is none."""
        try:
            return (self.folder / RECORDS / Path(name).name).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ExperimentError(f"there is no record {name!r} in {self.folder / RECORDS}") from error

    def finished(self, experiment_id: str) -> Experiment:
        """Return the latest definition of an ended experiment. Raises `ExperimentError` if there is none."""
        row = _read(self.folder / FINISHED / f"{Path(experiment_id).name}.json")
        if row is None:
            raise ExperimentError(f"no experiment {experiment_id!r} is known in {self.folder}")
        return experiment_from(row)

    def _retire(self, experiment: Experiment) -> None:
        _write(self.folder / FINISHED / f"{experiment.id}.json", experiment_row(experiment))
        (self.folder / ACTIVE).unlink()


def _halt_from(row: Mapping[str, Any]) -> Halt:
    values = {name: row[name] for name in ("experiment", "kind", "reason", "record") if name in row}
    if not all(isinstance(value, str) for value in values.values()):
        raise ExperimentError("a halt's texts must be strings")
    return Halt(at_s=float(row["at_s"]), **values)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, Any] | None:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ExperimentError(f"{path} is not JSON: {error}; restore it or delete it") from error
    if not isinstance(row, dict):
        raise ExperimentError(f"{path} must hold a JSON object; restore it or delete it")
    return row


def _write(path: Path, row: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(row, indent=2, ensure_ascii=False))
