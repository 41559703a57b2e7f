"""router-ml promote: make a bundle the active one, or return to the one before it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from router_ml.bundles import registry
from router_ml.bundles.format import manifest_metrics
from router_ml.bundles.registry import ActiveBundle, Listed, bundles_of, find_bundle, registry_folder, roll_back
from router_ml.decide.router import Router
from router_ml.experiments.mlflow_registry import champion_note
from router_ml.settings import load_settings
from router_ml.terminal import format_table, terminal_columns

DESCRIPTION = """Makes a bundle the active one, or returns to the one before it.

  router-ml promote                  which bundles there are, and which one is active
  router-ml promote BUNDLE           make it active; it is verified first, and copied from elsewhere
  router-ml rollback                 return to the one that was active before; again: one further back

The registry is the folder ROUTER_ML_MODELS_DIR, else 'models' in the state folder (ROUTER_ML_STATE_DIR, else
~/.router_ml): every process with these settings serves what is active there, wherever it is installed or started.
"""
RELOAD = "processes that run take it within two seconds"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser(
        "promote",
        help="make a bundle the active one, or roll back",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(verb)
    verb.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("bundle", nargs="?", help="name of a bundle in the registry, or a bundle's folder")
    parser.add_argument(
        "--rollback", action="store_true", help="return to the bundle that was active before; again: one further back"
    )
    parser.add_argument("--models-dir", type=Path, help="another folder as the registry")


def run(options: argparse.Namespace, promoted: Callable[[str], str] = champion_note) -> int:
    """List, promote or roll back; `promoted` is called with the active bundle and returns a note to print."""
    settings = load_settings()
    models_dir = options.models_dir or registry_folder(settings)
    if not options.rollback and options.bundle is None:
        none = (
            ""
            if bundles_of(models_dir)
            else "\nno bundle yet: the packaged one serves; 'python -m training.fit' makes one"
        )
        print(f"{listing(models_dir)}{none}\nregistry: {models_dir}")
        return 0
    if options.rollback:
        active = roll_back(models_dir)
    else:
        active = promote(models_dir, find_bundle(settings, models_dir, options.bundle))
    note = promoted(active.active) if models_dir == registry_folder(settings) else ""  # another folder serves nobody
    before = f" (before: {active.previous})" if active.previous else ""
    print(f"active: {active.active}{note} in {models_dir}{before}; {RELOAD}")
    if settings.bundle is not None:
        print(f"ROUTER_ML_BUNDLE is set: processes with this environment serve {settings.bundle} instead")
    return 0


def promote(models_dir: Path, bundle: Path | str) -> ActiveBundle:
    """Verify a bundle by deciding with it, then make it active.

    Raises `BundleError` or `EncoderError` if it cannot serve, and `StoreError` if the registry cannot be
    written."""
    return registry.promote(models_dir, bundle, Router.load)


def listing(models_dir: Path) -> str:
    """Return a table of the bundles of a registry with their states and test figures, newest last."""
    rows = [("bundle", "state", "made", "test macro-F1", "problem"), *map(_row, bundles_of(models_dir))]
    return format_table(rows if any(row[4] for row in rows[1:]) else [row[:4] for row in rows],
                        left=(0, 1, 2, 4), columns=terminal_columns())  # fmt: skip


def _row(bundle: Listed) -> tuple[str, ...]:
    score = manifest_metrics(bundle.manifest).get("test/macro_f1")
    made = str(bundle.manifest.get("created_at", "-"))[:32]
    return bundle.folder, bundle.state, made, "-" if score is None else f"{score:.3f}", bundle.problem
