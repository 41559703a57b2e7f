"""The verbs of a person who runs experiments: start, watch, stop, report, clear, and bring out what was recorded."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from router_ml.cli import alerts, events, experiment, metrics, sync
from router_ml.errors import ExperimentError, InputError, PolicyError, StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import AlertEvent, DecisionEvent, ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.writer import EventWriter
from router_ml.experiments.rollout import FOLDER, open_rollout
from router_ml.experiments.state import ExperimentState
from router_ml.jsonl import read_outcomes
from router_ml.types import Candidate, Quantiles

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.delenv("ROUTER_ML_EVENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


@pytest.fixture
def run(state: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()
    for module in (experiment, metrics, alerts, events, sync):
        module.register(verbs)

    def call(*words: str) -> tuple[int, str]:
        options = parser.parse_args(words)
        code = options.func(options)
        return code, capsys.readouterr().out

    return call


def serve(state: Path, requests: int, failing: float) -> None:
    """Some traffic through a rollout, recorded as a gateway does."""
    writer = EventWriter(lambda: open_store(state))
    rollout = open_rollout(state, recorder=writer, read_store=lambda: open_store(state))
    draw = random.Random(2)
    for i in range(requests):
        given = rollout.assign(f"s{draw.random()}")
        harm = failing if given is not None and given.arm == "challenger" else 0.0
        event = OutcomeEvent(
            f"d{i}", "m", float(draw.random() >= 0.05 + harm), draw.uniform(1, 3), output_tokens=9, eval_s=1.0,
            experiment=given.experiment if given else None, variant=given.variant.name if given else None,
            unit=given.unit if given else None,
        )  # fmt: skip
        writer.record(event)
        rollout.record(event)
        if i % 50 == 49:
            writer.flush()
            rollout.analyse()
    writer.flush()
    rollout.analyse()
    rollout.close()
    writer.close()


def test_a_whole_life_from_start_to_rollback_report_and_clear(run: Run, state: Path, tmp_path: Path) -> None:
    assert run("experiment", "status") == (0, "No experiment runs.\n")
    code, said = run("experiment", "start", "quick", "--challenger-policy", "fast", "--unit", "request")
    assert code == 0
    assert "challenger (policy fast) against control (what runs today), 100% of requests take part" in said
    with pytest.raises(ExperimentError, match="runs already"):
        run("experiment", "start", "other", "--challenger-policy", "fast")
    serve(state, 300, failing=0.6)
    code, said = run("experiment", "status")
    assert said.startswith("HALTED: ROLLBACK: 'challenger' against 'control'")
    assert "failure rate" in said
    row = json.loads(run("experiment", "status", "--json")[1])
    assert (row["halt"]["kind"], row["experiment"]["id"], row["coverage"]) == ("ROLLBACK", "quick", 0.0)
    code, said = run("experiment", "report")
    assert (code, "byte for byte" in said) == (0, True)
    assert "ROLLBACK" in (tmp_path / "quick.html").read_text()
    with pytest.raises(ExperimentError, match="was halted"):
        run("experiment", "start", "next", "--challenger-policy", "fast")
    assert "may start" in run("experiment", "clear", "--reason", "prompt was broken")[1]
    assert run("experiment", "start", "next", "--challenger-policy", "fast")[0] == 0
    assert "stopped" in run("experiment", "stop")[1]
    kinds = [s.event.change for s in open_store(state).read() if isinstance(s.event, ExperimentEvent)]
    assert [k for k in kinds if k not in ("look", "ramped")] == [
        "started", "rolled_back", "cleared", "started", "stopped"
    ]  # fmt: skip
    code, said = run("experiment", "report", "quick", "--out", "again.html")
    assert code == 0


def test_a_record_that_was_changed_is_noticed(run: Run, state: Path) -> None:
    run("experiment", "start", "quick", "--challenger-policy", "fast", "--unit", "request")
    serve(state, 300, failing=0.6)
    (record,) = (state / FOLDER / "records").iterdir()
    record.write_text(record.read_text().replace('"kind":"ROLLBACK"', '"kind":"SHIP"'))
    code, said = run("experiment", "report")
    assert code == 1
    assert "ANOTHER verdict" in said


def test_a_good_beginning_says_what_is_still_needed(run: Run, state: Path) -> None:
    run("experiment", "start", "calm", "--challenger-model", "qwen3:8b", "--unit", "request")
    serve(state, 60, failing=0.0)
    said = run("experiment", "status")[1]
    assert "HOLD" in said
    assert "of at least 200 units per arm" in said
    assert "complete units that wait for judgements: 60 (until 30 minutes after their last request)" in said
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in said.splitlines() if line.startswith("unit")}
    assert sum(map(int, rows["units begun"])) == sum(map(int, rows["units complete"])) == 60
    assert rows["units with a judged answer"] == ["0", "0"]


def test_the_start_says_how_much_traffic_small_harm_takes(run: Run, state: Path) -> None:
    said = run("experiment", "start", "one", "--challenger-policy", "fast", "--unit", "request")[1]
    requests = int(said.rsplit("after about ", 1)[1].split()[0].replace(",", ""))
    run("experiment", "stop")
    said = run("experiment", "start", "two", "--challenger-policy", "fast")[1]
    in_sessions = int(said.rsplit(" requests; ", 1)[0].rsplit("(", 1)[1].replace(",", ""))
    assert 1000 < requests < 2500  # simulated: 1,725 requests in the median
    assert 3 * requests < in_sessions < 5 * requests  # simulated: 7,700


def test_a_shadow_shows_what_the_challenger_would_have_done(run: Run, state: Path) -> None:
    run("experiment", "start", "ghost", "--challenger-policy", "fast", "--shadow")
    quick = Candidate("small", 0.8, Quantiles(1.0, 2.0, 3.0), 0.0, 1.0)
    slow = Candidate("large", 0.9, Quantiles(9.0, 12.0, 15.0), 0.0, 1.0)
    store = open_store(state)
    for i in range(10):
        served, shadowed = (slow, quick) if i < 7 else (quick, quick)
        for chosen, shadow in ((served, False), (shadowed, True)):
            store.append(
                [
                    DecisionEvent(
                        f"{i}{shadow}",
                        chosen.model,
                        "simple",
                        "p",
                        "b",
                        1.0,
                        (chosen,),
                        experiment="ghost",
                        shadow=shadow,
                    )
                ]
            )
    said = run("experiment", "status")[1]
    assert "At least 70% of requests would go to another model" in said
    rows = {line.rsplit(maxsplit=2)[0]: line.split()[-2:] for line in said.splitlines() if line[:1] != " "}
    assert rows["large"] == ["70.0%", "0.0%"]
    assert rows["latency p50, s"] == ["6.60", "1.00"]


def test_options_become_the_definition(run: Run, state: Path) -> None:
    run(
        "experiment", "start", "e1", "--control", "old", "--challenger", "new", "--challenger-model", "qwen3:8b",
        "--ramp", "0:0.05,1h:0.25,1d:1", "--holdout", "0.1", "--shadow", "--hypothesis", "As good.",
        "--limit", "failure_margin=0.02", "--limit", "slo_s=none", "--limit", "min_units=500",
    )  # fmt: skip
    found = ExperimentState(state / FOLDER).active()
    assert found is not None
    assert [(s.after_s, s.coverage) for s in found.ramp] == [(0.0, 0.05), (3600.0, 0.25), (86_400.0, 1.0)]
    assert (found.mode, found.holdout, found.hypothesis) == ("shadow", 0.1, "As good.")
    assert (found.limits.failure_margin, found.limits.slo_s, found.limits.min_units) == (0.02, None, 500)
    assert (found.control.name, found.challenger.name, found.challenger.model) == ("old", "new", "qwen3:8b")


def test_a_definition_can_be_kept_in_a_file(run: Run, state: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    challenger = {"name": "b", "model": "qwen3:8b"}
    path.write_text(json.dumps({"id": "filed", "control": {"name": "a"}, "challenger": challenger}))
    run("experiment", "start", "--file", str(path))
    found = ExperimentState(state / FOLDER).active()
    assert found is not None
    assert abs(found.started_s - time.time()) < 60


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("e1", "--challenger-policy", "no such policy"), PolicyError),
        (("e1", "--challenger-bundle", "nowhere"), ExperimentError),
        (("e1", "--ramp", "0:0.5,1h"), ExperimentError),
        (("e1", "--ramp", "0:0.5,1h:0.1"), ExperimentError),
        (("e1", "--limit", "patience=3"), ExperimentError),
        (("e1", "--limit", "min_units=many"), ExperimentError),
        ((), ExperimentError),
        (("--file", "missing.json"), ExperimentError),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    run: Run, state: Path, words: tuple[str, ...], error: type[InputError]
) -> None:
    with pytest.raises(error):
        run("experiment", "start", *words)
    assert ExperimentState(state / FOLDER).active() is None


@pytest.mark.parametrize("verb", ["stop", "clear", "report"])
def test_there_must_be_something_to_act_on(run: Run, verb: str) -> None:
    with pytest.raises(ExperimentError):
        run("experiment", verb)


def test_metrics_show_models_and_variants(run: Run, state: Path) -> None:
    run("experiment", "start", "calm", "--challenger-model", "qwen3:8b", "--unit", "request")
    serve(state, 80, failing=0.0)
    lines = run("metrics")[1].splitlines()
    assert lines[0].split()[:2] == ["model", "requests"]
    assert lines[1].split()[:2] == ["m", "80"]
    assert any(line.startswith("challenger") for line in lines)
    assert json.loads(run("metrics", "--json", "--window", "1h")[1])["total"]["requests"] == 80


def test_a_model_nobody_knows_is_refused_with_a_suggestion(run: Run) -> None:
    with pytest.raises(ExperimentError, match=r"unknown model 'qwen3:8'; did you mean 'qwen3:8b'\?; the catalogue has"):
        run("experiment", "start", "slip", "--challenger-model", "qwen3:8")
    assert run("experiment", "status") == (0, "No experiment runs.\n")


def test_alerts_show_what_fires_and_fail_while_anything_does(run: Run, state: Path) -> None:
    open_store(state).close()
    assert run("alerts") == (0, "Nothing fires.\n")
    store = open_store(state)
    alert = AlertEvent("failure_rate", "firing", "m", 0.3, 0.1, "30% failed", "Look at the host.")
    store.append([alert, AlertEvent("novelty", "firing", "all", 0.4, 0.3, "new", "Label some."),
                  AlertEvent("novelty", "resolved", "all", 0.1, 0.3, "old", "Label some.")])  # fmt: skip
    code, said = run("alerts")
    assert code == 1
    assert "failure_rate (m): 30% failed\n    Look at the host." in said
    assert "novelty" not in said
    assert run("alerts", "--all")[1].count("novelty") == 2
    assert json.loads(run("alerts", "--json")[1])["rule"] == "failure_rate"


def test_an_alert_whose_process_is_dead_does_not_fire(run: Run, state: Path) -> None:
    def alert(age_s: float, subject: str) -> AlertEvent:
        at_s = time.time() - age_s
        return AlertEvent("breaker_open", "firing", subject, 1.0, 1.0, "open", "Check the host.", at_s=at_s)

    store = open_store(state)
    store.append([alert(age_s, "dead") for age_s in (600.0, 540.0, 480.0)])
    code, said = run("alerts")
    assert code == 0
    assert "stale     breaker_open (dead)" in said
    assert "Nothing fires." in said
    store.append([alert(age_s, "alive") for age_s in (600.0, 450.0, 290.0, 130.0)])
    code, said = run("alerts")
    assert code == 1
    assert said.count("firing    breaker_open (alive)") == 1
    # reported four times without a break: one change, dated when it began
    assert [json.loads(line)["subject"] for line in run("alerts", "--all", "--json")[1].splitlines()] == [
        "dead", "alive"]  # fmt: skip


def test_outcomes_are_exported_for_training_and_old_ones_pruned(run: Run, state: Path, tmp_path: Path) -> None:
    store = open_store(state)
    now_s = time.time()
    store.append([OutcomeEvent("old", "m", 1.0, 1.0, at_s=now_s - 10 * 86_400), OutcomeEvent("d", "m", None, 1.0)])
    store.append([FeedbackEvent("d", "thumb", 0.0)])
    out = tmp_path / "out.jsonl"
    assert "2 outcomes" in run("events", "export", "--out", str(out))[1]
    assert {o.query_id: o.success for o in read_outcomes(out)} == {"old": 1.0, "d": 0.0}
    assert "1 outcomes" in run("events", "export", "--out", str(out), "--since", "7d")[1]
    assert "3 events" in run("events", "export", "--out", str(out), "--what", "events")[1]
    assert "ROUTER_ML_KEEP=text" in run("events", "export", "--out", str(out), "--what", "queries")[1]
    assert "1 events deleted" in run("events", "prune", "--days", "5")[1]


def test_without_a_store_the_reason_is_said(run: Run) -> None:
    for words in (("metrics",), ("alerts",), ("events", "export", "--out", "x")):
        with pytest.raises(StoreError, match="no event store"):
            run(*words)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("15m", 900.0), ("1.5h", 5400.0), ("7d", 604_800.0)])
def test_durations(text: str, seconds: float) -> None:
    assert events.duration_s(text) == seconds
    with pytest.raises(InputError):
        events.duration_s("soon")


def test_a_sync_says_where_to_look(run: Run, state: Path, tmp_path: Path) -> None:
    run("experiment", "start", "quick", "--challenger-policy", "fast", "--unit", "request")
    said = run("sync", "--mlruns", str(tmp_path / "mlruns"))[1].splitlines()
    assert said[0] == "experiments: 1, new windows: 0, metrics: 0"
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlruns/mlflow.db" in said[1]
    assert said[2].endswith("/runs?workflowType=machine_learning&compareRunsMode=CHART")
