"""Rows that name their writer: whole writers are held out where several are large."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router_ml.types import LABELS, Query
from training.complexity.complexity_fit import (
    MIN_WRITER_ROWS,
    Labelled,
    _sharpness_split,
    _units,
    labelled_rows,
)
from training.splits import grouped_folds

LARGE: dict[str | None, int] = {
    "ann": MIN_WRITER_ROWS + 20, "ben": MIN_WRITER_ROWS, "cy": MIN_WRITER_ROWS + 50, "di": MIN_WRITER_ROWS + 9,
    "eva": MIN_WRITER_ROWS + 3, None: 200,
}  # fmt: skip


def _rows(writers: Mapping[str | None, int]) -> Labelled:
    """Return so many rows of each writer; each writer's first row shares a group with every other writer's first."""
    return labelled_rows(
        [
            Query(
                id=f"{writer}-{i}",
                text=f"query {i} of {writer}",
                label=LABELS[i % 4],
                group="common" if i == 0 else f"{writer}-g{i}",
                extra={"writer": writer} if writer else {},
            )
            for writer, n in writers.items()
            for i in range(n)
        ]
    )


def test_the_smallest_large_writer_and_a_few_groups_are_held_out_to_judge_confidence() -> None:
    seen, held = _sharpness_split(_rows(LARGE))
    assert held.writers.count("ben") == MIN_WRITER_ROWS
    assert set(seen.writers) == {"ann", "cy", "di", "eva", ""}
    others = sum(LARGE.values()) - MIN_WRITER_ROWS
    assert 0.02 * others < len(held.labels) - MIN_WRITER_ROWS < 0.1 * others


def test_no_row_to_train_on_shares_a_group_with_one_held_out() -> None:
    seen, held = _sharpness_split(_rows(LARGE))
    assert "common" in held.groups  # a group of every writer
    assert not set(seen.groups) & set(held.groups)


def test_a_large_writer_is_never_in_two_folds() -> None:
    rows = _rows(LARGE)
    for seen, held in grouped_folds(_units(rows), 2, seed=0):
        named = [{rows.writers[i] for i in side} - {""} for side in (seen, held)]
        assert not named[0] & named[1]


@pytest.mark.parametrize(
    "writers",
    [
        {"ann": MIN_WRITER_ROWS, "ben": MIN_WRITER_ROWS, None: 400},  # few large writers
        {"ann": 900},  # all rows by one hand: its groups still make folds
        {None: 900},
    ],
)
def test_groups_are_held_out_where_few_writers_are_large(writers: dict[str | None, int]) -> None:
    rows = _rows(writers)
    seen, held = _sharpness_split(rows)
    assert 0 < len(held.labels) < 0.1 * len(rows.labels)
    assert not set(seen.groups) & set(held.groups)
    assert _units(rows) == rows.groups
