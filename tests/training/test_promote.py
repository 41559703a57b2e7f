"""Promotion: verified first, undone in one step, and followed by the champion's alias."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from router_ml.bundles import registry as registry_module
from router_ml.bundles.format import write_manifest
from router_ml.bundles.registry import ActiveBundle, active_bundle, read_active
from router_ml.errors import BundleCorrupt, BundleError, BundleMissing, InputError
from router_ml.settings import load_settings
from training import promote as promoting
from training.promote import listing, main, promote, roll_back


@pytest.fixture
def shelf(tiny_bundle: Path, tmp_path: Path) -> Path:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_bundle.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promoting, "set_champion", lambda bundle: None)


def test_a_promoted_bundle_is_active_and_the_one_before_is_remembered(shelf: Path) -> None:
    promote(shelf, "first")
    assert promote(shelf, "second") == ActiveBundle("second", "first", older=("default",))
    assert read_active(shelf) == ActiveBundle("second", "first", older=("default",))


def test_each_rollback_goes_one_further_back_until_nothing_is_left(shelf: Path) -> None:
    shutil.copytree(shelf / "first", shelf / "default")
    for name in ("first", "second", "first"):
        promote(shelf, name)
    assert [roll_back(shelf).active for _ in range(3)] == ["second", "first", "default"]
    with pytest.raises(InputError, match="nothing is further back than default"):
        roll_back(shelf)
    assert read_active(shelf) == ActiveBundle("default")
    promote(shelf, "second")
    assert roll_back(shelf).active == "default"


def test_a_shelf_of_an_older_version_goes_back_once(shelf: Path) -> None:
    (shelf / "active.json").write_text('{"active": "second", "previous": "first", "shadow": null}')
    assert roll_back(shelf) == ActiveBundle("first")


def test_rolling_back_to_the_shipped_bundle_which_stands_on_no_shelf(shelf: Path) -> None:
    promote(shelf, "second")
    assert roll_back(shelf).active == "default"
    assert read_active(shelf) is None


def test_promoting_twice_does_not_forget_the_one_before(shelf: Path) -> None:
    promote(shelf, "first")
    promote(shelf, "second")
    assert promote(shelf, "second").previous == "first"


def test_a_damaged_bundle_is_not_promoted(shelf: Path) -> None:
    promote(shelf, "first")
    encoder = shelf / "second" / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleCorrupt, match="SHA-256"):
        promote(shelf, "second")
    assert read_active(shelf) == ActiveBundle("first", "default")


def test_a_bundle_that_is_not_there_is_named(shelf: Path) -> None:
    with pytest.raises(BundleMissing, match="third"):
        promote(shelf, "third")


def test_nothing_to_roll_back_to_is_said(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="nothing was promoted"):
        roll_back(shelf)
    assert main(["--rollback", "--models-dir", str(shelf)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_listing_shows_states(shelf: Path) -> None:
    promote(shelf, "first")
    promote(shelf, "second")
    states = {line.split()[0]: line.split()[1] for line in listing(shelf).splitlines()[1:]}
    assert states == {"first": "retired", "second": "active"}


def test_a_folder_elsewhere_is_installed_where_the_running_package_reads(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROUTER_ML_MODELS_DIR", raising=False)
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    registry = tmp_path / "state" / "models"
    assert main([str(shelf / "second")]) == 0
    assert f"active: second in {registry}" in capsys.readouterr().out
    assert active_bundle(load_settings()) == registry / "second"
    assert not (shelf / "active.json").exists()
    private = {path.name: path.stat().st_mode & 0o077 for path in [registry, *registry.rglob("*")]}
    assert set(private.values()) == {0}
    assert main([str(shelf / "second")]) == 0  # the same content again


def test_another_bundle_of_the_same_name_is_not_overwritten(shelf: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    promote(registry, shelf / "second")
    (shelf / "second" / "NOTICE").write_text("another")
    write_manifest(shelf / "second", {"name": "tiny"})
    with pytest.raises(BundleError, match="another bundle of that name"):
        promote(registry, shelf / "second")
    assert sorted(path.name for path in registry.iterdir()) == [".lock", "active.json", "second"]


def test_a_linked_bundle_is_not_promoted(shelf: Path) -> None:
    (shelf / "linked").symlink_to(shelf / "first")
    with pytest.raises(BundleError, match="symbolic link"):
        promote(shelf, "linked")


def test_a_bad_bundle_hides_no_other_from_the_list(shelf: Path) -> None:
    manifest = json.loads((shelf / "first" / "manifest.json").read_text())
    for change in ({"metrics": []}, {"metrics": {"test/macro_f1": "high"}}, {"format": 9}, {"files": {}}):
        (shelf / "first" / "manifest.json").write_text(json.dumps(manifest | change))
        assert "second" in listing(shelf)
    assert "unusable" in listing(shelf)


def _promote_often(shelf: Path, name: str) -> None:
    for _ in range(20):
        registry_module.promote(shelf, name, lambda folder: None)


def test_promotions_at_once_lose_none(shelf: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(_promote_often, shelf, name) for name in ("first", "second")]:
            job.result()
    active = read_active(shelf)
    assert active is not None
    names = [active.active, active.previous, *active.older]
    assert names[-1] == "default"
    assert all(one != other for one, other in pairwise(names))  # each change is there, and none twice
