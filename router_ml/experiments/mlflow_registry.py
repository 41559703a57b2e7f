"""The registered model `router_ml` in MLflow: which version is the champion.

The alias `champion` marks the bundle that serves, so only what changes that moves it: a promotion or a rollback. MLflow
missing or down never hinders either.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from router_ml.experiments.mlflow_store import DATABASE, open_tracking, tracking_root

log = logging.getLogger(__name__)

REGISTERED = "router_ml"
CHAMPION, CHALLENGER = "champion", "challenger"
BUNDLE_TAG, STATE_TAG = "bundle", "state"  # of a version; the state is what a reader of the list sees


def set_champion(bundle: str, root: Path | None = None) -> str | None:
    """Point the alias `champion` at the newest registered version of a bundle, and return that version.

    A bundle that is not registered takes the alias away: it would mark what no longer serves. Return None then, and if
    MLflow is missing or down, or was never used here."""
    if not _used(root):
        return None
    try:
        client, newest = _newest_version(bundle, root)
        _move(client, newest)
    except Exception as error:
        log.info("the alias %s in MLflow is not changed: %s", CHAMPION, error)
        return None
    return newest


def champion_note(bundle: str) -> str:
    """Set the champion, and return what a promotion prints about it; "" if MLflow does not know the bundle."""
    version = set_champion(bundle)
    return f" (MLflow: {REGISTERED} version {version} is {CHAMPION})" if version else ""


def registered_version(bundle: str, root: Path | None = None) -> str | None:
    """Return the newest registered version of a bundle; None if there is none, or MLflow is missing or down."""
    try:
        return _newest_version(bundle, root)[1]
    except Exception as error:
        log.info("MLflow cannot be asked for versions: %s", error)
        return None


def _used(root: Path | None) -> bool:
    """Return whether there is a store: a promotion makes none."""
    return bool(root is None and os.environ.get("MLFLOW_TRACKING_URI")) or (tracking_root(root) / DATABASE).is_file()


def _newest_version(bundle: str, root: Path | None) -> tuple[Any, str | None]:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is down: seconds, not minutes
    uri = open_tracking(root)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.search_model_versions(f"name='{REGISTERED}'")
    known = [int(version.version) for version in found if version.tags.get(BUNDLE_TAG) == bundle]
    return client, str(max(known)) if known else None


def _move(client: Any, version: str | None) -> None:
    """Give the alias to a version, and take the alias `challenger` from it."""
    aliases = {}
    if version or client.search_registered_models(f"name='{REGISTERED}'"):
        aliases = client.get_registered_model(REGISTERED).aliases
    before = aliases.get(CHAMPION)
    if before and before != version:
        client.set_model_version_tag(REGISTERED, before, STATE_TAG, "served before")
        client.delete_registered_model_alias(REGISTERED, CHAMPION)
    if version:
        client.set_registered_model_alias(REGISTERED, CHAMPION, version)
        client.set_model_version_tag(REGISTERED, version, STATE_TAG, CHAMPION)
        if str(aliases.get(CHALLENGER)) == version:
            client.delete_registered_model_alias(REGISTERED, CHALLENGER)
