"""A double in a process of its own, for timings: its work then takes nothing from the interpreter under test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class DoubleProcess:
    """`python -m tests.ollama_double` as a context manager; the default models, without faults."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> DoubleProcess:
        command = [sys.executable, "-m", "tests.ollama_double", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url.startswith("http"):
            raise RuntimeError("the double did not start")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()  # the double ends with its standard input
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
