"""Real servers on the loopback interface, for tests and campaigns: they can be killed, frozen and started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return str(Path(found).resolve())
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(versions[-1]) if versions else None


class PostgresServer:
    """PostgreSQL in a folder of its own. Run as root it runs as the user postgres, as the server asks for.

    `durable`: a commit waits for the disk, as in production."""

    def __init__(self, durable: bool = False) -> None:
        initdb, control = program("initdb"), program("pg_ctl")
        if initdb is None or control is None:
            raise FileNotFoundError("PostgreSQL is not installed (initdb is missing): apt-get install postgresql")
        self._control, self._port, self._durable = control, free_port(), durable
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = tempfile.TemporaryDirectory(prefix="pg")
        if self._user:
            shutil.chown(self._folder.name, self._user)
        self.url = f"postgresql://tester@127.0.0.1:{self._port}/postgres"
        self._call(initdb, "-D", self._data, "-U", "tester", "-A", "trust", "--no-sync")

    @property
    def _data(self) -> str:
        return f"{self._folder.name}/data"

    def start(self) -> None:
        name = self._folder.name
        options = f"-p {self._port} -k {name} -c listen_addresses=127.0.0.1 -c fsync={'on' if self._durable else 'off'}"
        self._call(self._control, "-D", self._data, "-o", options, "-w", "-l", f"{name}/log", "start")

    def kill(self) -> None:
        """Stop at once, as a crash does."""
        self._call(self._control, "-D", self._data, "-m", "immediate", "stop")

    def close(self) -> None:
        self.kill()
        self._folder.cleanup()

    def _call(self, *command: str) -> None:
        subprocess.run(command, user=self._user, check=True, capture_output=True, cwd=self._folder.name, timeout=120)


class RedisServer:
    """Redis without a file: empty each time it starts."""

    def __init__(self) -> None:
        found = shutil.which("redis-server")  # a link, and the server is told from its other tools by its name
        if found is None:
            raise FileNotFoundError("Redis is not installed (redis-server is missing): apt-get install redis-server")
        self._program, self.port = found, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._program, "--port", str(self.port), "--save", "", "--bind", "127.0.0.1", "--dir", "/tmp"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 10).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(60)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
