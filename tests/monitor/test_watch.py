"""The parts work together as the settings describe them."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from router_ml.events.connect import open_store
from router_ml.events.event import AlertEvent, AttemptEvent, ExperimentEvent, OutcomeEvent
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import FOLDER
from router_ml.experiments.state import ExperimentState
from router_ml.monitor.watch import open_watch
from router_ml.settings import Settings
from tests.timing import PATIENCE_S, until


class Told:
    def __init__(self) -> None:
        self.alerts: list[AlertEvent] = []

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        self.alerts.extend(alerts)


def test_traffic_is_stored_summed_up_watched_and_judged(tmp_path: Path) -> None:
    told = Told()
    ExperimentState(tmp_path / FOLDER).start(
        Experiment("e1", Variant("old"), Variant("new", policy="fast"), time.time() - 1, unit="request")
    )
    watch = open_watch(Settings(state_dir=tmp_path), channels=(told,))
    watch.start()
    draw = random.Random(1)
    watch.recorder.record(AttemptEvent("d", "m", 0, ok=False, breaker="open"))
    for i in range(150):
        given = watch.rollout.assign(f"s{i}")
        if given is None:
            break
        wrong = given.arm == "challenger" and draw.random() < 0.8
        watch.recorder.record(
            OutcomeEvent(
                f"d{i}", "m", float(not wrong), 1.0, experiment="e1", variant=given.variant.name, unit=given.unit
            )
        )
    until(lambda: watch.rollout.assign("x") is None and told.alerts)
    text = watch.prometheus()
    assert 'router_ml_alert_firing{rule="breaker_open",subject="m"} 1' in text
    assert "router_ml_events_dropped_total 0" in text
    assert watch.writer.flush(PATIENCE_S)
    watch.close()
    assert told.alerts[0].rule == "breaker_open"
    kinds = {type(s.event) for s in open_store(tmp_path).read()}
    assert kinds == {AttemptEvent, OutcomeEvent, AlertEvent, ExperimentEvent}


def test_a_state_folder_that_cannot_be_made_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watch = open_watch(Settings(state_dir=tmp_path / "file" / "state"))
    watch.start()
    assert watch.rollout.assign("x") is None
    watch.recorder.record(OutcomeEvent("d", "m", 1.0, 1.0))
    assert watch.metrics.snapshot().total.requests == 1
    watch.close()


@pytest.mark.parametrize("broken", ["mysql://host/db", "postgresql://nobody@127.0.0.1:1/none"])
def test_a_store_that_is_away_does_no_harm(tmp_path: Path, broken: str) -> None:
    watch = open_watch(Settings(state_dir=tmp_path, events=broken))
    watch.recorder.record(OutcomeEvent("d", "m", 1.0, 1.0))
    assert not watch.writer.flush(0.3)
    until(lambda: watch.writer.state().pending == 1)  # the thread may still have to take what the flush waits for
