"""A bundle: everything that was learned, as files behind a manifest. Loading one never runs code from it.

manifest.json    format version, name, data hash, metrics, and the SHA-256 and size of every other file
encoder.onnx     the sentence encoder; tokenizer.json beside it
heads.json       what the arrays mean; heads.npz: the arrays themselves (no pickled objects)
catalogue.json   profiles of models that were learned but are in no catalogue
NOTICE           authors and licence of the encoder
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.bundles.arrays import read_arrays
from router_ml.errors import BundleCorrupt, BundleFormatError, BundleMissing, RouterError
from router_ml.files import atomic_write, mode_within, open_regular, read_regular, reason

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
TOKENIZER = "tokenizer.json"
HEADS = "heads.json"
ARRAYS = "heads.npz"
CATALOGUE = "catalogue.json"
SELF_CHECK_TEXTS = (  # their vectors are stored at export and compared at loading
    "check email",
    "turn off the kitchen lights",
    "schedule a 45 minute call with Dana and Luis on Thursday after 3pm",
    "find a free hour with Dana and mail her the agenda",
)
_READ_HERE = (HEADS, ARRAYS, CATALOGUE)  # the encoder and the tokenizer are read where they are run
REQUIRED = (ENCODER, TOKENIZER, HEADS, ARRAYS)
MAX_MANIFEST_BYTES, MAX_BYTES, MAX_FILES, MAX_NAME_CHARS = 4_000_000, 1 << 30, 64, 200
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAY_BE_UNKNOWN = ("outcomes/neighbour_outcomes",)  # NaN: this model was not tried on this query


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory, but for its encoder, which is loaded from disk."""

    path: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]  # heads.json
    arrays: Mapping[str, NDArray[Any]]  # heads.npz
    models: tuple[Mapping[str, Any], ...] = ()  # catalogue.json: entries as `catalogue.model_from` reads them

    @property
    def name(self) -> str:
        """Return the name and the first digits of the hash over all files: two bundles never share it."""
        name = self.manifest.get("name")
        return f"{name if isinstance(name, str) and len(name) < MAX_NAME_CHARS else self.path.name}@{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """Return the SHA-256 over the names and hashes of all files."""
        files = self.manifest["files"]
        lines = "\n".join(f"{name} {files[name]['sha256']}" for name in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def encoder(self) -> Path:
        """Return the path of the encoder's ONNX model."""
        return self.path / ENCODER

    @property
    def tokenizer(self) -> Path:
        """Return the path of the tokenizer's JSON file."""
        return self.path / TOKENIZER

    def section(self, name: str) -> dict[str, NDArray[Any]]:
        """Return the arrays stored under `name/`."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}


def load_bundle(path: Path | str) -> Bundle:
    """Verify and read a bundle.

    Raises `BundleMissing` if there is none, `BundleFormatError` if a newer version wrote it, and `BundleCorrupt`
    where a file is missing, truncated, not the one the manifest names or of the wrong content."""
    path = Path(path)
    with corrupt_bundle(path):
        manifest = read_manifest(path)
        files = {name: _verified(path / name, entry) for name, entry in manifest["files"].items()}
        config = _json_object(path / HEADS, files[HEADS])
        try:
            arrays = read_arrays(files[ARRAYS])
        except Exception as error:  # numpy and zipfile raise a dozen kinds on files that are not an archive of arrays
            raise _corrupt(path / ARRAYS, f"cannot be read: {reason(error)}") from error
        _check_finite(path / ARRAYS, arrays)
        models = _json_object(path / CATALOGUE, files[CATALOGUE]).get("models", []) if CATALOGUE in files else []
        if not isinstance(models, list):
            raise _corrupt(path / CATALOGUE, "does not list models")
        return Bundle(path, manifest, _without_hosts(config), arrays, tuple(map(_without_hosts, models)))


@contextmanager
def corrupt_bundle(path: Path) -> Iterator[None]:
    """Turn every error while a bundle is read or tried, panics of native code included, into `BundleCorrupt`.

    Errors of this project, interrupts and exits pass as they are."""
    try:
        yield
    except (RouterError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise _corrupt(path, f"cannot be used: {type(error).__name__}: {reason(error)}") from error


def _corrupt(path: Path, problem: str) -> BundleCorrupt:
    return BundleCorrupt(f"{path} {problem}; fit or copy the bundle again")


def _without_hosts(entry: Any) -> Any:
    """Return a catalogue entry, or a configuration with such entries, without hosts: a bundle redirects no request."""
    if isinstance(entry, dict):
        return {key: _without_hosts(value) for key, value in entry.items() if key != "hosts"}
    return [_without_hosts(value) for value in entry] if isinstance(entry, list) else entry


def _check_finite(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse NaN and infinity where they have no meaning; thresholds of a forest may be infinite."""
    for name, array in arrays.items():
        if array.dtype.kind != "f" or name in _MAY_BE_UNKNOWN:
            continue
        if np.isnan(array).any() or not (name.startswith("outcomes/") or np.isfinite(array).all()):
            raise _corrupt(path, f"holds NaN or infinity in {name!r:.60}")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the checked manifest of the bundle in a folder. Raises as `load_bundle` does."""
    try:
        data = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleMissing(
            f"no bundle in {path} ({MANIFEST} is missing); run 'python -m training.fit' to make one"
        ) from None
    except (OSError, ValueError) as error:
        raise _corrupt(path / MANIFEST, f"cannot be read: {reason(error)}") from error
    manifest = _json_object(path / MANIFEST, data)
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise _corrupt(path / MANIFEST, "names no format version")
    if version > FORMAT:
        raise BundleFormatError(
            f"{path} has bundle format {version}, this version of router_ml reads up to {FORMAT}; upgrade router_ml"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not set(REQUIRED) <= set(files) or not all(map(_entry_is_sound, files.items())):
        raise _corrupt(path / MANIFEST, "does not list the bundle's files")
    if len(files) > MAX_FILES or sum(entry["bytes"] for entry in files.values()) > MAX_BYTES:
        raise _corrupt(path / MANIFEST, f"lists more than {MAX_FILES} files or {MAX_BYTES:,} bytes")
    return manifest


def _entry_is_sound(item: tuple[str, Any]) -> bool:
    name, entry = item
    return (
        len(name) <= MAX_NAME_CHARS
        and bool(_PLAIN_NAME.fullmatch(name))
        and isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and type(entry.get("bytes")) is int
        and entry["bytes"] >= 0
    )


def manifest_metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a manifest; values that are not finite numbers are left out."""
    metrics = manifest.get("metrics")
    if not isinstance(metrics, dict):
        return {}
    numbers = ((name, value) for name, value in metrics.items() if isinstance(value, int | float))
    return {name: float(value) for name, value in numbers if abs(value) < 1e300}


def _json_object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"cannot be read: {reason(error)}") from error
    if not isinstance(data, dict):
        raise _corrupt(path, "must hold an object")
    return data


def _verified(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Return the content of a file, which must have the size and hash that the manifest names.

    Files that are not read here are not held in memory: b"" stands for them."""
    try:
        with open_regular(path, MAX_BYTES) as (handle, size):
            data = handle.read(size) if path.name in _READ_HERE else b""
            digest = hashlib.sha256(data) if data else hashlib.file_digest(handle, "sha256")
    except FileNotFoundError:
        raise _corrupt(path, "is missing") from None
    except (OSError, ValueError) as error:
        raise _corrupt(path, f"cannot be read: {reason(error)}") from error
    if size != entry["bytes"]:
        raise _corrupt(path, f"has {size} bytes instead of {entry['bytes']}")
    if digest.hexdigest() != entry["sha256"]:
        raise BundleCorrupt(f"{path} differs from the manifest (SHA-256); do not use this bundle, fit or copy it again")
    return data


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest over all files in a folder, last of all, so that a killed fit leaves no half bundle.

    Whoever may read the folder may read the files: in a private folder their owner only."""
    for path_of_file in path.iterdir():
        if path_of_file.is_file() and not path_of_file.is_symlink():
            path_of_file.chmod(mode_within(path))
    names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name != MANIFEST)
    files = {name: {"sha256": file_sha256(path / name), "bytes": (path / name).stat().st_size} for name in names}
    manifest = {"format": FORMAT, **fields, "files": files}
    atomic_write(path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", mode_within(path))
    return manifest
