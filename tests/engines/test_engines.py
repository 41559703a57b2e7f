"""Vectors do not depend on where they are computed, and an engine that is not installed says how to get it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from router_ml.engines.engine import LocalEngine, open_engine
from router_ml.errors import InputError
from training import benchmark, fit, learn
from training.embeddings import ENGINE_TEXTS, CachedEmbedder, embed_on, vector_engine

TEXTS = [f"{'compare offer' if i % 3 else 'mail'} {i}" + " and more" * (i % 7) for i in range(3 * ENGINE_TEXTS + 5)]


def test_processes_compute_the_vectors_of_this_process(tiny_bundle: Path) -> None:
    here = CachedEmbedder(tiny_bundle, enabled=False).embed(TEXTS)
    assert here.shape[0] == len(TEXTS)
    np.testing.assert_array_equal(embed_on(LocalEngine(2), tiny_bundle, TEXTS), here)


def test_ray_computes_the_vectors_of_this_process(tiny_bundle: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    here = CachedEmbedder(tiny_bundle, enabled=False).embed(TEXTS)
    there = CachedEmbedder(tiny_bundle, enabled=False, engine=open_engine("ray", 2)).embed(TEXTS)
    np.testing.assert_array_equal(there, here)


def test_more_workers_than_a_cluster_has_cpus_are_not_waited_for() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    many = open_engine("ray", 500)
    assert many.workers < 500
    assert list(many.map(_doubling, range(5))) == [0, 2, 4, 6, 8]
    assert open_engine("ray", 5, waiting=True).workers == 5  # these need no CPU
    assert open_engine("ray", waiting=True).workers == 1  # one a node


def _doubling() -> Callable[[int], int]:
    return lambda item: 2 * item


def test_the_local_engine_needs_no_processes_for_vectors() -> None:
    assert vector_engine("local") is None


@pytest.mark.parametrize("command", [fit, learn, benchmark])
def test_without_ray_each_command_says_how_to_install_it(
    command: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("ROUTER_ML_MODELS_DIR", str(tmp_path / "models"))
    queries = tmp_path / "q.jsonl"
    queries.write_text("".join(f'{{"id": "{i}", "text": "t {i}", "label": "{x}"}}\n' for x in ("simple", "complex")
                               for i in (range(30) if x == "simple" else range(30, 60))))  # fmt: skip
    arguments = {
        fit: ["--queries", str(queries), "--alone"],
        learn: [],
        benchmark: ["--models", "m", "--queries", str(queries), "--out", str(tmp_path / "out.jsonl"), "--no-mlflow"],
    }[command]  # type: ignore[index]
    assert command.main([*arguments, "--engine", "ray"]) == 2  # type: ignore[attr-defined]
    assert "--engine ray needs ray; pip install 'router-ml[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(InputError, match="engine must be one of local, ray, found 'spark'"):
        open_engine("spark")
