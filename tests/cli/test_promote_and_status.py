"""Promotion in the light install, and what status says of hosts, folders and models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from router_ml.bundles.registry import active_bundle
from router_ml.cli import main
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent
from router_ml.settings import CHECKOUT, load_settings
from router_ml.terminal import format_table, source_of
from router_ml.types import Candidate, Quantiles

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROUTER_ML_BUNDLE", "ROUTER_ML_MODELS_DIR", "ROUTER_ML_CATALOGUE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")


@pytest.fixture
def host() -> Iterator[str]:
    """A server that has one model of the catalogue, and wants a password."""

    class Tags(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("authorization") == "Basic Y2Fyb2w6c2VjcmV0"  # carol:secret
            self.send_response(200 if known and self.path == "/api/tags" else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"models": [{"model": "qwen3:8b"}]}).encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Tags) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://carol:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_bundle_is_listed_promoted_and_rolled_back(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    elsewhere = Path(shutil.copytree(tiny_bundle, tmp_path / "elsewhere" / "mine"))
    registry = tmp_path / "state" / "models"
    assert main(["promote", str(elsewhere)]) == 0
    assert capsys.readouterr().out == (
        f"active: mine in {registry} (before: default); processes that run take it within two seconds\n"
    )
    shutil.rmtree(elsewhere)
    assert active_bundle(load_settings()) == registry / "mine"
    assert main(["promote"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:2] == ["mine", "active"]
    assert out[-1] == f"registry: {registry}"
    main(["status"])
    assert "served before             default; 'router-ml rollback' returns to it" in capsys.readouterr().out
    assert main(["rollback"]) == 0
    assert f"active: default in {registry}" in capsys.readouterr().out
    assert main(["promote", "--rollback"]) == 2
    assert "nothing was promoted" in capsys.readouterr().err
    assert main(["promote", "typo"]) == 2
    assert "no bundle 'typo'" in capsys.readouterr().err


def test_what_a_checkout_promotes_is_served_to_an_installed_package_elsewhere(
    tiny_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The wheel's own files in a folder of their own, as pip unpacks them, run by another process in another folder."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    shutil.copytree(CHECKOUT / "router_ml", site / "router_ml", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CHECKOUT / "models" / "default", site / "router_ml" / "bundles" / "default")
    elsewhere.mkdir()

    def served() -> str:
        code = "import router_ml; d = router_ml.select_model('check email'); print(router_ml.__file__, d.bundle)"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        found = [str(site), *(path for path in sys.path if path and Path(path).resolve() != CHECKOUT)]
        done = subprocess.run(
            [sys.executable, "-S", "-c", f"import sys; sys.path = {found!r} + sys.path\n{code}"],
            cwd=elsewhere, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        file, bundle = done.stdout.split()
        assert Path(file).is_relative_to(site)
        return bundle.partition("@")[0]

    assert served() == "default"
    assert main(["promote", str(tiny_bundle)]) == 0
    assert served() == "tiny"
    assert main(["rollback"]) == 0
    assert served() == "default"


def test_an_empty_registry_says_what_serves_and_how_to_fill_it(capsys: Capture) -> None:
    assert main(["promote"]) == 0
    assert "no bundle yet: the packaged one serves; 'python -m training.fit' makes one" in capsys.readouterr().out


def test_a_registry_that_cannot_be_written_is_one_line(tmp_path: Path, tiny_bundle: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    assert main(["promote", str(tiny_bundle), "--models-dir", str(tmp_path / "file")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "cannot write the bundle registry" in said


def test_status_names_the_models_that_no_host_has(host: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("OLLAMA_HOST", host)
    assert main(["status", "--json"]) == 0
    text = capsys.readouterr().out
    facts = json.loads(text)
    assert facts["ollama"]["models"] == ["qwen3:8b"]
    assert facts["unserved"] == ["llama3.2:3b-instruct", "qwen2.5:3b-instruct"]
    assert facts["registry"] == f"{facts['state_dir']}/models"
    assert "secret" not in text
    assert main(["status"]) == 0
    assert "secret" not in capsys.readouterr().out


def test_status_says_what_is_explored_and_what_it_costs(tmp_path: Path, capsys: Capture) -> None:
    """By hand: 1 of 4 decisions, .1 of utility and 2 s: 25.0 and 500 s for 1,000."""
    best = Candidate("best", 0.9, Quantiles(1.0, 1.0, 1.0), 0.0, 0.9)
    other = Candidate("other", 0.8, Quantiles(3.0, 3.0, 3.0), 0.0, 0.8)
    store = open_store(tmp_path / "state")
    for i in range(4):
        ranked = (best, other) if i else (other, best)
        share = 0.95 if i else 0.05
        store.append([DecisionEvent(f"d{i}", ranked[0].model, "simple", "p", "b", share, candidates=ranked)])
    store.close()
    main(["status", "--json"])
    assert json.loads(capsys.readouterr().out)["exploration"]["share"] == 0.25
    main(["status"])
    assert "25.0% of 4 decisions in 7 days; expected cost for 1,000: 25.0 of utility" in capsys.readouterr().out


def test_the_source_of_a_prediction_is_named() -> None:
    candidate = Candidate("m", 0.5, Quantiles(1.0, 2.0, 3.0), 0.0, 0.0)
    assert [source_of(candidate, learned) for learned in ((), ("m",))] == ["prior", "learned"]


def test_odd_cells_do_not_break_a_table() -> None:
    assert format_table([("a", "b"), ("x\ny", "1")]).splitlines() == ["a    b", "x y  1"]


def test_status_reads_the_prefix_of_a_host(host: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("OLLAMA_HOST", f"ollama+{host}")
    assert main(["status"]) == 0
    monkeypatch.setenv("OLLAMA_HOST", "vllm+http://gpu:8000")
    assert main(["status"]) == 1
    assert "unknown host type 'vllm'" in capsys.readouterr().out
