"""A running process takes a promoted bundle, and refuses a bad one."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from router_ml import select_model
from router_ml.bundles.format import MANIFEST, write_manifest
from router_ml.bundles.registry import ActiveBundle, active_stamp, write_active
from router_ml.decide.api import DEFAULT
from router_ml.decide.reload import LiveRouter, Reloader
from router_ml.decide.router import Router
from router_ml.errors import BundleCorrupt
from router_ml.settings import Settings, load_settings
from tests.timing import Stopwatch, until

WITHIN_S = 2.0


@pytest.fixture
def registry(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry with the bundles `one` and `two`, of which `one` is active."""
    for name in ("one", "two"):
        folder = Path(shutil.copytree(tiny_bundle, tmp_path / name))
        write_manifest(folder, {**json.loads((folder / MANIFEST).read_text()), "name": name})
    write_active(tmp_path, ActiveBundle("one"))
    monkeypatch.setenv("ROUTER_ML_MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("ROUTER_ML_RELOAD_S", "0.2")
    DEFAULT.reset()
    yield tmp_path
    DEFAULT.reset()


def live(settings: Settings) -> LiveRouter:
    return LiveRouter(
        Router.load(settings=settings),
        lambda: Router.load(settings=settings),
        lambda: active_stamp(settings),
        settings.reload_s,
    )


def soon(condition: Callable[[], object]) -> None:
    """Wait for what must come within the time that `promote` states."""
    with Stopwatch() as watch:
        until(condition)
    assert watch.s < WITHIN_S


def test_a_promoted_bundle_decides_and_the_cache_of_the_one_before_does_not(registry: Path) -> None:
    assert select_model("check email").bundle.startswith("one")
    assert select_model("check email").bundle.startswith("one")
    write_active(registry, ActiveBundle("two", "one"))
    soon(lambda: select_model("check email").bundle.startswith("two"))


def test_a_bundle_that_does_not_verify_is_refused_once_and_the_last_good_one_stays(
    registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = live(load_settings())
    (registry / "two" / "heads.npz").write_bytes(b"no arrays")
    write_active(registry, ActiveBundle("two", "one"))
    soon(lambda: router.refused)
    assert router.name.startswith("one")
    assert router.decide("check email").bundle.startswith("one")
    time.sleep(0.6)
    assert sum("is refused" in record.message for record in caplog.records) == 1
    write_active(registry, ActiveBundle("one"))
    soon(lambda: not router.refused)
    router.close()


def test_under_64_threads_no_request_fails_and_no_decision_is_mixed(registry: Path) -> None:
    """A decision of `two` has the models of two's catalogue, one of `one` those of one's."""
    folder = registry / "two"
    catalogue = json.loads((folder / "catalogue.json").read_text()) if (folder / "catalogue.json").exists() else None
    if catalogue:
        for model in catalogue["models"]:
            model["name"], model["aliases"] = f"{model['name']}-two", []
        (folder / "catalogue.json").write_text(json.dumps(catalogue))
        manifest = json.loads((folder / MANIFEST).read_text())
        write_manifest(folder, {key: value for key, value in manifest.items() if key != "files"})
    router = live(load_settings())
    stop, seen = threading.Event(), Counter[tuple[str, bool]]()

    def ask(i: int) -> list[tuple[str, bool]]:
        out = []
        while not stop.is_set():
            decision = router.decide(f"check email {i}")
            out.append((decision.bundle[:3], all(c.model.endswith("-two") for c in decision.ranked)))
        return out

    with ThreadPoolExecutor(64) as pool:
        asked = [pool.submit(ask, i) for i in range(64)]
        time.sleep(0.2)
        write_active(registry, ActiveBundle("two", "one"))
        until(lambda: router.name.startswith("two"))
        time.sleep(0.2)
        stop.set()
        for future in asked:
            seen.update(future.result())
    assert {bundle for bundle, _ in seen} == {"one", "two"}
    if catalogue:
        assert set(seen) == {("one", False), ("two", True)}
    router.close()


def test_a_new_catalogue_is_taken_with_the_same_bundle(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "catalogue.toml"
    entry = '[[model]]\nname = "{}"\n[model.prior]\nlatency_s = 1.0\nsuccess = 0.9\n'
    file.write_text(entry.format("a"))
    monkeypatch.setenv("ROUTER_ML_CATALOGUE", str(file))
    changes: list[tuple[str, ...]] = []
    router = live(load_settings())
    router.on_change = lambda now: changes.append(now.catalogue.names)
    file.write_text(entry.format("a") + entry.format("b"))
    soon(lambda: changes)
    assert {"a", "b"} <= set(changes[0])
    file.write_text("no catalogue")
    soon(lambda: router.refused)
    assert "catalogue" in router.refused
    router.close()


def test_the_thread_ends_with_its_object() -> None:
    class Holder:
        def adopt(self, _: int) -> None: ...

    holder = Holder()
    reloader = Reloader(lambda: 0, lambda: 1, holder.adopt, 0.01)
    reloader.start()
    threads = {thread.name for thread in threading.enumerate()}
    assert "router_ml-reload" in threads
    del holder
    until(lambda: not any(thread.name == "router_ml-reload" for thread in threading.enumerate()))


def test_a_load_that_fails_is_tried_again_only_when_something_changed() -> None:
    stamps, loads = iter([0, 1, 1, 2]), []

    def load() -> int:
        loads.append(None)
        if len(loads) == 1:
            raise BundleCorrupt("broken")
        return 7

    class Holder:
        got = 0

        def adopt(self, value: int) -> None:
            self.got = value

    holder = Holder()
    reloader = Reloader(lambda: next(stamps), load, holder.adopt, 0.0)
    assert [reloader.check() for _ in range(3)] == [False, False, True]
    assert (len(loads), holder.got, reloader.refused) == (2, 7, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_follows_the_active_bundle_too(registry: Path) -> None:
    select_model("check email")
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            deadline = time.monotonic() + 60
            while select_model("check email").bundle[:3] != "two" and time.monotonic() < deadline:
                time.sleep(0.05)
            os.write(write, select_model("check email").bundle.encode())
        finally:
            os._exit(0)
    time.sleep(0.1)
    write_active(registry, ActiveBundle("two", "one"))
    os.waitpid(child, 0)
    assert os.read(read, 10)[:3] == b"two"


def test_the_stamp_costs_little_and_never_raises(tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path / "none", state_dir=tmp_path)
    assert active_stamp(settings) == active_stamp(settings)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "active.json").write_text("{")
    active_stamp(settings)
