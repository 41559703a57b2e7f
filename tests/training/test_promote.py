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
from training.promote import listing, main, promote, roll_back


@pytest.fixture
def bundles(tiny_bundle: Path, tmp_path: Path) -> Path:
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_bundle.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("router_ml.experiments.mlflow_store.CHECKOUT", tmp_path / "nowhere")  # nor mlruns of who tests
    monkeypatch.chdir(tmp_path)


def test_a_promoted_bundle_is_active_and_the_one_before_is_remembered(bundles: Path) -> None:
    promote(bundles, "first")
    assert promote(bundles, "second") == ActiveBundle("second", "first", older=("default",))
    assert read_active(bundles) == ActiveBundle("second", "first", older=("default",))


def test_each_rollback_goes_one_further_back_until_nothing_is_left(bundles: Path) -> None:
    shutil.copytree(bundles / "first", bundles / "default")
    for name in ("first", "second", "first"):
        promote(bundles, name)
    assert [roll_back(bundles).active for _ in range(3)] == ["second", "first", "default"]
    with pytest.raises(InputError, match="nothing is further back than default"):
        roll_back(bundles)
    assert read_active(bundles) == ActiveBundle("default")
    promote(bundles, "second")
    assert roll_back(bundles).active == "default"


def test_a_registry_of_an_older_version_goes_back_once(bundles: Path) -> None:
    (bundles / "active.json").write_text('{"active": "second", "previous": "first", "shadow": null}')
    assert roll_back(bundles) == ActiveBundle("first")


def test_rolling_back_to_the_shipped_bundle_which_is_in_no_registry(bundles: Path) -> None:
    promote(bundles, "second")
    assert roll_back(bundles).active == "default"
    assert read_active(bundles) is None


def test_promoting_twice_does_not_forget_the_one_before(bundles: Path) -> None:
    promote(bundles, "first")
    promote(bundles, "second")
    assert promote(bundles, "second").previous == "first"


def test_a_damaged_bundle_is_not_promoted(bundles: Path) -> None:
    promote(bundles, "first")
    encoder = bundles / "second" / "encoder.onnx"
    encoder.write_bytes(encoder.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleCorrupt, match="SHA-256"):
        promote(bundles, "second")
    assert read_active(bundles) == ActiveBundle("first", "default")


def test_a_bundle_that_is_not_there_is_named(bundles: Path) -> None:
    with pytest.raises(BundleMissing, match="third"):
        promote(bundles, "third")


def test_nothing_to_roll_back_to_is_an_error(bundles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="nothing was promoted"):
        roll_back(bundles)
    assert main(["--rollback", "--models-dir", str(bundles)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_listing_shows_states(bundles: Path) -> None:
    promote(bundles, "first")
    promote(bundles, "second")
    states = {line.split()[0]: line.split()[1] for line in listing(bundles).splitlines()[1:]}
    assert states == {"first": "retired", "second": "active"}


def test_a_folder_elsewhere_is_installed_where_the_running_package_reads(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROUTER_ML_MODELS_DIR", raising=False)
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    registry = tmp_path / "state" / "models"
    assert main([str(bundles / "second")]) == 0
    assert f"active: second in {registry}" in capsys.readouterr().out
    assert active_bundle(load_settings()) == registry / "second"
    assert not (bundles / "active.json").exists()
    private = {path.name: path.stat().st_mode & 0o077 for path in [registry, *registry.rglob("*")]}
    assert set(private.values()) == {0}
    assert main([str(bundles / "second")]) == 0  # the same content again


def test_another_bundle_of_the_same_name_is_not_overwritten(bundles: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    promote(registry, bundles / "second")
    (bundles / "second" / "NOTICE").write_text("another")
    write_manifest(bundles / "second", {"name": "tiny"})
    with pytest.raises(BundleError, match="another bundle of that name"):
        promote(registry, bundles / "second")
    assert sorted(path.name for path in registry.iterdir()) == [".lock", "active.json", "second"]


def test_a_linked_bundle_is_not_promoted(bundles: Path) -> None:
    (bundles / "linked").symlink_to(bundles / "first")
    with pytest.raises(BundleError, match="symbolic link"):
        promote(bundles, "linked")


def test_a_bad_bundle_hides_no_other_from_the_list(bundles: Path) -> None:
    manifest = json.loads((bundles / "first" / "manifest.json").read_text())
    for change in ({"metrics": []}, {"metrics": {"test/macro_f1": "high"}}, {"format": 9}, {"files": {}}):
        (bundles / "first" / "manifest.json").write_text(json.dumps(manifest | change))
        assert "second" in listing(bundles)
    assert "unusable" in listing(bundles)


def _promote_often(bundles: Path, name: str) -> None:
    for _ in range(20):
        registry_module.promote(bundles, name, lambda folder: None)


def test_promotions_at_once_lose_none(bundles: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(_promote_often, bundles, name) for name in ("first", "second")]:
            job.result()
    active = read_active(bundles)
    assert active is not None
    names = [active.active, active.previous, *active.older]
    assert names[-1] == "default"
    assert all(one != other for one, other in pairwise(names))  # each change is there, and none twice
