"""A fit from end to end on an encoder of one layer: the bundle, the MLflow run, and what goes wrong politely."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router_ml.bundles.format import file_sha256, load_bundle
from router_ml.bundles.registry import read_active
from router_ml.catalogue import load_catalogue
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy
from router_ml.errors import BundleError, InputError
from router_ml.jsonl import write_rows
from router_ml.serve import Gateway, GatewayOptions
from router_ml.types import LABELS
from tests.ollama_double import DoubleModel, OllamaDouble, Reply
from tests.timing import PATIENCE_S, best
from training import evaluate as evaluating
from training import fit as fitting
from training import promote as promoting
from training.tracking.tracker import Tracker, set_champion

WORDS = {
    "simple": "check read open show mute",
    "moderate": "schedule draft order record book",
    "complex": "compare coordinate unless arrange after",
    "ambiguous": "that it something stuff thing",
}


def _rows(n: int, labelled: bool = True) -> list[dict[str, Any]]:
    rng = np.random.default_rng(n)
    rows = []
    for i in range(n):
        label = LABELS[i % 4]
        words = [str(rng.choice(WORDS[label].split())) for _ in range(2 + 2 * (i % 4))]
        rows.append({"id": f"q{i}", "text": f"{' '.join(words)} {i}", "label": label if labelled else None})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of its own with an encoder of one random layer; the environment points into it."""
    folder = tmp_path_factory.mktemp("fit")
    _write_encoder(folder / "encoder")
    write_rows(folder / "labelled.jsonl", _rows(120))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("ROUTER_ML_", "MLFLOW_TRACKING"))]:
            patch.delenv(name)
        patch.setenv("ROUTER_ML_CACHE_DIR", str(folder / "cache"))
        patch.setenv("ROUTER_ML_MODELS_DIR", str(folder / "models"))
        patch.setattr("router_ml.experiments.mlflow_store.CHECKOUT", folder / "nowhere")
        patch.chdir(folder)  # the store is made here, not in the checkout
        yield folder


def _write_encoder(folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    source = folder.with_name("bert")
    source.mkdir()
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    (source / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab_file=str(source / "vocab.txt")).save_pretrained(source)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(source)
    body = Transformer(str(source))
    SentenceTransformer(modules=[body, Pooling(32, pooling_mode="mean")], device="cpu").save(str(folder))


def _fit(place: Path, *arguments: str, queries: str = "labelled.jsonl") -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = fitting.main(
            ["--queries", str(place / queries), "--alone", "--encoder", str(place / "encoder"), "--quiet", *arguments]
        )
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def fitted(place: Path) -> SimpleNamespace:
    code, out, _ = _fit(place, "--no-tune", "--json", "--name", "first")
    assert code == 0
    return SimpleNamespace(out=out, answer=json.loads(out.splitlines()[-1]))


def test_the_last_line_is_json_and_names_a_bundle_that_loads(place: Path, fitted: SimpleNamespace) -> None:
    assert fitted.answer["bundle"] == str(place / "models" / "first")
    assert 0 <= fitted.answer["metrics"]["test/macro_f1"] <= 1
    json.dumps(fitted.answer, allow_nan=False)
    decision = Router.load(fitted.answer["bundle"]).decide("check read")
    assert not decision.degraded
    assert decision.bundle.startswith("first@")
    assert "p50/p90/p95" in fitted.out  # the table of samples


def test_the_bundle_says_what_it_was_made_from(place: Path, fitted: SimpleNamespace) -> None:
    from router_ml.jsonl import read_queries
    from training.corpus import data_sha256

    bundle = load_bundle(fitted.answer["bundle"])
    assert bundle.manifest["data_sha256"] == data_sha256(read_queries(place / "labelled.jsonl"))
    assert bundle.manifest["given"] == {"queries": 120, "labels": 120, "outcomes": 0, "seed": 0, "tune": False}
    assert [model["name"] for model in bundle.models] == list(load_catalogue().names)
    json.dumps(dict(bundle.manifest), allow_nan=False)
    assert not [path.name for path in (place / "models").iterdir() if path.name.startswith(".partial")]


def test_the_served_head_learned_something(fitted: SimpleNamespace) -> None:
    router = Router.load(fitted.answer["bundle"])
    rows = _rows(400)[120:]
    right = [router.decide(row["text"]).complexity == row["label"] for row in rows]
    assert np.mean(right) > 0.5  # chance is a quarter


def test_the_run_stands_in_mlflow_with_its_artifacts_and_a_model(place: Path, fitted: SimpleNamespace) -> None:
    import mlflow

    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("router_ml fits")
    assert "test/ is from groups" in experiment.tags["mlflow.note.content"]
    (run,) = client.search_runs([experiment.experiment_id], "params.bundle = 'first'")
    assert run.info.run_name == "labelled, 120 labels, encoder, untuned"
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "labelled"
    assert file_sha256(place / "labelled.jsonl").startswith(data.dataset.digest)
    assert run.info.status == "FINISHED"
    assert run.data.params["data_sha256"] == load_bundle(fitted.answer["bundle"]).manifest["data_sha256"]
    assert run.data.metrics["test/macro_f1"] == pytest.approx(fitted.answer["metrics"]["test/macro_f1"])
    assert run.data.tags["mlflow.note.content"].startswith("complexity macro-F1")
    assert {"val/macro_f1", "fit/epochs"} <= run.data.metrics.keys()
    names = {item.path for item in client.list_artifacts(run.info.run_id, "plots")}
    assert {"plots/confusion.png", "plots/reliability.png"} <= names
    assert "bundle/manifest.json" in {item.path for item in client.list_artifacts(run.info.run_id, "bundle")}
    assert str(place / "mlruns" / "artifacts") in run.info.artifact_uri
    version = client.get_model_version_by_alias("router_ml", "challenger")
    assert version.run_id == run.info.run_id
    assert "macro-F1" in version.description
    assert float(version.tags["macro_f1"]) == pytest.approx(run.data.metrics["test/macro_f1"], abs=1e-4)


def test_only_a_promotion_makes_a_champion(place: Path, fitted: SimpleNamespace) -> None:
    import mlflow

    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    assert "champion" not in client.get_registered_model("router_ml").aliases
    version = set_champion("first")
    champion = client.get_model_version_by_alias("router_ml", "champion")
    assert str(champion.version) == version
    assert champion.tags["state"] == "champion"
    assert set_champion("never registered") is None  # it serves now, so no version does
    assert "champion" not in client.get_registered_model("router_ml").aliases


def test_the_registered_model_loads_without_unpickling(
    place: Path, fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cloudpickle
    import mlflow

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was unpickled")

    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    for module in (pickle, cloudpickle):
        for name in ("load", "loads"):
            monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setenv("ROUTER_ML_POLICY", "fast")
    model = mlflow.pyfunc.load_model("models:/router_ml/1")
    rows = [{"text": "check read"}, {"text": "compare unless", "context": '{"tools": [{"name": "mail"}]}'}]
    decisions = [json.loads(answer) for answer in model.predict(rows)]
    assert [decision["policy"] for decision in decisions] == ["fast", "fast"]
    (accurate,) = model.predict([{"text": "check read"}], params={"policy": "accurate"})
    assert json.loads(accurate)["policy"] == "accurate"
    assert model.metadata.saved_input_example_info
    assert decisions[0]["bundle"].startswith("first@")
    stored = [path for path in (place / "mlruns" / "artifacts").rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert not stored


SERVED = """
import json, os, sys
import mlflow, pandas
from mlflow.pyfunc.scoring_server import init
from starlette.testclient import TestClient
model = mlflow.pyfunc.load_model("models:/router_ml/1")
table = pandas.DataFrame({
    "text": ["check read", "compare unless", "check read"],
    "context": ['{"n_tools": 2}', None, ""],
    "policy": ["fast", "accurate", None],
})
client = TestClient(init(model))
def post(body):
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]
split = json.loads(table.to_json(orient="split"))
print(json.dumps({
    "table": list(model.predict(table)),
    "records": post({"dataframe_records": json.loads(table.to_json(orient="records"))}),
    "split": post({"dataframe_split": split}),
    "health": client.get("/ping").status_code,
}))
"""


def test_the_registered_model_is_served_with_contexts_and_policies(place: Path, fitted: SimpleNamespace) -> None:
    """The app that `mlflow models serve` runs, in a process of its own that has only the registry."""
    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri, "ROUTER_ML_POLICY": "balanced"}
    done = subprocess.run(
        [sys.executable, "-c", SERVED], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    for name in ("table", "records", "split"):
        assert [json.loads(text)["policy"] for text in answers[name]] == ["fast", "accurate", "balanced"], name
        assert [json.loads(text)["model"] for text in answers[name]] == [
            json.loads(text)["model"] for text in answers["table"]
        ]
    assert answers["health"] == 200


def test_the_registered_model_is_a_spark_function(
    place: Path, fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyspark = pytest.importorskip("pyspark.sql", reason="pyspark is not installed")
    import mlflow

    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed")
    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    session = pyspark.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        decide = mlflow.pyfunc.spark_udf(session, "models:/router_ml/1", "string", env_manager="local")
        rows = [("check read", '{"n_tools": 2}', "fast"), ("compare unless", None, "accurate")]
        table = session.createDataFrame(rows, "text string, context string, policy string")
        found = table.select(decide(pyspark.functions.struct("text", "context", "policy"))).collect()
        assert [json.loads(row[0])["policy"] for row in found] == ["fast", "accurate"]
        many = session.createDataFrame(rows * 20, "text string, context string, policy string").repartition(3)
        answers = many.select("text", decide(pyspark.functions.struct("text", "context"))).collect()
        router, contexts = Router.load(fitted.answer["bundle"]), {"check read": {"n_tools": 2}}
        assert len(answers) == 40
        for text, answer in answers:
            decision = router.decide(text, contexts.get(text))
            assert (json.loads(answer)["model"], json.loads(answer)["policy"]) == (decision.model, "balanced")
    finally:
        session.stop()


def test_a_fit_on_ray_learns_the_same_heads(place: Path, fitted: SimpleNamespace) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    code, out, err = _fit(place, "--no-tune", "--json", "--name", "on_ray", "--engine", "ray", "--no-cache")
    assert code == 0, err
    here, there = load_bundle(fitted.answer["bundle"]), load_bundle(json.loads(out.splitlines()[-1])["bundle"])
    assert there.config == here.config
    assert there.arrays.keys() == here.arrays.keys()
    for name, values in here.arrays.items():
        np.testing.assert_array_equal(there.arrays[name], values, err_msg=name)


def test_a_fit_with_tuning_tries_the_alternatives(place: Path) -> None:
    import mlflow

    code, out, err = _fit(place, "--json", "--name", "tuned")
    assert code == 0, err
    bundle = json.loads(out.splitlines()[-1])["bundle"]
    assert not Router.load(bundle).decide("check read").degraded
    uri = f"sqlite:///{place / 'mlruns' / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    names = {
        run.info.run_name for run in client.search_runs([client.get_experiment_by_name("router_ml fits").experiment_id])
    }
    assert {"complexity: tuned encoder", "complexity: frozen encoder", "complexity: heuristic rules"} <= names
    (run,) = client.search_runs(
        [client.get_experiment_by_name("router_ml fits").experiment_id], "params.bundle = 'tuned'"
    )
    assert {"val/macro_f1", "test/macro_f1", "fit/examples"} <= run.data.metrics.keys()


def test_a_quick_fit_is_a_choice_that_the_bundle_records(place: Path) -> None:
    code, _, err = _fit(place, "--no-tune", "--quick", "--name", "quick")
    assert code == 0
    assert "do not promote it" in err
    manifest = load_bundle(place / "models" / "quick").manifest
    assert manifest["given"]["quick"] is True
    assert manifest["run_name"].endswith("untuned (quick)")


def test_an_interrupted_fit_is_one_line_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    before = sorted((place / "cache").rglob("*.npz"))
    monkeypatch.setattr("training.complexity.encoder_trainer.finetune", interrupted)
    code, _, err = _fit(place, "--no-tune", "--name", "cut", "--seed", "77")
    assert code == 130
    assert err.splitlines() == ["training.fit: interrupted; no bundle was made, and what was finished is cached"]
    assert not (place / "models" / "cut").exists()
    assert sorted((place / "cache").rglob("*.npz")) == before


def test_mlflow_that_is_broken_costs_a_warning_only(
    place: Path, fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (place / "a-file").write_text("in the way")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'a-file' / 'mlflow.db'}")
    code, out, _ = _fit(place, "--no-tune", "--json", "--name", "no-mlflow")
    assert code == 0
    assert load_bundle(json.loads(out.splitlines()[-1])["bundle"]).name.startswith("no-mlflow@")
    assert "MLflow is not usable" in caplog.text
    assert "python -m training.tracking" in caplog.text


def test_a_tracking_server_that_is_down_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    def cost_s() -> float:
        began_s = time.monotonic()
        tracker = Tracker("router_ml fits", "down", "nobody listens")
        assert tracker.broken
        tracker.close()
        return time.monotonic() - began_s

    assert best(cost_s, 20.0) < 20.0


def test_mlflow_that_breaks_midway_costs_a_warning_only(
    place: Path, fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking.client import MlflowClient

    def gone(*_: Any, **__: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    for name in ("log_batch", "log_artifacts", "set_terminated", "log_metric"):
        monkeypatch.setattr(MlflowClient, name, gone)
    code, out, _ = _fit(place, "--no-tune", "--json", "--name", "midway")
    assert code == 0
    assert load_bundle(json.loads(out.splitlines()[-1])["bundle"])
    assert caplog.text.count("MLflow is not usable") == 1


def test_mlflow_that_is_missing_costs_a_warning_only(
    place: Path, fitted: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    for name in [name for name in sys.modules if name == "mlflow" or name.startswith("mlflow.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, out, _ = _fit(place, "--no-tune", "--json", "--name", "without")
    assert code == 0
    assert load_bundle(json.loads(out.splitlines()[-1])["bundle"])
    assert "MLflow is not usable" in caplog.text


def test_a_bundle_is_replaced_only_by_force(place: Path, fitted: SimpleNamespace) -> None:
    before = load_bundle(fitted.answer["bundle"]).digest
    code, _, err = _fit(place, "--no-tune", "--name", "first")
    assert code == 2
    assert "choose another --name, or --force" in err
    assert load_bundle(fitted.answer["bundle"]).digest == before


WRONG_NAMES = ["../out", "a/b", "", ".", "..", ".hidden"]


@pytest.mark.parametrize("name", [name for name in WRONG_NAMES if name])
def test_a_name_is_a_plain_folder_name(place: Path, name: str) -> None:
    code, _, err = _fit(place, "--no-tune", "--name", name)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "--name" in err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "nothing to learn"),
        (b'{"id": "a", "text": "x"}\n', "nothing to learn"),
        (b'{"id": "a", "text": "x", "label": "hard"}\n', "field 'label'"),
        (b"no json\n", "is not JSON"),
        (b'{"id": "a", "text": "x", "label": "simple"}\n', "at least 40"),
    ],
)
def test_bad_queries_are_one_line_and_exit_code_2(place: Path, content: bytes, said: str) -> None:
    (place / "bad.jsonl").write_bytes(content)
    code, out, err = _fit(place, "--no-tune", queries="bad.jsonl")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_outcomes_of_other_queries_are_refused_at_once(place: Path) -> None:
    write_rows(place / "o.jsonl", [{"query_id": "stranger", "model": "m", "success": 1, "latency_s": 1.0}])
    code, _, err = _fit(place, "--no-tune", "--outcomes", str(place / "o.jsonl"))
    assert code == 2
    assert "'stranger'" in err
    assert len(err.splitlines()) == 1


def _outcomes(place: Path, rows: list[dict[str, Any]], success: bool = True) -> None:
    write_rows(
        place / "outcomes.jsonl",
        [
            {"query_id": row["id"], "model": model, "success": float(i % 3 > 0) if success else None,
             "latency_s": 1.0 + i % 5}
            for i, row in enumerate(rows)
            for model in ("one", "two")
        ],
    )  # fmt: skip


def test_judging_on_the_queries_it_learned_from_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _outcomes(place, _rows(120)[:80])
    code, _, err = _fit(place, "--no-tune", "--name", "learned", "--outcomes", str(place / "outcomes.jsonl"))
    assert code == 0, err
    fresh = [{**row, "text": f"{row['text']} anew"} for row in _rows(120)[60:]]
    write_rows(place / "fresh.jsonl", [*_rows(120)[:60], *fresh])
    command = ["--bundle", str(place / "models" / "learned"), "--outcomes", str(place / "outcomes.jsonl"),
               "--resamples", "5", "--no-mlflow", "--queries"]  # fmt: skip
    assert evaluating.main([*command, str(place / "fresh.jsonl")]) == 0
    assert "60 of the 80 queries were used to train learned@" in capsys.readouterr().err
    write_rows(place / "fresh.jsonl", [{**row, "text": f"{row['text']} anew"} for row in _rows(120)])
    assert evaluating.main([*command, str(place / "fresh.jsonl")]) == 0
    assert "used to train" not in capsys.readouterr().err


def test_outcomes_nothing_can_be_learned_from_are_told_with_what_is_needed(place: Path) -> None:
    for rows, success, said in (
        (_rows(120), False, "none of 120 queries has an outcome that says whether the answer was right"),
        (_rows(120)[:20], True, "20 queries have outcomes with a known success"),
    ):
        _outcomes(place, rows, success)
        code, _, err = _fit(place, "--no-tune", "--force", "--name", "few", "--outcomes", str(place / "outcomes.jsonl"))
        assert code == 0, err
        (note,) = [line for line in err.splitlines() if line.startswith("note:")]
        assert said in note
        assert "40 queries are needed" in note


def test_one_group_or_one_label_alone_cannot_be_learned(place: Path) -> None:
    one_group = [{**row, "group": "g"} for row in _rows(60)]
    one_label = [{**row, "label": "simple"} for row in _rows(60)]
    for rows in (one_group, one_label):
        write_rows(place / "bad.jsonl", rows)
        code, _, err = _fit(place, "--no-tune", queries="bad.jsonl")
        assert code == 2
        assert "--alone" in err.splitlines()[-1]
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--queries", "/nowhere.jsonl"], 2, "/nowhere.jsonl"),
        (["--outcomes", "/nowhere.jsonl"], 2, "/nowhere.jsonl"),
        (["--catalogue", "/nowhere.toml"], 2, "/nowhere.toml"),
        (["--encoder", "/nowhere/encoder"], 1, "/nowhere/encoder"),
        (["--models-dir", "labelled.jsonl"], 1, "labelled.jsonl"),
    ],
)
def test_files_that_are_not_there_are_one_line(
    place: Path, arguments: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'other.db'}")
    got, _, err = _fit(place, "--no-tune", "--no-cache", *arguments)
    assert got == code
    lines = [line for line in err.splitlines() if not line.startswith(("WARNING", "INFO"))]
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.slow
def test_two_fits_at_once_leave_two_bundles_and_a_sound_store(place: Path, fitted: SimpleNamespace) -> None:
    import subprocess
    import sys

    from router_ml.settings import CHECKOUT

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "training.fit",
            "--queries",
            "labelled.jsonl",
            "--alone",
            "--no-tune",
            "--quiet",
        ]
        return subprocess.run(
            [*command, "--encoder", "encoder", "--name", name, "--json"],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT), "MLFLOW_TRACKING_URI": f"sqlite:///{place}/both.db"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(run, ["left", "right"]):
            assert done.returncode == 0, done.stderr
            assert load_bundle(json.loads(done.stdout.splitlines()[-1])["bundle"])


def test_promoting_and_rolling_back(place: Path, fitted: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    models = place / "models"
    bundle = str(models / "first")
    assert promoting.main([bundle]) == 0
    assert read_active(models).active == "first"  # type: ignore[union-attr]
    assert promoting.main(["--models-dir", str(models)]) == 0
    assert "first" in capsys.readouterr().out
    with pytest.raises(BundleError):
        promoting.promote(models, "absent")
    assert promoting.main(["--models-dir", str(models), "absent"]) == 2
    assert read_active(models).active == "first"  # type: ignore[union-attr]
    assert promoting.main(["--models-dir", str(models), "--rollback"]) == 0  # to the bundle that is shipped
    assert read_active(models) is None
    with pytest.raises(InputError):
        promoting.roll_back(place / "empty")


def test_a_fit_on_outcomes_with_log_probabilities_lets_a_gateway_replace_wrong_answers(place: Path) -> None:
    rng, rows = np.random.default_rng(0), _rows(120)
    right = rng.random(len(rows)) < 0.6
    outcomes = [{"query_id": row["id"], "model": "small", "success": float(ok), "latency_s": 0.1,
                 "logprob_mean": float(rng.normal(-0.2 if ok else -1.0, 0.2)) - 0.5}
                for row, ok in zip(rows, right, strict=True)]  # fmt: skip
    outcomes += [{"query_id": row["id"], "model": "large", "success": float(i % 20 > 0), "latency_s": 0.4}
                 for i, row in enumerate(rows)]  # fmt: skip
    write_rows(place / "signalled.jsonl", outcomes)
    code, _, err = _fit(place, "--no-tune", "--name", "cascade", "--outcomes", str(place / "signalled.jsonl"))
    assert code == 0, err
    assert "no map of log-probabilities for large" in err
    assert "0 outcomes with a log-probability, 50 are needed" in err
    policy = Policy("cascade", latency_weight_per_s=0.3, cascade=True)
    router = Router.load(place / "models" / "cascade")
    said = {"sure": -0.6, "unsure": -1.6}

    def small(body: Mapping[str, Any]) -> Reply:
        return Reply("small", logprob=said[body["messages"][-1]["content"].split()[0]])

    models = DoubleModel("small", reply=small), DoubleModel("large", "large")
    options = GatewayOptions(attempt_min_s=PATIENCE_S, connect_s=PATIENCE_S, idle_s=PATIENCE_S)
    with (
        OllamaDouble(models) as double,
        Gateway(router, router.catalogue, default_host=double.url, options=options) as gateway,
    ):
        sure, unsure = (gateway.chat(f"{word} {rows[0]['text']}", policy=policy) for word in said)
    assert (sure.decision.model, sure.content, unsure.decision.model, unsure.content) == (
        "small", "small", "small", "large",
    )  # fmt: skip
    assert sure.p_right > 0.9 > 0.1 > unsure.p_right
