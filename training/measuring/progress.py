"""Progress of a benchmark and an estimate of the time left, from the pace of each model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

_RECENT = 0.1  # weight of the latest row in a model's pace


class Pace:
    """Seconds per row of each model; a model not yet measured is assumed to take the average of the others."""

    def __init__(self) -> None:
        self._s_per_row: dict[str, float] = {}

    def add(self, model: str, seconds: float) -> None:
        """Record one row."""
        old = self._s_per_row.get(model)
        self._s_per_row[model] = seconds if old is None else old + _RECENT * (seconds - old)

    def remaining_s(self, rows: Mapping[str, int]) -> float | None:
        """Return seconds for so many further rows of each model; None before the first row."""
        if not self._s_per_row:
            return None
        average = sum(self._s_per_row.values()) / len(self._s_per_row)
        return sum(n * self._s_per_row.get(model, average) for model, n in rows.items())


def duration(seconds: float | None) -> str:
    """Return a duration as text: 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """A bar on standard error: rows done, the model at work, the time left."""

    def __init__(self, left: Mapping[str, int], done: int, *, quiet: bool = False) -> None:
        self._left = dict(left)
        self._pace = Pace()
        self._bar: Any = tqdm(
            total=done + sum(left.values()),
            initial=done,
            unit="row",
            disable=quiet,
            mininterval=0.2 if sys.stderr.isatty() else 30.0,
            bar_format="{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} in {elapsed}{postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def status(self, text: str) -> None:
        """Show a status beside the bar."""
        self._bar.set_postfix_str(text)

    def row(self, model: str, seconds: float) -> None:
        """Count one row of a model as done."""
        self._left[model] -= 1
        self._pace.add(model, seconds)
        self._bar.set_postfix_str(f"{model}, {duration(self.remaining_s)} left", refresh=False)
        self._bar.update()

    @property
    def remaining_s(self) -> float | None:
        """Estimated seconds left; None before the first row."""
        return self._pace.remaining_s(self._left)
