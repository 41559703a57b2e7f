"""The MLflow store survives being created by many at once and being moved."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from router_ml.errors import StoreError
from router_ml.experiments.mlflow_store import ensure_experiment, open_tracking

_MOVED = """
import sys
from pathlib import Path
from mlflow.tracking import MlflowClient
from router_ml.experiments.mlflow_store import open_tracking
client = MlflowClient(open_tracking(Path(sys.argv[1])))
print([item.path for item in client.list_artifacts(sys.argv[2])])
client.log_text(sys.argv[2], "more", "later.txt")
"""


def test_the_database_uses_a_write_ahead_log(mlflow_template: Path) -> None:
    with sqlite3.connect(mlflow_template / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_moved_store_finds_its_artifacts_and_writes_to_the_new_place(mlflow_template: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old place" / "mlruns", tmp_path / "new" / "mlruns"
    shutil.copytree(mlflow_template, old)
    uri = open_tracking(old)
    from mlflow.tracking import MlflowClient

    experiment = ensure_experiment("ab/one", old, uri)
    assert ensure_experiment("ab/one", old, uri) == experiment
    run = MlflowClient(uri).create_run(experiment).info.run_id
    MlflowClient(uri).log_text(run, "kept", "note.txt")
    new.parent.mkdir()
    old.rename(new)
    # A fresh process: MLflow caches a run's place for as long as its own process lives.
    listed = subprocess.run([sys.executable, "-c", _MOVED, str(new), run], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[-1] == "['note.txt']"
    assert not old.exists()
    assert sorted(p.name for p in new.rglob("*.txt")) == ["later.txt", "note.txt"]


def test_the_environment_names_the_store_unless_a_folder_is_given(
    mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert open_tracking() == "http://127.0.0.1:5000"
    assert open_tracking(mlflow_template) == f"sqlite:///{mlflow_template}/mlflow.db"


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, but long enough to look at" * 10)
    with pytest.raises(StoreError, match="cannot open the MLflow store"):
        open_tracking(tmp_path)


@pytest.mark.parametrize("name", ["with space", "umlaut é", "hash#1", "feature%2Fx", "what?x=1", "100%"])
def test_a_folder_may_have_any_name(mlflow_template: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "mlruns"
    shutil.copytree(mlflow_template, folder)
    uri = open_tracking(folder)
    experiment = ensure_experiment("fits", folder, uri)
    with sqlite3.connect(folder / "mlflow.db") as connection:
        assert connection.execute("SELECT name FROM experiments WHERE experiment_id = ?", (experiment,)).fetchone() == (
            "fits",
        )
