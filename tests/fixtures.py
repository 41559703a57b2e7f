"""What is costly and shared: a real PostgreSQL server, and an empty MLflow store."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_OPEN = """
import sys
from pathlib import Path
from router_ml.experiments.mlflow_store import open_tracking
print(open_tracking(Path(sys.argv[1])))
"""


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return str(Path(found).resolve())
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else None


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    initdb, postgres_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or postgres_ctl is None:
        pytest.skip("PostgreSQL is not installed (initdb is missing): apt-get install postgresql")
    user = "postgres" if os.getuid() == 0 else None  # the server refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg") as folder:
        if user:
            shutil.chown(folder, user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        data = f"{folder}/data"

        def call(*command: str) -> None:
            subprocess.run(command, user=user, check=True, capture_output=True, cwd=folder, timeout=120)

        call(initdb, "-D", data, "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call(postgres_ctl, "-D", data, "-o", options, "-w", "-l", f"{folder}/log", "start")
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            call(postgres_ctl, "-D", data, "-m", "immediate", "stop")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that four processes made at once."""
    root = tmp_path_factory.mktemp("made") / "mlruns"
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    racers = [
        subprocess.Popen([sys.executable, "-c", _OPEN, str(root)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    answers = {racer.communicate(timeout=120)[0].strip().splitlines()[-1] for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    assert answers == {f"sqlite:///{root}/mlflow.db"}
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A Redis server on the loopback interface that can be frozen, killed and started again, empty each time."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--save", "", "--bind", "127.0.0.1", "--dir", "/tmp"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed (redis-server is missing): apt-get install redis-server")
    server = RedisServer()
    server.start()
    yield server
    server.kill()
