"""What the campaigns with kills count, on logs written by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks import places, replicas


def test_calls_of_a_killed_process_end_with_it() -> None:
    lines = [
        "begin 1.0 p0 0 1",
        "begin 1.1 p0 0 2",
        "killed 1.2 p0 - -",
        "begin 1.3 p1 0 3",
        "begin 1.4 p1 0 4",
        "end 1.5 p1 0 3",
        "begin 1.5 p1 0 5",
        "begin 1.6 p1 1 6",
        "begin 1.7",  # cut by a kill
    ]
    found = places.count(lines, (2, 1))
    assert (found.calls, found.over, dict(found.most)) == (6, [], {0: 2, 1: 1})


def test_a_call_beyond_the_limit_is_found() -> None:
    lines = ["begin 1.0 p0 0 1", "begin 2.0 p1 0 2", "end 3.0 p0 0 1", "begin 4.0 p0 0 3"]
    assert places.count(lines, (1,)).over == [2.0, 4.0]


def test_a_host_counts_whole_answers_and_calls_at_once(tmp_path: Path) -> None:
    log = tmp_path / "host.log"
    log.write_text(
        "begin 1.0 m 7\nbegin 1.1 m 8\nend 1.2 m 7\nbegin 1.3 m 7\ncut 1.4 m 7\nkilled 1.5 - -\n"
        "begin 1.6 m 9\nbegin 1.7 n 10\nend 1.8 m 9\n"
    )
    calls = replicas.Calls()
    replicas.count(log, 1, calls)
    assert (calls.most, calls.over) == (2, [1.1, 1.3])
    assert {number: n for number, n in calls.answered.items() if n} == {"7": 1, "9": 1}
