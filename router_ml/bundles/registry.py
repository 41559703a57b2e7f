"""The bundle registry: a folder of bundles, and a small file in it that says which one is active.

**Where it is**, the same for a checkout, an installed package, every command and every working directory:
ROUTER_ML_MODELS_DIR if it is set, else `models` in the state folder (ROUTER_ML_STATE_DIR, else ~/.router_ml). What is
promoted there is what every process with these settings serves. Users who shall share one registry, such as an
operator and a service, set ROUTER_ML_MODELS_DIR to a folder that both may read: files are as readable as the folder
that holds them, and a folder made here is its owner's alone.

ROUTER_ML_BUNDLE names one bundle instead. Without a promoted bundle the one that is shipped serves. Checkouts of
earlier releases kept their registry in `models/` of the checkout; what was promoted there is served until something is
promoted in the place above.

States of a bundle: candidate, active, retired. The active bundle is replaced in one step, and those before it are
remembered, so that rolling back needs no argument.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router_ml.bundles.format import MANIFEST, load_bundle, read_manifest
from router_ml.errors import BundleCorrupt, BundleError, BundleMissing, InputError, StoreError
from router_ml.files import atomic_write, file_lock, make_private_folder, mode_within, read_regular, reason
from router_ml.settings import CHECKOUT, PACKAGED_BUNDLES, Settings, load_settings

ACTIVE_FILE = "active.json"
LOCK_FILE = ".lock"
DEFAULT = "default"
REMEMBERED = 50  # bundles that can be rolled back to
_MAX_BYTES = 100_000
_HINT = "run 'router-ml promote BUNDLE'"


@dataclass(frozen=True, slots=True)
class ActiveBundle:
    """The active bundle, the one before it, and the one that decides in shadow."""

    active: str
    previous: str | None = None
    shadow: str | None = None
    older: tuple[str, ...] = ()  # those before `previous`, the latest first


def registry_folder(settings: Settings) -> Path:
    """Return the folder of the bundle registry; the module says where it is and why."""
    return settings.models_dir or settings.state_dir / "models"


def default_models_dir() -> Path:
    """Return the folder of the bundle registry of the environment's settings."""
    return registry_folder(load_settings())


def read_active(models_dir: Path) -> ActiveBundle | None:
    """Return the active bundle of a registry, or None if nothing was promoted yet.

    Raises `BundleCorrupt` if the file that names it cannot be read."""
    path = models_dir / ACTIVE_FILE
    try:
        data: dict[str, Any] = json.loads(read_regular(path, _MAX_BYTES).decode("utf-8"))
        found = ActiveBundle(data["active"], data.get("previous"), data.get("shadow"), tuple(data.get("older", ())))
        others = [name for name in (found.previous, found.shadow, *found.older) if name is not None]
        if not all(map(_is_folder_name, [found.active, *others])):
            raise ValueError("a bundle must be the name of a folder")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleCorrupt(f"{path} cannot be read ({reason(error)}); {_HINT}") from error


def _is_folder_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable() and Path(name).name == name != ".."


def write_active(models_dir: Path, active: ActiveBundle) -> None:
    """Replace the active bundle in one step."""
    make_private_folder(models_dir)
    atomic_write(models_dir / ACTIVE_FILE, json.dumps(asdict(active)) + "\n", mode_within(models_dir))


def clear_active(models_dir: Path) -> None:
    """Return to the bundle that is shipped."""
    (models_dir / ACTIVE_FILE).unlink(missing_ok=True)


def shipped_bundle() -> Path | None:
    """Return the bundle shipped with the package or the checkout, or None."""
    places = (PACKAGED_BUNDLES / DEFAULT, CHECKOUT / "models" / DEFAULT)
    return next((place for place in places if _is_bundle(place)), None)


def _is_bundle(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file()
    except (OSError, ValueError):  # a folder that may not be entered, a name no file system takes
        return False


def active_bundle(settings: Settings) -> Path:
    """Return the folder of the bundle to serve: the one named by the settings, the promoted one, or the one shipped.

    Raises `BundleMissing` if there is none at all, and `BundleCorrupt` if the active bundle cannot be determined."""
    if settings.bundle is not None:
        return settings.bundle
    folder = registry_folder(settings)
    for place in (folder, *_earlier_registry(settings)):
        active = read_active(place)
        if active is not None:
            return place / active.active
    shipped = folder / DEFAULT if _is_bundle(folder / DEFAULT) else shipped_bundle()
    if shipped is None:
        raise BundleMissing(f"no bundle in {folder} and none shipped; run 'python -m training.fit' to make one")
    return shipped


def active_stamp(settings: Settings) -> tuple[Any, ...]:
    """Return a value that changes when another bundle becomes active, the active one is replaced, or the catalogue is.

    Only files' times, sizes and numbers are read: it costs microseconds and never raises."""
    places = () if settings.bundle is not None else (registry_folder(settings), *_earlier_registry(settings))
    try:
        folder: Path | None = active_bundle(settings)
    except BundleError:
        folder = None
    files = [place / ACTIVE_FILE for place in places]
    files += [folder / MANIFEST] if folder is not None else []
    files += [settings.catalogue] if settings.catalogue is not None else []
    return (str(folder), *map(_stamp, files))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _earlier_registry(settings: Settings) -> tuple[Path, ...]:
    return (CHECKOUT / "models",) if settings.models_dir is None and (CHECKOUT / "pyproject.toml").is_file() else ()


@contextmanager
def registry_lock(models_dir: Path) -> Iterator[None]:
    """Hold the lock under which bundles are installed, promoted and rolled back.

    Raises `StoreError` if the registry cannot be written."""
    try:
        with file_lock(models_dir / LOCK_FILE):
            yield
    except OSError as error:
        raise StoreError(
            f"cannot write the bundle registry {models_dir}: {reason(error)}; set ROUTER_ML_MODELS_DIR to a folder of "
            "yours, or check its permissions"
        ) from error


def find_bundle(settings: Settings, models_dir: Path, given: str) -> Path:
    """Return the folder of a bundle given by its name or as a folder. Raises `BundleMissing` if there is none."""
    folder = Path(given)
    named = [place / given for place in (models_dir, *_earlier_registry(settings))] if folder.name == given else []
    found = next((place for place in (*named, folder) if _is_bundle(place)), None)
    if found is None:
        raise BundleMissing(
            f"no bundle {given!r} in {models_dir} or at that path; 'router-ml promote' lists those there are"
        )
    return found


def promote(models_dir: Path, bundle: Path | str, check: Callable[[Path], object]) -> ActiveBundle:
    """Make a bundle of the registry active, and install it there first where it lies elsewhere.

    `check` is called with its folder and raises where it cannot serve. Raises `BundleError`, what `check` raises, and
    `StoreError` where the registry cannot be written."""
    source = Path(bundle) if Path(bundle).name != str(bundle) else models_dir / bundle
    with registry_lock(models_dir):
        folder = models_dir / source.name
        if source.absolute() != folder.absolute():
            install(source, folder)
        elif folder.is_symlink():
            raise BundleError(f"{folder} is a symbolic link, and could change after it was checked; copy the bundle")
        check(folder)
        current = read_active(models_dir) or ActiveBundle(DEFAULT)
        if current.active == folder.name:
            write_active(models_dir, current)
            return current
        older = (current.previous, *current.older) if current.previous else ()
        active = ActiveBundle(folder.name, current.active, current.shadow, older[:REMEMBERED])
        write_active(models_dir, active)
        return active


def install(source: Path, target: Path) -> None:
    """Copy a bundle's own files into a new folder of the registry, whole or not at all.

    A bundle of the same content may be there already. Raises `BundleError` if the bundle is unsound, or another one
    bears its name."""
    bundle = load_bundle(source)
    if target.exists():
        if load_bundle(target).digest == bundle.digest:
            return
        raise BundleError(f"{target} is another bundle of that name; rename the folder {source} and promote it again")
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as scratch:
        copy = Path(scratch) / "bundle"
        copy.mkdir(mode=target.parent.stat().st_mode & 0o755)
        for name in (*bundle.manifest["files"], MANIFEST):
            atomic_write(copy / name, (source / name).read_bytes(), mode_within(copy))
        load_bundle(copy)  # what was copied is what was checked
        copy.rename(target)


def replace_bundle(folder: Path, target: Path) -> None:
    """Move a finished bundle into the registry, replacing one of the same name."""
    folder.chmod(target.parent.stat().st_mode & 0o755)
    for path in folder.iterdir():
        path.chmod(mode_within(folder))
    with registry_lock(target.parent):
        aside = folder.parent / "replaced"
        with suppress(FileNotFoundError):
            target.rename(aside)
        folder.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def roll_back(models_dir: Path) -> ActiveBundle:
    """Return to the bundle that was active before, one further back each time.

    Raises `InputError` if there was none, and `BundleError` if it cannot be used any more."""
    with registry_lock(models_dir):
        current = read_active(models_dir)
        if current is None:
            raise InputError(f"{models_dir}: nothing was promoted yet, so there is nothing to roll back to; {_HINT}")
        if current.previous is None:
            raise InputError(
                f"{models_dir}: nothing is further back than {current.active}; "
                "'router-ml promote BUNDLE' makes any bundle active"
            )
        older = current.older
        before = replace(current, active=current.previous, previous=older[0] if older else None, older=older[1:])
        if before.active == DEFAULT and not (models_dir / DEFAULT).exists() and shipped_bundle() is not None:
            clear_active(models_dir)
            return before
        load_bundle(models_dir / before.active)
        write_active(models_dir, before)
        return before


@dataclass(frozen=True, slots=True)
class Listed:
    """A bundle of a registry as a list shows it; `problem` says why it cannot be read."""

    folder: str
    state: str  # active, retired or candidate; unusable
    manifest: dict[str, Any]
    problem: str = ""


def bundles_of(models_dir: Path) -> list[Listed]:
    """Return every bundle of a registry, oldest first; an unsound one hides no other."""
    try:
        active = read_active(models_dir)
        folders = sorted(path for path in models_dir.iterdir() if not path.name.startswith(".") and _is_bundle(path))
    except (BundleError, OSError):
        active, folders = None, sorted(path.parent for path in models_dir.glob(f"*/{MANIFEST}"))
    return sorted((_listed(folder, active) for folder in folders), key=lambda b: str(b.manifest.get("created_at", "")))


def _listed(folder: Path, active: ActiveBundle | None) -> Listed:
    name = folder.name
    is_active = name == (active.active if active else DEFAULT)
    retired = active is not None and name in (active.previous, *active.older)
    state = "active" if is_active else "retired" if retired else "candidate"
    try:
        return Listed(name, state, read_manifest(folder))
    except BundleError as error:
        return Listed(name, f"{state}, unusable" if is_active else "unusable", {}, str(error))
