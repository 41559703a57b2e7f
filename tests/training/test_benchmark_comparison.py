"""The figures of a comparison, and the time a run will take."""

from __future__ import annotations

import pytest

from router_ml.types import Outcome, Query
from training.measuring.comparison import compare, comparison_table, model_figures, wilson
from training.measuring.progress import Pace, duration


def test_wilsons_interval_as_published() -> None:
    # Newcombe 1998, Statistics in Medicine 17: 857, table I, method 3 (score without continuity correction).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def outcome(query: str, model: str, success: float | None, latency_s: float | None, **more: object) -> Outcome:
    return Outcome(query, model, success, latency_s, **more)  # type: ignore[arg-type]


def test_figures_of_one_model() -> None:
    rows = [outcome(f"q{i}", "m", float(i % 2), float(i), output_tokens=10 * i, eval_s=0.5) for i in range(1, 22)]
    rows.append(outcome("e", "m", 0.0, None, error="server_error: out of memory"))
    rows.append(outcome("u", "m", None, 11.0))
    figures = model_figures(rows)
    assert (figures.rows, figures.scored, figures.errors) == (23, 22, 1)
    assert figures.success == pytest.approx(11 / 22)
    assert figures.latency_p50_s == 11.0
    assert figures.tokens_per_s == pytest.approx(2310 / 10.5)  # all tokens over all time, not the mean of rates


def test_nothing_measured_is_said_as_such() -> None:
    figures = model_figures([])
    assert (figures.success, figures.latency_p50_s, figures.tokens_per_s) == (None, None, None)


def test_models_side_by_side_and_label_by_label() -> None:
    queries = [Query("a", "x", label="simple"), Query("b", "y", label="complex")]
    outcomes = [
        outcome("a", "small", 1.0, 0.5),
        outcome("b", "small", 0.0, 0.7),
        outcome("a", "large", 1.0, 3.0),
        outcome("b", "large", 1.0, 4.0),
        outcome("z", "large", 0.0, 99.0),  # of another query
        outcome("a", "other", 0.0, 99.0),  # of another model
    ]
    comparison = compare(queries, ["small", "large"], outcomes, {"large": 6.54})
    assert comparison.overall["large"].success == 1.0
    assert comparison.by_label["small"]["complex"].success == 0.0
    assert list(comparison.by_label["small"]) == ["simple", "complex"]
    lines = comparison_table(comparison).splitlines()
    cells = [line.split() for line in lines if not line.startswith("-")]
    assert [row[:3] for row in cells[1:]] == [
        ["small", "all", "50.0%"],
        ["large", "all", "100.0%"],
        ["small", "simple", "100.0%"],
        ["large", "simple", "100.0%"],
        ["small", "complex", "0.0%"],
        ["large", "complex", "100.0%"],
    ]
    assert cells[2][-1] == "6.5"
    assert comparison.as_dict()["large"]["warm_up_s"] == 6.54


def test_the_time_left_knows_that_models_differ() -> None:
    pace = Pace()
    assert pace.remaining_s({"fast": 10, "slow": 10}) is None
    for _ in range(5):
        pace.add("fast", 2.0)
    assert pace.remaining_s({"fast": 5, "slow": 10}) == pytest.approx(30)  # the slow one still unknown
    pace.add("slow", 12.0)
    assert pace.remaining_s({"fast": 0, "slow": 9}) == pytest.approx(108)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (41.6, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
