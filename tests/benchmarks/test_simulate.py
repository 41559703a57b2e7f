"""Without arguments the simulation shows a person both ends of an experiment."""

from __future__ import annotations

import pytest

from benchmarks.simulate import main


def test_without_arguments_one_challenger_is_rolled_back_and_one_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    intro, worse, faster = capsys.readouterr().out.split("\n\n")[:3]
    assert all(verdict in intro for verdict in ("ROLLBACK", "SHIP", "INVALID", "HOLD"))
    assert "15.0% of the new one's" in worse
    assert " ROLLBACK: 'new' against 'old'" in worse
    assert "SHIP" not in worse
    assert "20% less time" in faster
    assert " SHIP: 'new' against 'old'" in faster
    assert "ROLLBACK" not in faster


def test_a_truth_of_ones_own_is_told_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--share", "0.4", "--requests", "2000"]) == 0
    told = capsys.readouterr().out
    assert told.count("The truth") == 1
    assert " INVALID: 'new' against 'old'" in told
