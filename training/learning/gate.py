"""The offline gate: what logged traffic says of a challenger before anybody is served by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from router_ml.decide.features.extractor import Features

Word: TypeAlias = Literal["better", "not worse", "worse", "cannot tell"]


@dataclass(frozen=True)
class GateVerdict:
    """The verdict, its reasons in plain words, and its numbers."""

    word: Word
    why: str
    numbers: Mapping[str, float]


class Gate(Protocol):
    """Judges a challenger on logged decisions that it did not learn from."""

    def __call__(
        self, bundle: Path, rows: Sequence[Mapping[str, Any]], features: Features, *, seed: int
    ) -> GateVerdict:
        """Judge the bundle in a folder; `rows` are those of `bandit_rows`, with the features of the same decisions."""
        ...


def offpolicy_gate(bundle: Path, rows: Sequence[Mapping[str, Any]], features: Features, *, seed: int) -> GateVerdict:
    """Judge a challenger by off-policy evaluation."""
    return GateVerdict("cannot tell", "no off-policy evaluation is installed", {})
