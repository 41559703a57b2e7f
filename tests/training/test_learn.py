"""Learning from traffic: enough judged answers or not, each step once, and what follows the gate's verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.bundles.format import load_bundle
from router_ml.bundles.registry import read_active
from router_ml.decide.features.extractor import Features
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.engines.engine import LocalEngine
from router_ml.errors import InputError, StoreError
from router_ml.events.connect import open_store
from router_ml.events.event import AlertEvent, AlertState, Event, FeedbackEvent, OutcomeEvent, decision_event
from router_ml.experiments.state import ExperimentState
from router_ml.files import file_lock
from router_ml.settings import CHECKOUT, Settings
from training.learning import job as job_module
from training.learning.gate import GateVerdict, Word, offpolicy_gate
from training.learning.job import A_PERSON_MUST_ACT, DONE, NOTHING_TO_LEARN, Learning
from training.learning.policy import LearnPolicy, read_learn_policy
from training.learning.rows import collect
from training.learning.state import read_state

SMALL, LARGE = "llama3.2:3b-instruct", "qwen2.5:3b-instruct"  # without arms


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database, which takes seconds to make."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def own_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Path) -> None:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tiny_bundle: Path, tmp_path: Path) -> Settings:
    return Settings(bundle=tiny_bundle, state_dir=tmp_path / "state", keep="features")


def traffic(settings: Settings, n: int, first: int = 0, propensity: float = 1.0) -> list[Event]:
    """Sessions of two requests; small models fail at what begins with "compare", each answer is judged by a thumb."""
    router = Router.load(settings=settings)
    events: list[Event] = []
    for i in range(first, first + n):
        hard = i % 3 == 0
        text = f"compare offer {i} and plan the move" if hard else f"set a timer for {i} minutes"
        decision = router.decide(text, policy=Policy("open", latency_budget_s=None))
        model = (SMALL, LARGE)[i % 2]
        ranked = tuple(sorted(decision.ranked, key=lambda one: one.model != model))
        decision = replace(decision, decision_id=f"d{i}", model=model, ranked=ranked, propensity=propensity)
        right = float(i % 2 == 1 or not hard or i % 30 == 0)
        events.append(decision_event(decision, unit=f"s{i // 2}", text=text, at_s=1e9 + i))
        events.append(OutcomeEvent(f"d{i}", decision.model, None, (2.0, 9.0)[i % 2], at_s=1e9 + i))
        events.append(FeedbackEvent(f"d{i}", "thumb", right, at_s=1e9 + i + 60))
    return events


def record(settings: Settings, n: int, first: int = 0) -> None:
    store = open_store(settings.state_dir, keep_features=True)
    store.append(traffic(settings, n, first))
    store.close()


class SaidGate:
    """Gives the verdict it was told, and remembers what it was asked."""

    def __init__(self, word: Word = "not worse") -> None:
        self.word = word
        self.asked: list[tuple[Path, int, int]] = []

    def __call__(
        self, bundle: Path, rows: Sequence[Mapping[str, Any]], features: Features, *, seed: int
    ) -> GateVerdict:
        self.asked.append((bundle, len(rows), len(features.table)))
        return GateVerdict(self.word, "as told", {"difference": 0.01})


def learning(settings: Settings, said: list[str] | None = None, **options: Any) -> Learning:
    values: dict[str, Any] = {"policy": LearnPolicy(min_judged=100), "gate": SaidGate(), "quiet": True, **options}
    return Learning(settings, say=(said if said is not None else []).append, **values)


def state_of(settings: Settings) -> Any:
    return read_state(settings.state_dir / "learn" / "state.json")


def versions() -> dict[str, str]:
    from mlflow import MlflowClient

    return {version.tags["bundle"]: str(version.version) for version in MlflowClient().search_model_versions("")}


def test_too_few_judged_answers_say_how_many_are_missing_and_how_to_get_them(settings: Settings) -> None:
    record(settings, 60)
    said: list[str] = []
    assert learning(settings, said).run() == NOTHING_TO_LEARN
    assert "nothing to learn yet: 40 judged answers are missing (60 of 100 since the last time)" in said[-1]
    assert "router-ml feedback ID up" in said[-1]


def test_alerts_that_fire_are_told_with_what_a_fit_would_do(settings: Settings) -> None:
    record(settings, 10)
    store = open_store(settings.state_dir)
    alerts: list[tuple[str, AlertState]] = [
        ("novelty", "firing"),
        ("latency_drift", "firing"),
        ("latency_drift", "resolved"),
    ]
    store.append([AlertEvent(rule, state, "all", 0.5, 0.3, "half are new", "A fit helps.") for rule, state in alerts])
    store.close()
    said: list[str] = []
    learning(settings, said).run()
    assert "alert novelty (all): half are new. A fit helps." in said
    assert not any("latency_drift" in line for line in said)


@pytest.mark.parametrize("dry", [False, True])
def test_without_any_events_it_says_what_records_them(settings: Settings, dry: bool) -> None:
    said: list[str] = []
    assert learning(settings, said, dry=dry).run() == NOTHING_TO_LEARN
    assert "nothing was recorded in" in said[-1]


def test_without_kept_features_it_says_which_setting_keeps_them(settings: Settings) -> None:
    store = open_store(settings.state_dir)
    store.append(traffic(settings, 30))
    store.close()
    said: list[str] = []
    assert learning(settings, said).run() == NOTHING_TO_LEARN
    assert any("30 judged answers have neither text nor features" in line and "ROUTER_ML_KEEP" in line for line in said)


def test_a_challenger_is_learned_judged_registered_and_put_into_shadow_once(settings: Settings) -> None:
    record(settings, 240)
    gate, said = SaidGate(), list[str]()
    assert learning(settings, said, gate=gate).run() == DONE
    [(folder, logged, featured)] = gate.asked
    manifest = load_bundle(folder).manifest
    assert (logged, featured) == (240 - manifest["given"]["outcomes"],) * 2  # nothing is judged on what was learned
    assert 40 < logged < 110
    router = Router.load(folder)
    assert router.learned == {SMALL, LARGE}
    assert versions() == {folder.name: "1"}
    running = ExperimentState(settings.state_dir / "experiments").active()
    assert running is not None
    assert (running.mode, running.challenger.bundle) == ("shadow", str(folder))
    state = state_of(settings)
    assert (state.job, state.running.bundle, state.history[-1]["verdict"]) == (None, folder.name, "not worse")
    assert learning(settings, said, gate=gate).run() == DONE
    assert len(gate.asked) == 1
    assert "has been in shadow for" in said[-1]


def test_after_a_stopped_experiment_only_new_judgements_count(settings: Settings) -> None:
    record(settings, 240)
    assert learning(settings).run() == DONE
    ExperimentState(settings.state_dir / "experiments").stop()
    said: list[str] = []
    assert learning(settings, said).run() == NOTHING_TO_LEARN
    assert "100 judged answers are missing (0 of 100 since the last time)" in said[-1]
    record(settings, 120, first=240)
    assert learning(settings, said).run() == DONE
    assert len(versions()) == 2


def test_kept_texts_give_the_same_rows_on_an_engine(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(settings.state_dir, keep_text=True)
    store.append(traffic(settings, 240))
    bundle, read = load_bundle(settings.bundle or Path()), []
    for name, engine in (("here", None), ("there", LocalEngine(2))):
        monkeypatch.setenv("ROUTER_ML_CACHE_DIR", str(tmp_path / name))
        read.append(collect(store, bundle, LearnPolicy(), 0, engine))
    store.close()
    here, there = read
    assert len(here.train.queries) > 100
    assert there.train.queries == here.train.queries
    np.testing.assert_array_equal(there.train.features.embedding, here.train.features.embedding)
    np.testing.assert_array_equal(there.train.features.table, here.train.features.table)


def test_a_worse_challenger_is_registered_without_the_alias_and_never_tried(settings: Settings) -> None:
    from mlflow import MlflowClient

    record(settings, 240)
    assert learning(settings, gate=SaidGate("worse")).run() == DONE
    assert ExperimentState(settings.state_dir / "experiments").active() is None
    assert len(versions()) == 1
    assert "challenger" not in MlflowClient().get_registered_model("router_ml").aliases
    [row] = state_of(settings).history
    assert (row["verdict"], row["tried"]) == ("worse", "nothing")


def test_a_dry_run_changes_nothing(settings: Settings) -> None:
    record(settings, 240)
    before = sorted(path for path in settings.state_dir.rglob("*") if path.suffix not in (".db-wal", ".db-shm"))
    said: list[str] = []
    assert learning(settings, said, dry=True).run() == DONE
    assert any("would learn learned-" in line for line in said)
    after = sorted(path for path in settings.state_dir.rglob("*") if path.suffix not in (".db-wal", ".db-shm"))
    assert after == before


def test_without_exploration_the_gate_cannot_tell_and_says_what_would(settings: Settings) -> None:
    record(settings, 240)
    said: list[str] = []
    assert learning(settings, said, gate=offpolicy_gate).run() == DONE
    assert any(": cannot tell. Nothing was explored" in line for line in said)
    assert ExperimentState(settings.state_dir / "experiments").active().mode == "shadow"  # type: ignore[union-attr]


def test_explored_traffic_lets_the_gate_tell_with_its_numbers_in_mlflow(settings: Settings) -> None:
    from mlflow import MlflowClient

    store = open_store(settings.state_dir, keep_features=True)
    store.append(traffic(settings, 1800, propensity=0.5))
    store.close()
    said: list[str] = []
    policy = LearnPolicy(min_judged=100, gate_share=0.6)
    assert learning(settings, said, gate=offpolicy_gate, policy=policy).run() == DONE
    [row] = state_of(settings).history
    client = MlflowClient()
    [experiment] = [one for one in client.search_experiments() if one.name == "router_ml fits"]
    [run] = client.search_runs([experiment.experiment_id], "tags.bundle != ''")
    assert run.data.tags["gate.verdict"] == row["verdict"]
    assert run.data.tags["learn.until_event"] == str(state_of(settings).watermark)
    assert run.data.metrics["gate/decisions"] > 900
    assert row["verdict"] in ("better", "not worse")


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "step", ["collect", "fit", "load_bundle", "gate", "registered_version", "register", "start", "write_state"]
)
def test_a_run_killed_at_a_step_is_finished_by_the_next(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    record(settings, 240)
    places = {
        "register": (job_module.Tracker, "register"), "start": (job_module.ExperimentState, "start"),
        "gate": (SaidGate, "__call__"),
    }  # fmt: skip
    owner, name = places.get(step, (job_module, step))
    real = getattr(owner, name)
    for before in (True, False):  # killed as the step begins, and once it is done
        for nth in range(1, 5 if step == "write_state" else 2):
            calls = 0

            def killed(*args: Any, before: bool = before, nth: int = nth, **values: Any) -> Any:
                nonlocal calls
                calls += 1
                if before and calls == nth:
                    raise _Killed
                result = real(*args, **values)
                if calls == nth:
                    raise _Killed
                return result

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, killed)
                try:
                    learning(settings).run()
                except _Killed:
                    continue
    assert learning(settings).run() == DONE
    state = state_of(settings)
    assert state.job is None
    assert state.running is not None
    assert len(state.history) == 1
    assert list(versions()) == [state.running.bundle]
    assert [path.name for path in (settings.state_dir / "models").iterdir() if path.is_dir()] == [state.running.bundle]
    running = ExperimentState(settings.state_dir / "experiments").active()
    assert running is not None
    assert running.id == state.running.experiment


def test_two_runs_at_once_do_not_meet(settings: Settings) -> None:
    with file_lock(settings.state_dir / "learn" / ".lock"), pytest.raises(StoreError, match="another run"):
        learning(settings).run()


def test_after_its_time_in_shadow_the_ab_begins_and_a_halt_needs_a_person(settings: Settings) -> None:
    record(settings, 240)
    now, said = [2e9], list[str]()
    policy = LearnPolicy(min_judged=100, then="ab", shadow_hours=2.0)
    options: dict[str, Any] = {"policy": policy, "clock": lambda: now[0]}
    files = ExperimentState(settings.state_dir / "experiments")
    assert learning(settings, **options).run() == DONE
    assert files.active().mode == "shadow"  # type: ignore[union-attr]
    now[0] += 3 * 3600
    assert learning(settings, **options).run() == DONE
    active = files.active()
    assert active is not None
    assert active.mode == "live"
    files.end(job_halt(active.id))
    assert learning(settings, said, **options).run() == A_PERSON_MUST_ACT
    assert "wrong answers rose" in said[-1]


def job_halt(experiment: str) -> Any:
    from router_ml.experiments.state import Halt

    return Halt(experiment, "ROLLBACK", 2e9, "wrong answers rose.")


@pytest.mark.parametrize("auto", [False, True])
def test_what_the_ab_ships_is_promoted_by_itself_only_where_that_is_allowed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, auto: bool
) -> None:
    from types import SimpleNamespace

    record(settings, 240)
    policy = LearnPolicy(min_judged=100, then="ab", auto_promote=auto)
    assert learning(settings, policy=policy).run() == DONE
    ships = SimpleNamespace(kind="SHIP", summary="SHIP: proven within every margin.")
    monkeypatch.setattr(job_module.Rollout, "analyse", lambda self, act: ships)
    said: list[str] = []
    assert learning(settings, said, policy=policy).run() == (DONE if auto else A_PERSON_MUST_ACT)
    active = read_active(settings.state_dir / "models")
    bundle = state_of(settings).history[-1]["bundle"]
    if auto:
        assert active is not None
        assert active.active == bundle
        assert ExperimentState(settings.state_dir / "experiments").active() is None
        assert str(settings.state_dir / "models") in said[-1]
    else:
        assert active is None
        assert said[-1] == f"to serve it: router-ml experiment stop; router-ml promote {bundle}"


def test_measured_rows_of_the_policy_are_learned_with_the_traffic(settings: Settings, tmp_path: Path) -> None:
    record(settings, 240)
    rows = [{"id": f"m{i}", "text": f"translate line {i}", "context": None, "label": None} for i in range(60)]
    results = [
        {"query_id": f"m{i}", "model": "other", "success": float(i % 4 > 0), "latency_s": 1.0} for i in range(60)
    ]
    for name, lines in (("q.jsonl", rows), ("o.jsonl", results)):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mine.toml").write_text(
        'preset = "fast"\n[learn]\nmin_judged = 100\nthen = "nothing"\nqueries = "q.jsonl"\noutcomes = "o.jsonl"\n'
    )
    policy = read_learn_policy(tmp_path / "mine.toml")
    assert learning(settings, policy=policy).run() == DONE
    [bundle] = [path for path in (settings.state_dir / "models").iterdir() if path.is_dir()]
    assert Router.load(bundle).learned == {SMALL, LARGE, "other"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("min_judge = 3", "min_judge.*min_judged"),
        ("min_judged = 0", "min_judged must be a number between 1"),
        ('then = "live"', "then must be one of shadow, ab, nothing"),
        ("gate_share = 1.0", "gate_share must be"),
        ('queries = "q.jsonl"', "queries and outcomes belong together"),
        ("auto_promote = 1", "auto_promote must be true or false"),
    ],
)
def test_a_wrong_learn_table_is_named(tmp_path: Path, table: str, problem: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f"[learn]\n{table}\n")
    with pytest.raises(InputError, match=problem):
        read_learn_policy(path)


def test_vectors_of_another_encoder_are_left_out(settings: Settings) -> None:
    events = traffic(settings, 30)
    store = open_store(settings.state_dir, keep_features=True)
    for event in events:
        if hasattr(event, "features") and event.features is not None:
            kept = event.features._replace(encoder="another", embedding=np.ones(7, np.float32))
            event = replace(event, features=kept)
        store.append([event])
    store.close()
    said: list[str] = []
    assert learning(settings, said).run() == NOTHING_TO_LEARN
    assert any(line.startswith("30 judged answers have neither") for line in said)


def test_the_example_of_a_policy_is_one_for_the_router_and_for_the_job() -> None:
    path = CHECKOUT / "examples" / "learn_daily" / "policy.toml"
    assert resolve_policy(path).exploration == 0.02
    assert read_learn_policy(path) == LearnPolicy(then="ab", shadow_hours=24, coverage=0.5)
    for name in ("crontab", "router-ml-learn.service", "compose.yaml"):
        assert "python -m training.learn --quiet --policy" in (path.parent / name).read_text()
