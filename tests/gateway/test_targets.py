"""Short versions of the measurements; the scripts beside this file print the long ones."""

from __future__ import annotations

from tests.gateway import overhead, residency_replay


def test_the_gateway_adds_little_to_a_bare_client() -> None:
    # The best of three: a busy machine can only make it look slower than it is.
    results = [overhead.measure(40) for _ in range(3)]
    assert min(result.added_ms for result in results) <= 2.0
    assert min(result.added_first_ms for result in results) <= 5.0


def test_knowing_what_is_in_memory_pays() -> None:
    made = residency_replay.tasks(30, seed=1)
    blind, aware = (residency_replay.replay(made, speed=80.0, blind=blind) for blind in (True, False))
    assert blind.mean_s / aware.mean_s >= 1.5
    assert aware.success >= blind.success - 0.01
    assert aware.loads < blind.loads
    assert any("warm" in reason for reason in aware.reasons)
