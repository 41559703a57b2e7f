"""Log work to MLflow. Where MLflow is missing or down, a warning says how to log it later, and the work continues."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from router_ml.bundles.format import load_bundle
from router_ml.experiments.mlflow_registry import (
    BUNDLE_TAG,
    CHALLENGER,
    CHAMPION,
    REGISTERED,
    STATE_TAG,
    registered_version,
    set_champion,
)
from router_ml.experiments.mlflow_store import ensure_experiment, open_tracking
from router_ml.settings import CHECKOUT
from router_ml.terminal import run_command
from training.command import command_parser

__all__ = ["CHALLENGER", "CHAMPION", "REGISTERED", "Tracker", "registered_version", "set_champion", "tracked"]

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

BUNDLE_LATER = "the bundle is saved all the same; to log it later, run 'python -m training.tracking BUNDLE'"
FITS, EVALUATIONS, BENCHMARKS = "router_ml fits", "router_ml evaluations", "router_ml benchmarks"
NOTE = "mlflow.note.content"  # MLflow's tag for descriptions of runs and experiments
DESCRIPTIONS = {
    FITS: "Each run learned one bundle. val/ was cross-validated or held out, test/ is from groups that took part in "
    "nothing else; nested runs are the alternatives that were tried. The bundle that serves is the champion alias.",
    EVALUATIONS: "Each run judged one bundle on queries with measured outcomes, through the serving code.",
    BENCHMARKS: "Each run measured one model: success against what was expected, and seconds per query.",
}
REGISTRY_DESCRIPTION = (
    "Bundles of router_ml. The alias champion marks the one that was promoted, challenger the newest that was not."
)
_DIGEST_CHARACTERS = 36  # the most that MLflow stores
_VERSION_TAGS = {  # of metrics, in names that a narrow column shows
    "test/macro_f1": "macro_f1",
    "val/outcomes_aiq_normalised": "aiq",
    "val/outcomes_accuracy": "accuracy",
    "val/outcomes_accuracy_gain": "gain",
    "val/outcomes_ece": "ece",
}
_EXAMPLE = {"text": "find a free hour with Dana", "context": '{"tools": [{"name": "calendar"}]}'}


class DataFile(NamedTuple):
    """A file that was learned from."""

    name: str
    path: Path
    sha256: str
    rows: int


def _guarded(method: Callable[P, T]) -> Callable[P, T | None]:
    """Return a method that does nothing once the tracking store has failed; the first failure is one warning."""

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
    """One run in MLflow, with nested runs for alternatives, artifacts, data sets and a registered model.

    `later` ends the warning about work that could not be logged."""

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
        """Stop logging, with one warning."""
        self.broken = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("MLflow is not usable (%s); %s", self.broken, self._later)

    @_guarded
    def _open(self, name: str, note: str) -> None:
        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it reports each table it makes
        uri = open_tracking(self._root)
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is down: seconds, not minutes
        import mlflow

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # else it advises on requirements at every model
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        self._experiment_id = ensure_experiment(self._experiment, self._root, uri)
        if description := DESCRIPTIONS.get(self._experiment):
            mlflow.MlflowClient().set_experiment_tag(self._experiment_id, NOTE, description)
        tags = {NOTE: note, "git_commit": git_commit()}
        run = mlflow.start_run(
            experiment_id=self._experiment_id,
            run_name=name,
            tags=tags,
            log_system_metrics=find_spec("psutil") is not None,
        )
        self.run_id = run.info.run_id

    @_guarded
    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters."""
        import mlflow

        mlflow.log_params(dict(values))

    @_guarded
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        import mlflow

        mlflow.set_tags(dict(values))

    @_guarded
    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; the first segment of a name is its section of the page."""
        import mlflow

        mlflow.log_metrics({name: float(value) for name, value in values.items() if value == value}, step=step)

    @_guarded
    def describe(self, name: str, note: str) -> None:
        """Name the run after what it became, and replace its description; the first line is what lists show."""
        import mlflow

        mlflow.set_tags({"mlflow.runName": name, NOTE: note})

    @_guarded
    def data(self, files: Iterable[DataFile]) -> None:
        """Log the files that were learned from as data sets: name, digest, place and number of rows."""
        import mlflow
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.data.meta_dataset import MetaDataset

        for file in files:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it finds two names for the same kind of source
                source = resolve_dataset_source(str(file.path))
            dataset = MetaDataset(source, name=file.name, digest=file.sha256[:_DIGEST_CHARACTERS])
            mlflow.log_input(dataset, context="training", tags={"rows": str(file.rows), "sha256": file.sha256})

    @_guarded
    def tried(self, name: str, params: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a nested run for one alternative that was tried."""
        import mlflow

        with mlflow.start_run(run_name=name, nested=True, experiment_id=self._experiment_id, log_system_metrics=False):
            mlflow.log_params(dict(params))
            mlflow.log_metrics({key: float(value) for key, value in metrics.items() if value == value})

    @_guarded
    def files(self, folder: Path, under: str) -> None:
        """Log every file of a folder as artifacts."""
        import mlflow

        mlflow.log_artifacts(str(folder), artifact_path=under)

    @_guarded
    def register(
        self, bundle: Path, description: str, metrics: Mapping[str, float], *, challenger: bool = True
    ) -> str | None:
        """Register the bundle as a model from code, as the challenger unless told otherwise; return its version.

        Only a promotion makes a champion, see `set_champion`."""
        import mlflow

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for hints of types although the signature is known
            logged = mlflow.pyfunc.log_model(
                name="router",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"bundle": str(bundle)},
                pip_requirements=["router-ml", "pandas", f"mlflow=={mlflow.__version__}"],
                signature=_signature(),
                input_example=[_EXAMPLE],
                metadata={"bundle": bundle.name},
                registered_model_name=REGISTERED,
            )
        version = str(logged.registered_model_version)
        client = mlflow.MlflowClient()
        client.update_registered_model(REGISTERED, REGISTRY_DESCRIPTION)
        client.update_model_version(REGISTERED, version, description)
        state = CHALLENGER if challenger else "judged worse"
        shown = {tag: f"{metrics[name]:.4f}" for name, tag in _VERSION_TAGS.items() if name in metrics}
        tags = {BUNDLE_TAG: bundle.name, STATE_TAG: state, **shown}
        for key, value in tags.items():
            client.set_model_version_tag(REGISTERED, version, key, value)
        if challenger:
            self._succeed(client, version)
        return version

    @staticmethod
    def _succeed(client: Any, version: str) -> None:
        """Make a version the challenger, and tag the one before it as replaced."""
        before = client.get_registered_model(REGISTERED).aliases.get(CHALLENGER)
        if before:
            client.set_model_version_tag(REGISTERED, before, STATE_TAG, "replaced, never served")
        client.set_registered_model_alias(REGISTERED, CHALLENGER, version)

    def close(self, failed: bool = False) -> None:
        """End the run as finished or failed."""
        if self.run_id is None:
            return
        import mlflow

        try:
            mlflow.end_run("FAILED" if failed else "FINISHED")
        except Exception as error:  # the store failed in the meantime; one warning is enough
            if not self.broken:
                self.give_up(error)


def _signature() -> Any:
    """Return what the registered model takes and gives; see `RouterModel`."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = ColSpec(DataType.string, "text")
    optional = [ColSpec(DataType.string, name, required=False) for name in ("context", "policy")]
    policy = ParamSpec("policy", DataType.string, "")
    return ModelSignature(Schema([text, *optional]), Schema([ColSpec(DataType.string)]), ParamSchema([policy]))


@contextmanager
def tracked(
    experiment: str, name: str, note: str, root: Path | None = None, later: str = BUNDLE_LATER
) -> Iterator[Tracker]:
    """Yield a tracker; its run ends as FAILED where an exception leaves the block."""
    tracker = Tracker(experiment, name, note, root=root, later=later)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def git_commit() -> str:
    """Return the commit of the checkout this runs in, or "" if there is none."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def log_bundle(folder: Path, experiment: str) -> bool:
    """Log a bundle that was fitted while MLflow was down. Raises `BundleError` if it cannot be used."""
    manifest = load_bundle(folder).manifest
    metrics = manifest.get("metrics", {})
    note = f"fitted {manifest.get('created_at')}, logged later"
    if result := manifest.get("result"):
        note = f"{result}; {note}"
    with tracked(experiment, str(manifest.get("run_name", manifest.get("name", folder.name))), note) as tracker:
        tracker.params({**manifest.get("given", {}), "data_sha256": manifest.get("data_sha256"), "bundle": folder.name})
        tracker.metrics(metrics)
        tracker.files(folder, "bundle")
        tracker.register(folder, note, metrics)
    return not tracker.broken


def main(argv: Sequence[str] | None = None) -> int:
    """Log a bundle; exit code 2 if it cannot be used, 1 if MLflow cannot."""
    parser = command_parser("training.tracking", "Log a bundle to MLflow that was fitted while MLflow was down.")
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--experiment", default=FITS, help="MLflow experiment (default: %(default)s)")
    options = parser.parse_args(argv)
    return run_command("training.tracking", lambda: not log_bundle(options.bundle, options.experiment))
