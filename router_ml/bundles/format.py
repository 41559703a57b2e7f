"""A bundle: everything that was learned, as files behind a manifest. Loading one never runs code from it.

manifest.json    format version, name, data hash, metrics, and the SHA-256 and size of every other file
encoder.onnx     the sentence encoder; tokenizer.json beside it
heads.json       what the arrays mean; heads.npz: the arrays themselves (no pickled objects)
catalogue.json   profiles of models that were learned but stand in no catalogue
NOTICE           whose work the encoder rests on
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router_ml.errors import BundleCorrupt, BundleFormatError, BundleMissing
from router_ml.files import atomic_write, mode_within

FORMAT = 1
MANIFEST = "manifest.json"
ENCODER = "encoder.onnx"
TOKENIZER = "tokenizer.json"
HEADS = "heads.json"
ARRAYS = "heads.npz"
CATALOGUE = "catalogue.json"
REQUIRED = (ENCODER, TOKENIZER, HEADS, ARRAYS)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory; the encoder stays on disk until it is needed."""

    path: Path
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]  # heads.json
    arrays: Mapping[str, NDArray[Any]]  # heads.npz
    models: tuple[Mapping[str, Any], ...] = ()  # catalogue.json: entries as `catalogue.model_from` reads them

    @property
    def name(self) -> str:
        """Name and the first digits of the hash over all files: two bundles never share it."""
        return f"{self.manifest.get('name', self.path.name)}@{self.digest[:8]}"

    @property
    def digest(self) -> str:
        """SHA-256 over the names and hashes of all files."""
        files = self.manifest["files"]
        lines = "\n".join(f"{name} {files[name]['sha256']}" for name in sorted(files))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def encoder(self) -> Path:
        return self.path / ENCODER

    @property
    def tokenizer(self) -> Path:
        return self.path / TOKENIZER

    def section(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays stored under `name/`."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}


def load_bundle(path: Path | str) -> Bundle:
    """Verify and read a bundle.

    Raises `BundleMissing` where there is none, `BundleFormatError` where a newer version wrote it, and `BundleCorrupt`
    where a file is missing, truncated or not the one the manifest names."""
    path = Path(path)
    manifest = read_manifest(path)
    for name, entry in manifest["files"].items():
        _verify(path / name, entry)
    config = _read_json(path / HEADS)
    try:
        with np.load(path / ARRAYS, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy and zipfile raise a dozen kinds on files that are no archive of arrays
        raise BundleCorrupt(f"{path / ARRAYS} cannot be read: {error}; fit or copy the bundle again") from error
    models = _read_json(path / CATALOGUE).get("models", []) if CATALOGUE in manifest["files"] else []
    if not isinstance(models, list):
        raise BundleCorrupt(f"{path / CATALOGUE} does not list models; fit or copy the bundle again")
    return Bundle(path, manifest, config, arrays, tuple(models))


def read_manifest(path: Path) -> dict[str, Any]:
    """The checked manifest of the bundle in a folder. Raises as `load_bundle` does."""
    if not (path / MANIFEST).is_file():
        raise BundleMissing(f"no bundle in {path} ({MANIFEST} is missing); run 'python -m training.fit' to make one")
    manifest = _read_json(path / MANIFEST)
    version = manifest.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleCorrupt(f"{path / MANIFEST} names no format version; fit or copy the bundle again")
    if version > FORMAT:
        raise BundleFormatError(
            f"{path} has bundle format {version}, this version of router_ml reads up to {FORMAT}; upgrade router_ml"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not set(REQUIRED) <= set(files) or not all(map(_entry_is_sound, files.items())):
        raise BundleCorrupt(f"{path / MANIFEST} does not list the bundle's files; fit or copy the bundle again")
    return manifest


def _entry_is_sound(item: tuple[str, Any]) -> bool:
    name, entry = item
    return bool(_PLAIN_NAME.fullmatch(name)) and isinstance(entry, dict) and {"sha256", "bytes"} <= set(entry)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleCorrupt(f"{path} cannot be read: {error}; fit or copy the bundle again") from error
    if not isinstance(data, dict):
        raise BundleCorrupt(f"{path} must hold an object; fit or copy the bundle again")
    return data


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise BundleCorrupt(f"{path} is missing; fit or copy the bundle again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleCorrupt(f"{path} has {size} bytes instead of {entry['bytes']}; fit or copy the bundle again")
    if file_sha256(path) != entry["sha256"]:
        raise BundleCorrupt(f"{path} is not the file the manifest names (SHA-256 differs); do not trust this bundle")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest over all files in a folder, last of all, so that a killed fit leaves no half bundle."""
    names = sorted(p.name for p in path.iterdir() if p.is_file() and p.name != MANIFEST)
    files = {name: {"sha256": file_sha256(path / name), "bytes": (path / name).stat().st_size} for name in names}
    manifest = {"format": FORMAT, **fields, "files": files}
    atomic_write(path / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", mode_within(path))
    return manifest
