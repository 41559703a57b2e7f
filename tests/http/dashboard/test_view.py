"""The page's values agree with the live metrics, and hold no text of a user."""

from __future__ import annotations

import pytest

from router_ml.events.event import DecisionEvent, OutcomeEvent
from router_ml.http.dashboard.recent import RecentRequests
from router_ml.http.dashboard.view import experiment_values, model_rows, points, seconds_text, success_text
from router_ml.monitor.metrics import LiveMetrics
from tests.http.dashboard.sample import experiment_state, traffic


def test_the_busiest_model_comes_first_and_the_shares_add_up() -> None:
    _, metrics = traffic(160)
    rows = model_rows(metrics.snapshot())
    assert [row.requests for row in rows] == sorted((row.requests for row in rows), reverse=True)
    assert sum(row.requests for row in rows) == 160
    assert sum(row.share for row in rows) == pytest.approx(1.0)


def test_what_nobody_judged_is_not_called_right() -> None:
    metrics = LiveMetrics()
    metrics.record(OutcomeEvent("d", "m", None, 1.0))
    assert success_text(metrics.snapshot().total) == "not judged"


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (0.25, "250 ms"), (2.1, "2.1 s"), (12.5, "12.5 s")])
def test_seconds_are_shown_with_their_unit(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


def test_the_latest_requests_are_bounded_and_the_newest_first() -> None:
    recent, _ = traffic(500)
    latest = recent.latest(1000)
    assert len(latest) == 200
    assert latest[0].at_s > latest[-1].at_s


def test_no_text_of_a_request_is_held() -> None:
    recent = RecentRequests()
    recent.record(DecisionEvent("d", "m", "simple", "balanced", "b", 1.0, text="my secret plan"))
    recent.record(OutcomeEvent("d", "m", None, 1.0))
    assert "secret" not in repr(recent.latest())


def test_the_chart_has_one_series_a_model() -> None:
    recent, _ = traffic(50)
    values = points(recent.latest(50))
    assert len(values["latency_s"]) == len(values["models"]) == 3
    assert {len(series) for series in values["latency_s"]} == {50}
    assert sum(value is not None for series in values["latency_s"] for value in series) == 50


def test_an_experiment_shows_its_interval_within_the_picture() -> None:
    values = experiment_values(experiment_state())
    assert values is not None
    assert values["challenger"] == "policy fast"
    for finding in values["findings"]:
        for position in (finding.low, finding.difference, finding.high):
            assert position is None or -1.0 <= position <= 1.0
