"""Run the ollama client's own tests through the server: python -m tests.http.ollama_python_suite [SDIST_FOLDER]

Without a folder the source archive of the installed version is fetched with pip. Each test's own HTTP server is the
host, and the client under test talks to ours, so whatever the server changed in a request or an answer fails a test.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CONFTEST = '''
import dataclasses

import pytest
from pytest_httpserver import HTTPServer

from router_ml.events.event import NullRecorder
from router_ml.http.options import ServerOptions
from router_ml.http.proxy import Proxy
from router_ml.http.service import open_service
from router_ml.settings import Settings
from tests.http.conftest import Running
from tests.serve.conftest import MODELS, PATIENT
from tests.serve.deciders import FixedDecider, catalogue_of

NOWHERE = "http://127.0.0.1:9"  # the gateway looks for hosts of its own here, not at the tests' server


class Quiet(Proxy):
    """Asks the tests' server for nothing of its own."""

    async def _refresh(self, max_age_s, wait=True):
        pass


class Behind:
    """The tests' HTTP server, whose address is that of ours in front of it."""

    def __init__(self, host, front):
        self._host, self._front = host, front

    def url_for(self, suffix):
        return self._front.url + suffix

    def __getattr__(self, name):
        return getattr(self._host, name)


@pytest.fixture
def httpserver(tmp_path):
    with HTTPServer() as host:
        options = ServerOptions(port=0, stop_s=1.0, manage_models=True)
        service = open_service(
            Settings(state_dir=tmp_path, ollama_host=NOWHERE), options, decider=FixedDecider(*MODELS),
            catalogue=catalogue_of(*MODELS), gateway_limits=PATIENT,
        )
        proxy = Quiet((host.url_for(""),), PATIENT, NullRecorder())
        front = Running(dataclasses.replace(service, proxy=proxy))
        yield Behind(host, front)
        front.stop()
'''


def main(arguments: list[str]) -> int:
    """Run the tests; pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(arguments[0]) if arguments else _fetched(Path(folder))
        tests = Path(folder) / "suite"
        tests.mkdir()
        for file in (source / "tests").glob("test_*.py"):
            (tests / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
        (tests / "conftest.py").write_text(CONFTEST, encoding="utf-8")
        root = Path(__file__).resolve().parents[2]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rA",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tests),
            str(tests),
        ]
        return subprocess.run([*command, "-o", f"pythonpath={root}"], cwd=root, check=False).returncode


def _fetched(folder: Path) -> Path:
    wanted = f"ollama=={version('ollama')}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
        "-d",
        str(folder),
        wanted,
    ]
    subprocess.run(pip, check=True)
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
