"""Makes a bundle the active one, or brings back the one before it.

python -m training.promote                      which bundles there are, and which one is active
python -m training.promote BUNDLE               make it active; it is verified first
python -m training.promote --rollback           back to the one that was active before; again: one further back
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from router_ml.bundles.format import MANIFEST, load_bundle, read_manifest
from router_ml.bundles.registry import (
    DEFAULT,
    ActiveBundle,
    clear_active,
    default_models_dir,
    read_active,
    shipped_bundle,
    write_active,
)
from router_ml.decide.router import Router
from router_ml.errors import BundleError, InputError, RouterError
from router_ml.settings import load_settings
from training.tracking.tracker import CHAMPION, REGISTERED, set_champion

REMEMBERED = 50  # bundles a shelf can be rolled back through


def promote(models_dir: Path, name: str) -> ActiveBundle:
    """Verify a bundle by deciding with it, then point at it. Raises `BundleError` or `EncoderError` where it fails."""
    Router.load(models_dir / name).decide("check email")
    current = read_active(models_dir) or ActiveBundle(DEFAULT)
    older = (current.previous, *current.older) if current.previous else ()
    moved = ActiveBundle(name, current.active, current.shadow, older[:REMEMBERED])
    pointer = current if current.active == name else moved
    write_active(models_dir, pointer)
    return pointer


def roll_back(models_dir: Path) -> ActiveBundle:
    """Point at the bundle that was active before, one further back each time.

    Raises `InputError` where there was none, and `BundleError` where it cannot be used any more."""
    current = read_active(models_dir)
    if current is None:
        raise InputError(f"{models_dir}: nothing was promoted yet, so there is nothing to roll back to")
    if current.previous is None:
        raise InputError(
            f"{models_dir}: nothing is further back than {current.active}; "
            "'python -m training.promote BUNDLE' makes any bundle active"
        )
    older = current.older
    before = ActiveBundle(current.previous, older[0] if older else None, current.shadow, older[1:])
    if before.active == DEFAULT and not (models_dir / DEFAULT).exists() and shipped_bundle() is not None:
        clear_active(models_dir)
        return before
    load_bundle(models_dir / before.active)
    write_active(models_dir, before)
    return before


def listing(models_dir: Path) -> str:
    """Every bundle of a shelf with its state and test figures, newest last."""
    pointer = read_active(models_dir)
    active = pointer.active if pointer else DEFAULT
    lines = [f"{'bundle':<40}{'state':<11}{'made':<27}{'test macro-F1':>13}"]
    found = [read_manifest(path.parent) | {"folder": path.parent.name} for path in models_dir.glob(f"*/{MANIFEST}")]
    for manifest in sorted(found, key=lambda m: str(m.get("created_at"))):
        state = "active" if manifest["folder"] == active else "candidate"
        if pointer and state != "active" and manifest["folder"] in (pointer.previous, *pointer.older):
            state = "retired"
        score = manifest.get("metrics", {}).get("test/macro_f1")
        shown = f"{score:.3f}" if score is not None else "-"
        lines.append(f"{manifest['folder']:<40}{state:<11}{manifest.get('created_at', '')!s:<27}{shown:>13}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """List, promote or roll back."""
    text = (__doc__ or "").split("\n", 1)
    parser = argparse.ArgumentParser(
        prog="python -m training.promote",
        description=text[0],
        epilog=text[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", nargs="?", help="name of a bundle on the shelf, or its folder")
    parser.add_argument(
        "--rollback", action="store_true", help="back to the bundle that was active before; again: one further"
    )
    parser.add_argument("--models-dir", type=Path, help="the shelf (models/)")
    options = parser.parse_args(argv)
    folder = Path(options.bundle) if options.bundle else None
    on_disk = folder is not None and (folder / MANIFEST).is_file() and len(folder.parts) > 1
    shelf = folder.parent if on_disk and folder is not None else None
    models_dir = options.models_dir or shelf or load_settings().models_dir or default_models_dir()
    try:
        if options.rollback:
            _announce(roll_back(models_dir))
        elif folder is not None:
            _announce(promote(models_dir, folder.name))
        else:
            print(listing(models_dir))
    except (BundleError, RouterError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _announce(pointer: ActiveBundle) -> None:
    """Say which bundle serves now, and set_champion its registered version in MLflow where that is known."""
    version = set_champion(pointer.active)
    registered = f" (MLflow: {REGISTERED} version {version} is {CHAMPION})" if version else ""
    print(f"active: {pointer.active}{registered}; running processes load it when they start again")


if __name__ == "__main__":
    sys.exit(main())
