"""The MLflow store: one SQLite database and one artifact folder that may be moved together.

MLflow's own defaults are not safe here: several processes that create the database at once crash, its journal is slow,
and artifact paths are stored absolute, so a moved folder lists nothing. Opening the store corrects all three.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from router_ml.errors import StoreError
from router_ml.files import file_lock
from router_ml.settings import CHECKOUT

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"

# Every column in which MLflow 3.17 writes an absolute artifact location, with the rows it stands in.
_LOCATIONS = (
    ("experiments", "artifact_location", "1"),
    ("runs", "artifact_uri", "1"),
    ("logged_models", "artifact_location", "1"),
    ("model_versions", "source", "1"),
    ("model_versions", "storage_location", "1"),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
)


def tracking_root(root: Path | None = None) -> Path:
    """Return the absolute folder of the store: the given one, `mlruns` of a source checkout, or `mlruns` here."""
    if root is not None:
        return Path(root).expanduser().resolve()
    base = CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
    return (base / "mlruns").resolve()


def open_tracking(root: Path | None = None) -> str:
    """Make the store ready and return its tracking URI, to be given to `mlflow.set_tracking_uri`.

    Without a `root`, the environment variable MLFLOW_TRACKING_URI wins and its store is left as it is. Safe to call
    from many processes at once. Turns MLflow's telemetry off, so call it before importing mlflow.

    Raises `StoreError` if the database cannot be made or read."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if root is None and chosen:
        return chosen
    folder = tracking_root(root)
    try:
        with file_lock(folder / ".lock"):
            if not _initialised(folder):
                _initialise(folder)
            _relocate(folder)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"cannot open the MLflow store in {folder}: {error}; check the folder's permissions"
        ) from error
    return database_uri(folder)


def database_uri(folder: Path) -> str:
    """Return the tracking URI of a store's folder; SQLAlchemy takes `%` and `?` in it as syntax."""
    path = (folder / DATABASE).as_posix().replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def ensure_experiment(name: str, root: Path | None = None, uri: str | None = None) -> str:
    """Return the id of the MLflow experiment of that name, made with its artifacts under the store's folder.

    `uri` is what `open_tracking(root)` returned; a foreign store chooses its own artifact folder."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    uri = uri or open_tracking(root)
    client: Any = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_location(name, root, uri)))
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _location(name: str, root: Path | None, uri: str) -> str | None:
    folder = tracking_root(root)
    if uri != database_uri(folder):
        return None
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "experiment"
    return (folder / ARTIFACTS / safe).as_uri()


def _initialised(folder: Path) -> bool:
    path = folder / DATABASE
    if not path.is_file():
        return False
    with closing(sqlite3.connect(path)) as connection:
        # "Default" is written last, so its row means that making the database came to its end.
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
        return bool(tables and connection.execute("SELECT 1 FROM experiments LIMIT 1").fetchone())


def _initialise(folder: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    (folder / ARTIFACTS).mkdir(parents=True, exist_ok=True)
    store: Any = SqlAlchemyStore(database_uri(folder), (folder / ARTIFACTS).as_uri())
    store.engine.dispose()
    with closing(sqlite3.connect(folder / DATABASE)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def _relocate(folder: Path) -> None:
    """Rewrite stored locations after the folder was moved; that of "Default" says where it was."""
    with closing(sqlite3.connect(folder / DATABASE, timeout=30)) as connection, connection:
        row = connection.execute("SELECT artifact_location FROM experiments WHERE experiment_id = 0").fetchone()
        old = str(row[0]).rsplit("/", 1)[0] if row and row[0] else None
        new = (folder / ARTIFACTS).as_uri()
        if old is None or old == new or not old.startswith("file:"):
            return
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column, condition in _LOCATIONS:
            if table in tables:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # names are constants of this module
                    f"WHERE ({condition}) AND ({column} = ? OR substr({column}, 1, ?) = ?)",
                    (new, len(old) + 1, old, len(old) + 1, old + "/"),
                )
