"""Every example runs as a user would run it, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from router_ml.settings import CHECKOUT
from tests.ollama_double import OllamaDouble

EXAMPLES = {
    "chat.py": ("because",),
    "decide.py": ("p_success", "qwen3:8b"),
    "experiment.py": ("faster",),
    "feedback.py": ("2 requests",),
    "graph_node.py": ("p_success",),
    "learn.py": ("-> small", "-> large"),
    "own_models.py": ("'turn off the kitchen lights' -> ",),
}


def test_every_example_is_run_by_this_file() -> None:
    assert {path.name for path in (CHECKOUT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    with OllamaDouble() as double:
        environment = os.environ | {
            "HOME": str(tmp_path),
            "OLLAMA_HOST": double.url,
            "PYTHONPATH": str(CHECKOUT),
            "ROUTER_ML_STATE_DIR": str(tmp_path / "state"),
        }
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "examples" / name)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr
    for expected in EXAMPLES[name]:
        assert expected in done.stdout
