"""A bundle that was lost, cut, changed or forged is a typed error, and loading one never runs code from it."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router_ml.bundles.format import (
    ARRAYS,
    CATALOGUE,
    ENCODER,
    FORMAT,
    HEADS,
    MANIFEST,
    TOKENIZER,
    load_bundle,
    read_manifest,
    write_manifest,
)
from router_ml.decide.router import Router
from router_ml.errors import BundleCorrupt, BundleError, BundleFormatError, BundleMissing, EncoderError

FILES = (ENCODER, TOKENIZER, HEADS, ARRAYS, CATALOGUE)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def _change_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def _sign_again(bundle: Path) -> None:
    """What a forger does: new files, and a manifest that fits them."""
    write_manifest(bundle, {"name": "forged", "metrics": {}})


def test_a_sound_bundle_loads(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    assert loaded.name == f"tiny@{loaded.digest[:8]}"
    assert len(loaded.models) == 3
    assert loaded.section("complexity")["bias"].shape == (4,)


def test_the_name_follows_the_content(bundle: Path) -> None:
    before = load_bundle(bundle).name
    (bundle / "NOTICE").write_text("another")
    _sign_again(bundle)
    assert load_bundle(bundle).name.split("@")[1] != before.split("@")[1]


def test_no_folder_and_no_manifest_are_missing(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    for path in (tmp_path / "nowhere", bundle, bundle / ENCODER):
        with pytest.raises(BundleMissing, match=r"training\.fit"):
            load_bundle(path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleCorrupt, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file(bundle: Path, name: str, share: float) -> None:
    size = (bundle / name).stat().st_size
    os.truncate(bundle / name, int(size * share))
    with pytest.raises(BundleCorrupt, match=name):
        load_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(bytes(data))
    with pytest.raises(BundleCorrupt, match="SHA-256"):
        load_bundle(bundle)


def test_a_newer_format_says_upgrade(bundle: Path) -> None:
    _change_manifest(bundle, lambda m: m.update(format=FORMAT + 1))
    with pytest.raises(BundleFormatError, match="upgrade router_ml"):
        load_bundle(bundle)


@pytest.mark.parametrize("version", [None, "1", 1.5, [], True])
def test_a_format_that_is_no_number(bundle: Path, version: Any) -> None:
    _change_manifest(bundle, lambda m: m.update(format=version))
    with pytest.raises(BundleCorrupt):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", ".hidden", "a\\b", "x\n", "x\x00"])
def test_a_manifest_that_points_outside_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    _change_manifest(bundle, lambda m: m["files"].update({name: {"sha256": "0" * 64, "bytes": 6}}))
    with pytest.raises(BundleCorrupt, match="does not list"):
        load_bundle(bundle)


@pytest.mark.parametrize("files", [None, [], {}, {ENCODER: {}}, "encoder.onnx"])
def test_a_manifest_that_does_not_list_the_files(bundle: Path, files: Any) -> None:
    _change_manifest(bundle, lambda m: m.update(files=files))
    with pytest.raises(BundleCorrupt):
        load_bundle(bundle)


@pytest.mark.parametrize("entry", [None, [], {"sha256": 5, "bytes": "x"}, {"sha256": None, "bytes": None}])
def test_a_manifest_with_an_odd_entry(bundle: Path, entry: Any) -> None:
    _change_manifest(bundle, lambda m: m["files"].update({HEADS: entry}))
    with pytest.raises(BundleCorrupt):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"format": 1' + b"9" * 5000 + b"}"]
)
def test_a_manifest_that_is_no_json_object(bundle: Path, text: bytes) -> None:
    (bundle / MANIFEST).write_bytes(text)
    with pytest.raises(BundleCorrupt) as caught:
        load_bundle(bundle)
    assert "\n" not in str(caught.value)


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trap,))


def test_pickled_objects_are_refused_and_never_run(bundle: Path, tmp_path: Path) -> None:
    trap = tmp_path / "it-ran"
    with np.load(bundle / ARRAYS) as archive:
        arrays = dict(archive)
    np.savez(bundle / ARRAYS, **arrays, trap=np.array([_Bomb(trap)], dtype=object))
    _sign_again(bundle)
    with pytest.raises(BundleCorrupt, match=ARRAYS):
        load_bundle(bundle)
    (bundle / ARRAYS).write_bytes(pickle.dumps(_Bomb(trap)))
    _sign_again(bundle)
    with pytest.raises(BundleCorrupt, match=ARRAYS):
        load_bundle(bundle)
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Bomb(trap)))  # noqa: S301
    assert trap.exists()  # so the trap works


def _plain_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def _zip(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name + ".npy", data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", _plain_array(), _zip(), _zip(a=b"x"), _zip(a=_plain_array()[:70])]
)
def test_arrays_of_another_kind(bundle: Path, data: bytes) -> None:
    (bundle / ARRAYS).write_bytes(data)
    _sign_again(bundle)
    with pytest.raises(BundleError):
        Router.load(bundle)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"table": []},
        {"table": None},
        {"table": 5},
        {"table": ["other"]},
    ],
)
def test_heads_of_other_features(bundle: Path, config: dict[str, Any]) -> None:
    (bundle / HEADS).write_text(json.dumps(config))
    _sign_again(bundle)
    with pytest.raises(BundleCorrupt):
        Router.load(bundle)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("complexity/weights", np.zeros((4, 3), np.float32)),
        ("complexity/weights", np.zeros(4, np.float32)),
        ("complexity/bias", np.zeros(3, np.float32)),
        ("complexity/bias", np.array(["a", "b", "c", "d"])),
        ("self_check/vectors", np.zeros((2, 3), np.float32)),
        ("self_check/vectors", np.array(["a", "b"])),
    ],
)
def test_arrays_that_do_not_fit_together(bundle: Path, name: str, value: Any) -> None:
    with np.load(bundle / ARRAYS) as archive:
        arrays = dict(archive)
    np.savez(bundle / ARRAYS, **{**arrays, name: value})
    _sign_again(bundle)
    with pytest.raises(BundleCorrupt):
        Router.load(bundle)


@pytest.mark.parametrize(
    "models", [[{}], [5], [{"name": 5}], [{"name": "x", "prior": {"latency_s": "fast"}}], 5, "x"]
)
def test_a_catalogue_that_cannot_be_read(bundle: Path, models: Any) -> None:
    (bundle / CATALOGUE).write_text(json.dumps({"models": models}))
    _sign_again(bundle)
    with pytest.raises(BundleCorrupt):
        Router.load(bundle)


@pytest.mark.parametrize("name", [ENCODER, TOKENIZER])
@pytest.mark.parametrize("data", [b"", b"{}", b"not a model at all"])
def test_an_encoder_that_cannot_be_read(bundle: Path, name: str, data: bytes) -> None:
    (bundle / name).write_bytes(data)
    _sign_again(bundle)
    with pytest.raises(EncoderError) as caught:
        Router.load(bundle)
    assert str(bundle) in str(caught.value)


def test_a_differing_encoder_is_said_in_every_decision(bundle: Path) -> None:
    with np.load(bundle / ARRAYS) as archive:
        arrays = dict(archive)
    np.savez(bundle / ARRAYS, **{**arrays, "self_check/vectors": arrays["self_check/vectors"] * 0.9})
    _sign_again(bundle)
    decision = Router.load(bundle).decide("check email")
    assert decision.degraded
    assert "cosine 0.9" in decision.reason


def test_the_manifest_comes_last(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text("{}")
    manifest = write_manifest(tmp_path, {"name": "x"})
    assert set(manifest["files"]) == {"heads.json"}
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(BundleCorrupt):
        read_manifest(tmp_path)  # the required files are not there
