"""What MLflow shows of an experiment is what the store holds: nothing twice, nothing missing, whatever was killed."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.errors import StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import Event, ExperimentEvent, OutcomeEvent
from router_ml.experiments import mlflow as mlflow_sink
from router_ml.experiments.experiment import Arm, Experiment, Variant, experiment_row
from router_ml.experiments.mlflow import MlflowSync
from router_ml.experiments.report import analyses_of, difference_svg, report_html
from router_ml.experiments.rollout import request_of
from router_ml.experiments.trial import Trial

START_S = 1_700_000_000.0
WINDOWS = 6
EXPERIMENT = Experiment(
    "quick",
    Variant("old"),
    Variant("new", policy="fast"),
    START_S,
    unit="request",
    judgement_s=0.0,
    hypothesis="Faster and as good.",
)


def history(windows: int = WINDOWS, per_window: int = 40) -> list[Event]:
    """An experiment of several ten-minute windows, with an analysis after each."""
    draw = random.Random(8)
    events: list[Event] = [
        ExperimentEvent("quick", "started", {"experiment": experiment_row(EXPERIMENT)}, at_s=START_S)
    ]
    trial = Trial(EXPERIMENT)
    for window in range(windows):
        for i in range(per_window):
            at_s = START_S + 600 * window + 600 * i / per_window
            arm: Arm = "challenger" if draw.random() < 0.5 else "control"
            latency_s = draw.lognormvariate(0.5 if arm == "control" else 0.2, 0.5)
            name = f"{window}-{i}"
            event = OutcomeEvent(
                name, "m", float(draw.random() < 0.9), latency_s, output_tokens=20, eval_s=latency_s, cost_usd=0.0,
                experiment="quick", variant=EXPERIMENT.variant(arm).name, unit=name, at_s=at_s, event_id=name,
            )  # fmt: skip
            events.append(event)
            request = request_of(event, EXPERIMENT, None)
            assert request is not None
            trial.add(request)
        now_s = START_S + 600 * (window + 1) - 1
        detail = {"verdict": trial.analyse(now_s).as_dict()}
        events.append(ExperimentEvent("quick", "look", detail, at_s=now_s, event_id=f"look-{window}"))
    return events


class Place:
    """An event store and an MLflow store in one folder."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder, self.root = folder, folder / "mlruns"
        shutil.copytree(template, self.root)
        self.now_s = START_S + 600 * WINDOWS + 60

    def sync(self) -> MlflowSync:
        return MlflowSync(lambda: open_store(self.folder), root=self.root, clock=lambda: self.now_s)

    def metrics(self) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.root / "mlflow.db") as connection:
            return connection.execute(
                "SELECT tags.value, metrics.key, step, metrics.value FROM metrics JOIN tags USING (run_uuid) "
                "WHERE tags.key = 'ab.arm' ORDER BY 1, 2, 3"
            ).fetchall()

    def tags(self) -> dict[tuple[str, str], str]:
        with sqlite3.connect(self.root / "mlflow.db") as connection:
            return {
                (arm, key): value
                for arm, key, value in connection.execute(
                    "SELECT arm.value, tags.key, tags.value FROM tags JOIN tags AS arm USING (run_uuid) "
                    "WHERE arm.key = 'ab.arm'"
                )
            }


@pytest.fixture
def place(tmp_path: Path, mlflow_template: Path) -> Place:
    place = Place(tmp_path, mlflow_template)
    store = open_store(tmp_path)
    store.append(history())
    store.close()
    return place


def test_windows_become_metrics_that_agree_with_the_events(place: Place) -> None:
    report = place.sync().sync()
    assert (report.experiments, report.windows) == (1, WINDOWS)
    assert report.pages == ("#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART",)
    found = {(arm, key, step): value for arm, key, step, value in place.metrics()}
    assert len(found) == len(place.metrics()) == report.metrics
    for arm in ("control", "challenger"):
        name = EXPERIMENT.control.name if arm == "control" else EXPERIMENT.challenger.name
        mine = [e for e in history() if isinstance(e, OutcomeEvent) and e.variant == name]
        for step in range(WINDOWS):
            until_s = START_S + 600 * (step + 1)
            so_far = [e for e in mine if e.at_s < until_s]
            window = [e for e in so_far if e.at_s >= until_s - 600]
            assert found[arm, "ab/requests", step] == len(so_far)
            assert found[arm, "win/requests", step] == len(window)
            assert found[arm, "ab/latency_p95_s", step] == pytest.approx(
                np.quantile([e.latency_s for e in so_far], 0.95)
            )
            assert found[arm, "win/success_rate", step] == pytest.approx(np.mean([e.success for e in window]))
    verdicts = {key for arm, key, _ in found if key.startswith("verdict/")}
    assert verdicts == {
        f"verdict/{name}_{part}" for name in ("failure", "latency") for part in ("change", "low", "high")
    }
    assert not [key for arm, key, _ in found if arm == "control" and key.startswith("verdict/")]
    new_log, old_log = (
        np.mean([math.log(e.latency_s or 1) for e in history() if isinstance(e, OutcomeEvent) and e.variant == name])
        for name in ("new", "old")
    )
    assert found["challenger", "verdict/latency_change", WINDOWS - 1] == pytest.approx(math.exp(new_log - old_log) - 1)


def test_each_section_of_the_page_has_three_to_six_charts(place: Place) -> None:
    place.sync().sync()
    sections: dict[str, set[str]] = {}
    for _, key, _, _ in place.metrics():
        sections.setdefault(key.split("/")[0], set()).add(key)
    assert set(sections) == {"ab", "win", "verdict"}
    assert all(3 <= len(keys) <= 6 for keys in sections.values())


def test_runs_are_flat_and_told_apart_by_tags_colours_and_parameters(place: Place) -> None:
    place.sync().sync()
    tags = place.tags()
    assert tags["control", "ab.variant"] == "old"
    assert tags["challenger", "ab.variant"] == "new"
    assert tags["challenger", "ab.watermark"] == str(WINDOWS - 1)
    assert tags["control", "mlflow.runColor"] != tags["challenger", "mlflow.runColor"]
    assert tags["challenger", "mlflow.note.content"].startswith("HOLD: 'new' against 'old'")
    assert ("challenger", "mlflow.parentRunId") not in tags
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        rows = connection.execute("SELECT key, count(DISTINCT value) FROM params GROUP BY key").fetchall()
    assert [key for key, different in rows if different > 1] == ["policy"]


def test_a_second_pass_changes_nothing_and_a_later_one_goes_on(place: Place) -> None:
    place.now_s = START_S + 600 * 3 + 60
    first = place.sync().sync()
    before = place.metrics()
    assert first.windows == 3
    assert place.sync().sync().metrics == 0
    assert place.metrics() == before
    place.now_s = START_S + 600 * WINDOWS + 60
    assert place.sync().sync().windows == WINDOWS - 3


def test_a_window_waits_until_it_is_closed(place: Place) -> None:
    place.now_s = START_S + 599
    assert place.sync().sync().windows == 0
    place.now_s = START_S + 610  # events of its last seconds may still be on their way
    assert place.sync().sync().windows == 0


def test_an_ended_experiment_finishes_its_runs_and_says_why(place: Place) -> None:
    store = open_store(place.folder)
    verdict = dict(analyses_of([e for e in history() if isinstance(e, ExperimentEvent)])[-1].verdict)
    verdict |= {"kind": "ROLLBACK", "summary": "ROLLBACK: it was worse."}
    end_s = START_S + 600 * WINDOWS - 1
    store.append([ExperimentEvent("quick", "rolled_back", {"verdict": verdict}, at_s=end_s)])
    store.close()
    place.now_s = end_s + 1500
    place.sync().sync()
    assert place.tags()["challenger", "ab.verdict"] == "ROLLBACK"
    assert place.tags()["control", "mlflow.note.content"] == "ROLLBACK: it was worse."
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        assert connection.execute("SELECT DISTINCT status FROM runs").fetchall() == [("FINISHED",)]
    (page, _) = sorted(place.root.rglob("report.html"))
    assert "ROLLBACK: it was worse." in page.read_text()


def test_kill_nine_while_syncing_leaves_neither_gaps_nor_duplicates(place: Place, tmp_path: Path) -> None:
    whole = Place(tmp_path / "whole", place.root)
    whole.folder = place.folder
    whole.sync().sync()
    draw = random.Random(3)
    for _ in range(4):
        child = os.fork()
        if child == 0:
            place.sync().sync()
            os._exit(0)
        time.sleep(draw.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    place.sync().sync()
    assert place.metrics() == whole.metrics()
    with sqlite3.connect(place.root / "mlflow.db") as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)


def test_it_catches_up_after_mlflow_was_away(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = place.root.with_name("elsewhere")
    place.root.rename(hidden)
    place.root.write_text("not a folder")
    sync = place.sync()
    with pytest.raises(StoreError, match="MLflow"):
        sync.sync()
    place.root.unlink()
    hidden.rename(place.root)
    assert sync.sync().windows == WINDOWS


def test_a_light_install_is_told_what_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(root: Path | None = None) -> str:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(mlflow_sink, "open_tracking", missing)
    with pytest.raises(StoreError, match=r"pip install 'router-ml\[train\]'"):
        place.sync().sync()


def test_the_report_stands_alone_and_escapes_what_people_wrote() -> None:
    analyses = analyses_of([e for e in history() if isinstance(e, ExperimentEvent)])
    row = experiment_row(EXPERIMENT) | {"hypothesis": "<script>alert(1)</script>"}
    page = report_html(row, analyses)
    assert "<script>" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg") >= 3
    assert report_html(row, []).count("No interim analysis") == 1


def test_the_drawing_has_the_difference_inside_its_band() -> None:
    analyses = analyses_of([e for e in history() if isinstance(e, ExperimentEvent)])
    drawing = difference_svg("log_latency", analyses)
    line = drawing.split('<polyline points="')[1].split('"')[0].split()
    band = drawing.split('<polygon points="')[1].split('"')[0].split()
    n = len(line)
    for i, point in enumerate(line):
        x, y = map(float, point.split(","))
        low, high = band[i].split(","), band[2 * n - 1 - i].split(",")
        assert float(low[0]) == float(high[0]) == x
        assert float(high[1]) <= y <= float(low[1])  # down is larger
    assert difference_svg("log_latency", analyses[:1]) == ""


def test_each_difference_is_one_picture_with_its_band_and_bounds_are_possible(place: Place) -> None:
    place.sync().sync()
    pictures = sorted(path.name for path in place.root.rglob("*.svg"))
    assert {"failure.svg", "log_latency.svg"} <= set(pictures)
    (picture,) = place.root.rglob("difference/failure.svg")
    assert picture.read_text().count("<polygon") == picture.read_text().count("<polyline") == 1
    bounds = [value for _, key, _, value in place.metrics() if key in ("verdict/failure_low", "verdict/failure_high")]
    assert bounds
    assert all(-1.0 <= value <= 1.0 for value in bounds)


def test_bounds_of_an_earlier_version_are_clipped_to_what_is_possible() -> None:
    finding = {"metric": "failure", "difference": 0.5, "low": -1.4, "high": 2.4, "ratio": False}
    event = ExperimentEvent("e", "look", {"verdict": {"findings": [finding]}})
    (analysis,) = analyses_of([event])
    clipped = analysis.finding("failure")
    assert clipped is not None
    assert (clipped["low"], clipped["high"]) == (-1.0, 1.0)
