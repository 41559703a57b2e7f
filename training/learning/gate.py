"""The offline gate: what logged traffic says of a challenger before anybody is served by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from router_ml.decide.features.extractor import Features
from router_ml.errors import InputError
from training.offpolicy.challengers import judge_bundle
from training.offpolicy.gate import Word

__all__ = ["Gate", "GateVerdict", "Word", "offpolicy_gate"]


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
    """Judge a challenger by off-policy evaluation; where there is nothing to evaluate it cannot tell."""
    try:
        found = judge_bundle(bundle, rows, features, seed=seed)
    except InputError as error:  # no decision of the window has candidates, say
        return GateVerdict("cannot tell", str(error), {})
    return GateVerdict(found.word, " ".join(found.reasons), found.numbers)
