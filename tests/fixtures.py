"""What is costly and shared: a real PostgreSQL server, and an empty MLflow store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import PostgresServer, RedisServer

_OPEN = """
import sys
from pathlib import Path
from router_ml.experiments.mlflow_store import open_tracking
print(open_tracking(Path(sys.argv[1])))
"""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    try:
        server = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    server.start()
    yield server.url
    server.close()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that four processes made at once."""
    root = tmp_path_factory.mktemp("made") / "mlruns"
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    racers = [
        subprocess.Popen([sys.executable, "-c", _OPEN, str(root)], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    answers = {racer.communicate(timeout=280)[0].strip().splitlines()[-1] for racer in racers}
    assert [racer.returncode for racer in racers] == [0, 0, 0, 0]
    assert answers == {f"sqlite:///{root}/mlflow.db"}
    return root


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    server.start()
    yield server
    server.kill()
