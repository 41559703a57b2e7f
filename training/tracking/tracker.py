"""Every fit is a run in MLflow. MLflow missing or down never fails a fit: a warning says how to log it later."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from router_ml.bundles.format import load_bundle
from router_ml.experiments.mlflow_store import ensure_experiment, open_tracking
from router_ml.settings import CHECKOUT
from router_ml.terminal import run_command

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

REGISTERED = "router_ml"
BUNDLE_LATER = "the bundle is saved all the same. To log it later: python -m training.tracking BUNDLE"
CHAMPION = "champion"
BUNDLE_TAG = "bundle"
FITS = "router_ml fits"


def _guarded(method: Callable[P, T]) -> Callable[P, T | None]:
    """A failure of the tracking store is said once and then left alone."""

    @functools.wraps(method)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> T | None:
        tracker: Any = args[0]
        if tracker.broken:
            return None
        try:
            return method(*args, **kwargs)
        except Exception as error:
            tracker.give_up(error)
            return None

    return attempt


class Tracker:
    """Logs one fit: a run, nested runs for what was tried, the bundle as an artifact and a registered model.

    `later` is what a warning says about the work that could not be logged."""

    def __init__(
        self, experiment: str, name: str, note: str, *, root: Path | None = None, later: str = BUNDLE_LATER
    ) -> None:
        self.broken = ""
        self._later = later
        self.run_id: str | None = None
        self._experiment, self._root = experiment, root
        self._experiment_id: str | None = None
        self._open(name, note)

    def give_up(self, error: Exception) -> None:
        """Remember that the store does not work."""
        self.broken = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("MLflow is not usable (%s); %s", self.broken, self._later)

    @_guarded
    def _open(self, name: str, note: str) -> None:
        uri = open_tracking(self._root)
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is down: seconds, not minutes
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises on requirements at every model
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._experiment_id = ensure_experiment(self._experiment, self._root, uri)
        tags = {"mlflow.note.content": note, "git_commit": git_commit()}
        self.run_id = mlflow.start_run(experiment_id=self._experiment_id, run_name=name, tags=tags).info.run_id

    @_guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        import mlflow

        mlflow.log_params(dict(values))

    @_guarded
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; the first segment of a name is its section of the page."""
        import mlflow

        mlflow.log_metrics({name: float(value) for name, value in values.items() if value == value}, step=step)

    @_guarded
    def note(self, text: str) -> None:
        """Replace the run's description; its first line is what lists show."""
        import mlflow

        mlflow.set_tag("mlflow.note.content", text)

    @_guarded
    def tried(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A nested run for one alternative of the choice."""
        import mlflow

        with mlflow.start_run(run_name=name, nested=True, experiment_id=self._experiment_id):
            mlflow.log_params(dict(params))
            mlflow.log_metrics({key: float(value) for key, value in metrics.items() if value == value})

    @_guarded
    def files(self, folder: Path, under: str) -> None:
        """Log every file of a folder as artifacts."""
        import mlflow

        mlflow.log_artifacts(str(folder), artifact_path=under)

    @_guarded
    def register(self, bundle: Path, *, champion: bool) -> str | None:
        """Log the bundle as a registered model from code and point an alias at it; returns its version."""
        import mlflow

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for an input example although the signature is known
            logged = mlflow.pyfunc.log_model(
                name="router",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"bundle": str(bundle)},
                pip_requirements=["router-ml"],
                registered_model_name=REGISTERED,
            )
        version = str(logged.registered_model_version)
        client = mlflow.MlflowClient()
        client.set_model_version_tag(REGISTERED, version, BUNDLE_TAG, bundle.name)
        aliases = client.get_registered_model(REGISTERED).aliases
        alias = CHAMPION if champion or CHAMPION not in aliases else "challenger"
        client.set_registered_model_alias(REGISTERED, alias, version)
        return version

    def close(self, failed: bool = False) -> None:
        """End the run as finished or failed."""
        if self.run_id is None:
            return
        import mlflow

        try:
            mlflow.end_run("FAILED" if failed else "FINISHED")
        except Exception as error:  # the store went away in the meantime; said once is enough
            if not self.broken:
                self.give_up(error)


@contextmanager
def tracked(
    experiment: str, name: str, note: str, root: Path | None = None, later: str = BUNDLE_LATER
) -> Iterator[Tracker]:
    """A tracker whose run ends FAILED where an exception leaves the block."""
    tracker = Tracker(experiment, name, note, root=root, later=later)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def git_commit() -> str:
    """The commit of the checkout this runs in, or "" where there is none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def set_champion(bundle: str, root: Path | None = None) -> str | None:
    """Point the alias `champion` at the newest registered version of a bundle; returns that version.

    None where MLflow is missing or down, or never heard of the bundle: a promotion does not depend on it."""
    try:
        uri = open_tracking(root)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.search_model_versions(f"name='{REGISTERED}'")
        known = [version for version in found if version.tags.get(BUNDLE_TAG) == bundle]
        if not known:
            return None
        newest = str(max(int(version.version) for version in known))
        client.set_registered_model_alias(REGISTERED, CHAMPION, newest)
    except Exception as error:
        log.info("the champion's alias in MLflow stays where it is: %s", error)
        return None
    return newest


def log_bundle(folder: Path, experiment: str) -> bool:
    """Log a bundle that was made while MLflow was down. Raises `BundleError` where it cannot be used."""
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    note = f"logged later; made {manifest.get('created_at')}"
    with tracked(experiment, str(manifest.get("name", folder.name)), note) as tracker:
        tracker.params({**manifest.get("given", {}), "data_sha256": manifest.get("data_sha256"), "bundle": folder.name})
        tracker.metrics(manifest.get("metrics", {}))
        tracker.files(folder, "bundle")
        tracker.register(folder, champion=False)
    return not tracker.broken


def main(argv: Sequence[str] | None = None) -> int:
    """Log a bundle to MLflow after the event."""
    parser = argparse.ArgumentParser(
        prog="python -m training.tracking",
        description="Log a bundle to MLflow that was fitted while MLflow was down.",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--experiment", default=FITS, help="MLflow experiment (%(default)s)")
    options = parser.parse_args(argv)
    return run_command("training.tracking", lambda: not log_bundle(options.bundle, options.experiment))


if __name__ == "__main__":
    sys.exit(main())
