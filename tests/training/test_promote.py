"""Promotion: verified first, undone in one step, and followed by the champion's alias."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from router_ml.bundles.registry import ActiveBundle, read_active
from router_ml.errors import BundleCorrupt, BundleMissing, InputError
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


def test_the_command_takes_a_folder_and_points_at_it(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shelf / "second")]) == 0
    assert "active: second" in capsys.readouterr().out
    assert json.loads((shelf / "active.json").read_text())["active"] == "second"
