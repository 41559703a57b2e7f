"""The hand-written rules this project replaces: length and structure, keywords, multi-agent need, ambiguity.

They are the baseline of every report, and they decide when no bundle can be used.
"""

from __future__ import annotations

import numpy as np

from router_ml.decide.predictors.heads import Floats

# The rules read these columns of the surface table, by name, so that the table may grow.
READS = (
    "log_words", "domains", "cue_joiner", "cue_sequence", "cue_condition", "cue_comparison", "cue_plan",
    "cue_write", "cue_reference", "cue_question", "cue_greeting", "cue_time", "numbers", "commas", "has_history",
    "has_attachment", "short_without_history",
)  # fmt: skip

# Approximate probabilities: the rules are right about half of the time.
_SURE, _REST = 0.55, 0.15


class HeuristicComplexity:
    """Rules over surface features. `names` are the columns of the table it will be given."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._columns = {name: names.index(name) for name in READS}

    def __call__(self, embedding: Floats | None, table: Floats) -> Floats:
        """Return the probabilities (n, 4) of the levels, given surface features (n, k); embeddings are not read."""
        verdicts = np.array([self._verdict(row) for row in table])
        probabilities = np.full((len(table), 4), _REST, dtype=np.float32)
        probabilities[np.arange(len(table)), verdicts] = _SURE
        return probabilities

    def _verdict(self, row: Floats) -> int:
        """Return the index of the label in `schema.LABELS`."""
        value = {name: float(row[column]) for name, column in self._columns.items()}
        if _is_ambiguous(value):
            return 3
        if _is_complex(value):
            return 2
        return 1 if _is_moderate(value) else 0


def _is_ambiguous(value: dict[str, float]) -> bool:
    resolvable = value["has_history"] or value["has_attachment"]
    if resolvable or value["cue_greeting"] or value["cue_question"]:
        return False
    empty = value["domains"] == 0 and value["numbers"] == 0
    return bool((value["cue_reference"] and empty) or (value["short_without_history"] and empty))


def _is_complex(value: dict[str, float]) -> bool:
    several = value["domains"] >= 2 and (value["cue_joiner"] or value["cue_sequence"])
    dependent = value["cue_condition"] and value["log_words"] > 2.0
    return bool(value["domains"] >= 3 or several or dependent or value["cue_comparison"] >= 2 or value["cue_plan"] >= 2)


def _is_moderate(value: dict[str, float]) -> bool:
    details = value["numbers"] + value["cue_time"] + value["commas"] + value["cue_joiner"]
    return bool(value["cue_write"] or details >= 2 or value["log_words"] > 2.6)
