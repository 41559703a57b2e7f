"""Files that every replica has, through a real PostgreSQL server."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from router_ml.bundles.registry import promote, read_active
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import open_rollout
from router_ml.experiments.state import ExperimentState, Halt
from router_ml.http.keys import KeyFile
from router_ml.settings import Settings
from router_ml.shared_state.mirror import Mirror
from tests.timing import best, until

EXPERIMENT = Experiment("e1", Variant("old"), Variant("new", policy="fast"), 1.0)


@pytest.fixture
def replicas(postgres_url: str, tmp_path: Path) -> Iterator[list[Path]]:
    """The state folders of two replicas."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS shared_document")
    folders = [tmp_path / name for name in ("a", "b")]
    mirrors = [Mirror(postgres_url, Settings(state_dir=folder)) for folder in folders]
    for mirror in mirrors:
        assert mirror.sync(), mirror.problem
        mirror.start()
    yield folders
    for mirror in mirrors:
        mirror.close()


def test_a_halt_reaches_every_replica_within_two_seconds(replicas: list[Path]) -> None:
    first, second = (ExperimentState(folder / "experiments") for folder in replicas)

    def slowest_s(number: int) -> float:
        """The seconds that a start, a halt or its end takes to reach the other replica."""
        experiment = replace(EXPERIMENT, id=f"e{number}")
        first.start(experiment)
        started_s = until(lambda: second.active() == experiment)
        rollout = open_rollout(replicas[1])
        assert rollout.assign("u1") is not None
        halt = Halt(experiment.id, "ROLLBACK", 2.0, "worse", "")
        first.end(halt)
        halted_s = until(lambda: rollout.assign("u1") is None)
        assert second.halt() == halt
        second.clear()
        cleared_s = until(lambda: first.halt() is None and first.active() is None)
        assert first.finished(experiment.id) == experiment
        return max(started_s, halted_s, cleared_s)

    numbers = itertools.count(1)
    assert best(lambda: slowest_s(next(numbers)), 2.0) < 2.0


def test_keys_and_policies_are_those_of_all_replicas(replicas: list[Path]) -> None:
    first, second = (KeyFile(folder / "keys.json") for folder in replicas)
    secret = first.add("ann")
    until(lambda: second.find(secret) is not None)
    second.revoke("ann")
    until(lambda: first.find(secret) is None)
    (replicas[0] / "house.toml").write_text("latency = 1")
    until(lambda: (replicas[1] / "house.toml").exists())
    assert (replicas[1] / "house.toml").read_text() == "latency = 1"
    (replicas[1] / "house.toml").unlink()
    until(lambda: not (replicas[0] / "house.toml").exists())


def test_a_promoted_bundle_reaches_every_replica(replicas: list[Path], tiny_bundle: Path) -> None:
    (replicas[0] / "models").mkdir()
    promote(replicas[0] / "models", tiny_bundle, lambda folder: None)
    until(lambda: read_active(replicas[1] / "models") is not None)
    active = read_active(replicas[1] / "models")
    assert active is not None
    assert active.active == "tiny"
    assert (replicas[1] / "models" / "tiny" / "manifest.json").read_bytes() == (
        tiny_bundle / "manifest.json"
    ).read_bytes()


def test_a_bundle_that_does_not_verify_is_refused(
    replicas: list[Path], tiny_bundle: Path, postgres_url: str, tmp_path: Path
) -> None:
    (replicas[0] / "models").mkdir()
    promote(replicas[0] / "models", tiny_bundle, lambda folder: None)
    until(lambda: read_active(replicas[1] / "models") is not None)
    good = (replicas[1] / "models" / "tiny" / "manifest.json").read_bytes()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "UPDATE shared_document SET content = overlay(content placing 'xxxx'::bytea from 3000), "
            "version = nextval('shared_document_version') WHERE name = 'bundle/tiny'"
        )
        connection.execute("NOTIFY router_ml_documents")
    shutil.rmtree(replicas[0] / "models" / "tiny")
    late = Mirror(postgres_url, Settings(state_dir=tmp_path / "c"))
    assert late.sync()
    assert "bundle/tiny: its content is not what its checksum says" in late.refused or "active" in late.refused
    assert read_active(tmp_path / "c" / "models") is None
    assert (replicas[1] / "models" / "tiny" / "manifest.json").read_bytes() == good


def test_a_halt_given_while_the_database_was_away_is_carried_later(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS shared_document")
    away = Mirror("postgresql://nobody@127.0.0.1:1/none", Settings(state_dir=tmp_path / "a"))
    state = ExperimentState(tmp_path / "a" / "experiments")
    state.start(EXPERIMENT)
    assert not away.sync()
    state.end(Halt("e1", "ROLLBACK", 2.0, "worse", ""))
    assert Mirror(postgres_url, Settings(state_dir=tmp_path / "a")).sync()
    assert Mirror(postgres_url, Settings(state_dir=tmp_path / "b")).sync()
    assert ExperimentState(tmp_path / "b" / "experiments").halt() is not None
