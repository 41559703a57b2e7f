"""The shelf bundles stand on: a folder of bundles, and a small file that says which one is active.

States of a bundle: candidate, shadow, active, retired. The pointer is replaced atomically; the one before it is kept,
so that a roll-back needs no thought.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_ml.errors import BundleCorrupt, BundleMissing
from router_ml.files import atomic_write, make_private_folder, mode_within
from router_ml.settings import CHECKOUT, PACKAGED_BUNDLES, Settings, load_settings

ACTIVE_FILE = "active.json"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class ActiveBundle:
    """Which bundle is active, which was before it, which one only watches."""

    active: str
    previous: str | None = None
    shadow: str | None = None
    older: tuple[str, ...] = ()  # those before `previous`, the latest first


def default_models_dir() -> Path:
    """`models/` of a source checkout; for an installed package the state folder's, wherever it is run from."""
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT / "models"
    return load_settings().state_dir / "models"


def read_active(models_dir: Path) -> ActiveBundle | None:
    """The pointer of a shelf, or None where nothing was promoted yet. Raises `BundleCorrupt` where it is unreadable."""
    path = models_dir / ACTIVE_FILE
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        pointer = ActiveBundle(data["active"], data.get("previous"), data.get("shadow"), tuple(data.get("older", ())))
        others = [name for name in (pointer.previous, pointer.shadow, *pointer.older) if name is not None]
        if not all(map(_is_folder_name, [pointer.active, *others])):
            raise ValueError("a bundle is the name of a folder")
        return pointer
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleCorrupt(f"{path} cannot be read ({error}); run 'python -m training.promote BUNDLE'") from error


def _is_folder_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def write_active(models_dir: Path, pointer: ActiveBundle) -> None:
    """Replace the pointer in one step."""
    make_private_folder(models_dir)
    values = {
        "active": pointer.active,
        "previous": pointer.previous,
        "shadow": pointer.shadow,
        "older": list(pointer.older),
    }
    atomic_write(models_dir / ACTIVE_FILE, json.dumps(values) + "\n", mode_within(models_dir))


def clear_active(models_dir: Path) -> None:
    """Back to the bundle that is shipped."""
    (models_dir / ACTIVE_FILE).unlink(missing_ok=True)


def shipped_bundle() -> Path | None:
    """The bundle that came with the package or the checkout, wherever the shelf stands; None where there is none."""
    places = (PACKAGED_BUNDLES / DEFAULT, CHECKOUT / "models" / DEFAULT)
    return next((place for place in places if (place / "manifest.json").is_file()), None)


def active_bundle(settings: Settings) -> Path:
    """The folder of the bundle to serve: the one named by the settings, the promoted one, or the one shipped.

    Raises `BundleMissing` where there is none at all."""
    if settings.bundle is not None:
        return settings.bundle
    models_dir = settings.models_dir or default_models_dir()
    pointer = read_active(models_dir)
    if pointer is not None:
        return models_dir / pointer.active
    if (models_dir / DEFAULT / "manifest.json").is_file():
        return models_dir / DEFAULT
    shipped = shipped_bundle()
    if shipped is not None:
        return shipped
    raise BundleMissing(f"no bundle in {models_dir} and none shipped; run 'python -m training.fit' to make one")
