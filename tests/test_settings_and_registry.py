"""Settings from the environment, and which bundle is the active one."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from router_ml import errors
from router_ml.bundles import registry
from router_ml.bundles.registry import ActiveBundle, active_bundle, read_active, write_active
from router_ml.errors import BundleCorrupt, BundleMissing, RouterError, SettingsError
from router_ml.settings import CHECKOUT, Settings, _temporary_state, load_settings, without_credentials


def test_without_an_environment_everything_has_a_default() -> None:
    settings = load_settings({})
    assert settings == Settings(state_dir=settings.state_dir)
    assert settings.state_dir.is_absolute()


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("localhost", "http://localhost:11434"),
        ("box:8080", "http://box:8080"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("https://gpu.example/", "https://gpu.example"),
        (":11500", "http://127.0.0.1:11500"),
        ("example.com/ollama", "http://example.com:11434/ollama"),
        ("example.com:5678/ollama/", "http://example.com:5678/ollama"),
        ("example.com:", "http://example.com:11434"),
        ("http://0.0.0.0.nip.example:1", "http://0.0.0.0.nip.example:1"),
        ("[::1]", "http://[::1]:11434"),
        ("https://[2001:db8::1]/a", "https://[2001:db8::1]/a"),
        ("https://carol:p%40ss@gpu.example:444/", "https://carol:p%40ss@gpu.example:444"),
        ("HTTP://Box", "http://box"),
        ("'box:1'", "http://box:1"),
    ],
)
def test_hosts_are_read_as_ollama_reads_them(given: str, host: str) -> None:
    assert load_settings({"OLLAMA_HOST": given}).ollama_host == host


@pytest.mark.parametrize(
    "given",
    ["http://localhost:99999", "::1", "[::bad", "ftp://x", "http://", "a b", "h\n", "file:///etc/passwd",
     "http://carol:secret@h:99999", "http://carol:se/secret@h", "carol:secret@h:x"],
)  # fmt: skip
def test_a_host_that_is_none_is_named_without_its_password(given: str) -> None:
    with pytest.raises(SettingsError, match="OLLAMA_HOST must be") as caught:
        load_settings({"OLLAMA_HOST": f" {given} " if given != "h\n" else "h\nx"})
    assert "secret" not in str(caught.value)


def test_passwords_of_urls_are_not_printed() -> None:
    settings = load_settings({
        "OLLAMA_HOST": "http://carol:secret@h", "ROUTER_ML_EVENTS": "postgresql://u:secret@db/x",
        "ROUTER_ML_ALERT_WEBHOOK": "https://u:secret@hook",
    })  # fmt: skip
    assert settings.ollama_host == "http://carol:secret@h"
    assert "secret" not in repr(settings)
    assert without_credentials("http://carol:se@cret@h:1/a?key=secret") == "http://h:1/a"
    assert without_credentials("carol:secret@h") == "h"
    assert without_credentials("http://carol:sec?ret#x@h/p") == "http://h/p"
    assert without_credentials("http://carol:sec/ret@h:1/p") == "http://h:1/p"
    assert without_credentials("http://[::1]:80/a@b") == "http://[::1]:80/a@b"


def test_without_a_home_state_goes_to_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    squatted = tmp_path / f"router_ml-{os.getuid()}"
    squatted.symlink_to(tmp_path)  # somebody else was there first
    fresh = _temporary_state.__wrapped__()
    assert (fresh.parent, fresh.lstat().st_mode & 0o777) == (tmp_path, 0o700)
    assert fresh != squatted
    squatted.unlink()
    assert _temporary_state.__wrapped__() == squatted == _temporary_state.__wrapped__()
    assert squatted.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SettingsError, match="ROUTER_ML_BUNDLE must be a path"):
        load_settings({"ROUTER_ML_BUNDLE": "~/x", "ROUTER_ML_STATE_DIR": "/tmp"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROUTER_ML_PRELOAD", "of"),
        ("ROUTER_ML_KEEP_TEXT", "2"),
        ("ROUTER_ML_THREADS", "99999"),
        ("ROUTER_ML_STATE_DIR", "a\0b"),
        ("ROUTER_ML_ALERT_WEBHOOK", "file:///x"),
        ("ROUTER_ML_THREADS", "0"),
        ("ROUTER_ML_THREADS", "two"),
        ("ROUTER_ML_THREADS", "²"),
        ("ROUTER_ML_THREADS", "9" * 5000),
        ("ROUTER_ML_PARALLEL", "-1"),
        ("ROUTER_ML_DEADLINE_S", "nan"),
        ("ROUTER_ML_DEADLINE_S", "0"),
        ("ROUTER_ML_DEADLINE_S", "inf"),
        ("ROUTER_ML_STICK_MARGIN", "much"),
        ("ROUTER_ML_DECISION_CACHE", "1.5"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings({name: value})


def test_empty_variables_count_as_unset() -> None:
    names = ["ROUTER_ML_BUNDLE", "ROUTER_ML_POLICY", "ROUTER_ML_THREADS", "OLLAMA_HOST", "ROUTER_ML_LAST_RESORT"]
    assert load_settings(dict.fromkeys(names, "")) == load_settings({})
    assert load_settings({"ROUTER_ML_LAST_RESORT": "None"}).last_resort is None
    assert not load_settings({"ROUTER_ML_KEEP_TEXT": "Off"}).keep_text
    assert load_settings({"ROUTER_ML_KEEP_TEXT": "yes"}).keep_text
    assert load_settings({"ROUTER_ML_KEEP": "Features"}).keep == "features"
    assert load_settings({"ROUTER_ML_KEEP": "none", "ROUTER_ML_KEEP_TEXT": "1"}).keep == "none"  # the newer one counts
    with pytest.raises(SettingsError, match="ROUTER_ML_KEEP must be none, features or text"):
        load_settings({"ROUTER_ML_KEEP": "words"})


def _bundle(models_dir: Path, name: str) -> Path:
    (models_dir / name).mkdir(parents=True)
    (models_dir / name / "manifest.json").write_text("{}")
    return models_dir / name


def test_the_order_in_which_bundles_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = _bundle(tmp_path / "packaged", "default")
    monkeypatch.setattr(registry, "PACKAGED_BUNDLES", packaged.parent)
    models = tmp_path / "models"
    settings = Settings(models_dir=models)
    assert active_bundle(settings) == packaged
    shipped = _bundle(models, "default")
    assert active_bundle(settings) == shipped
    write_active(models, ActiveBundle("new", "default"))
    assert active_bundle(settings) == models / "new"
    assert active_bundle(Settings(models_dir=models, bundle=tmp_path / "mine")) == tmp_path / "mine"


def test_no_bundle_anywhere_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PACKAGED_BUNDLES", tmp_path / "none")
    assert active_bundle(Settings(models_dir=tmp_path)) == CHECKOUT / "models" / "default"  # shipped with a checkout
    monkeypatch.setattr(registry, "CHECKOUT", tmp_path / "none")
    with pytest.raises(BundleMissing, match=r"training\.fit"):
        active_bundle(Settings(models_dir=tmp_path))


def test_the_active_bundle_survives_a_round_trip(tmp_path: Path) -> None:
    assert read_active(tmp_path) is None
    active = ActiveBundle("b", "a", "c", ("x", "y"))
    write_active(tmp_path / "new", active)
    assert read_active(tmp_path / "new") == active
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["active.json"]


@pytest.mark.parametrize("value", ["", "{", "[]", "5", "{}", '{"active": 5}', '{"active": "../x"}', '{"active": ""}',
                                   '{"active": "a", "previous": 7}', '{"active": "a", "older": "bc/"}'])  # fmt: skip
def test_an_unreadable_active_file_is_corrupt(tmp_path: Path, value: str) -> None:
    (tmp_path / "active.json").write_text(value)
    with pytest.raises(BundleCorrupt, match=r"active\.json"):
        read_active(tmp_path)


def test_every_error_has_one_root_and_stands_in_the_tree() -> None:
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert all(issubclass(kind, RouterError) for kind in kinds)
    assert errors.__doc__ is not None
    assert all(kind.__name__ in errors.__doc__ for kind in kinds)
    assert issubclass(errors.InputError, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        errors.RowError("q.jsonl", 3, "label", "is no label"),
        errors.ContextError("must be a list", "tools"),
        errors.Overloaded("busy", 1.5),
        errors.AttemptsFailed("all failed", ["a"]),
        errors.DeadlineExceeded("late"),
        errors.BundleMissing("none"),
    ],
)
def test_errors_come_back_from_another_process_as_they_were(error: RouterError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_any_value_can_be_shown_in_a_message() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    assert [errors.shown(value) for value in ("x", 10**5000)] == ["'x'", "a int"]
    assert all(len(errors.shown(value)) < 200 for value in (deep, "y" * 10**6, {"k": "v" * 999}))


def test_row_errors_name_their_place() -> None:
    error: Any = errors.RowError("q.jsonl", 7, "label", "must be one of a, b")
    assert str(error) == "q.jsonl:7: field 'label': must be one of a, b"
    assert json.dumps([error.file, error.line, error.field]) == '["q.jsonl", 7, "label"]'
