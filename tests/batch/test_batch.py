"""Deciding a file: every row once and in order, whatever ends a run, however many processes decide."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from router_ml.batch.chunk import CHUNK_ROWS, Place
from router_ml.batch.decider import BatchJob
from router_ml.batch.output import partial_path, progress_path, rejects_path
from router_ml.batch.run import run_batch
from router_ml.batch.source import open_source
from router_ml.decide.router import Router
from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.engines.engine import LocalEngine, open_engine
from router_ml.errors import InputError, RowError
from tests.timing import TRIES, until

ONE = LocalEngine(1)
SAMPLES = ("check email", "book a flight", "find a free hour with Dana and mail her the agenda", "send it", "hello")


def _queries(path: Path, n: int) -> Path:
    rows = [{"id": f"q{i}", "text": f"{SAMPLES[i % 5]} {i}", "context": {"n_tools": i % 3}} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _job(source: Path, bundle: Path, policy: Policy | str = "balanced", **options: Any) -> BatchJob:
    return BatchJob(str(source), bundle, resolve_policy(policy), **options)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_file_gets_the_decisions_of_the_router_in_its_order(tiny_bundle: Path, tmp_path: Path) -> None:
    source = _queries(tmp_path / "in.jsonl", 300)
    done = run_batch(_job(source, tiny_bundle), tmp_path / "out.jsonl", ONE)
    rows, asked = _rows(tmp_path / "out.jsonl"), _rows(source)
    made = Router.load(tiny_bundle).decide_many([row["text"] for row in asked], [row["context"] for row in asked])
    assert [row["id"] for row in rows] == [row["id"] for row in asked]
    expected = [json.loads(json.dumps(decision.as_dict())) for decision in made]
    for row, wanted in zip(rows, expected, strict=True):
        assert {**row, "decision_id": ""} == {"id": row["id"], "line": row["line"], **wanted, "decision_id": ""}
    assert len({row["decision_id"] for row in rows}) == 300
    assert done.n_decided == 300
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in.jsonl", "out.jsonl"]


def test_several_processes_decide_as_one_does(tiny_bundle: Path, tmp_path: Path) -> None:
    job = _job(_queries(tmp_path / "in.jsonl", 700), tiny_bundle, Policy("exploring", exploration=0.5))
    run_batch(job, tmp_path / "one.jsonl", ONE)
    run_batch(job, tmp_path / "two.jsonl", LocalEngine(2))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_ray_decides_as_this_machine_does(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    job = _job(_queries(tmp_path / "in.jsonl", 700), tiny_bundle, Policy("exploring", exploration=0.5))
    run_batch(job, tmp_path / "one.jsonl", ONE)
    run_batch(job, tmp_path / "ray.jsonl", open_engine("ray", 2))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "ray.jsonl").read_bytes()


class _EndsAfter:
    """An engine that fails after some chunks, as a machine that is switched off."""

    workers = 1

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    def map(self, build: Any, items: Any) -> Any:
        for number, result in enumerate(map(build(), items)):
            if number == self._chunks:
                raise OSError("switched off")
            yield result


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_run_goes_on_where_another_ended(tiny_bundle: Path, tmp_path: Path, chunks: int) -> None:
    job = _job(_queries(tmp_path / "in.jsonl", 3 * CHUNK_ROWS + 5), tiny_bundle)
    run_batch(job, tmp_path / "whole.jsonl", ONE)
    out = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="switched off"):
        run_batch(job, out, _EndsAfter(chunks))
    with partial_path(out).open("ab") as partial:
        partial.write(b'{"id": "written after the progress was saved')
    done = run_batch(job, out, ONE)
    assert done.n_decided == 3 * CHUNK_ROWS + 5
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_killed_command_continues_and_leaves_no_process(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = _queries(tmp_path / "in.jsonl", 60 * CHUNK_ROWS), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "router_ml", "route", "--bundle", str(tiny_bundle), "--workers", "2"]
    command += ["--batch", str(source), "--out", str(out), "--no-candidates"]
    for _ in range(TRIES):
        running = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while not progress_path(out).exists() and running.poll() is None:
            time.sleep(0.01)
        running.kill()
        running.wait()
        if not out.exists():
            break
        out.unlink()  # it had ended before the kill reached it
    until(lambda: not _group_lives(running.pid))
    assert progress_path(out).exists()
    assert subprocess.run(command, check=True, capture_output=True, timeout=250).returncode == 0
    assert [row["line"] for row in _rows(out)] == list(range(1, 60 * CHUNK_ROWS + 1))


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_bad_rows_are_named_and_the_others_decided(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b'\xef\xbb\xbf{"text": "check email"}\n{"text": 3}\n\n{bad\n{"text": "a", "context": {"n_tools": -1}}\n'
        b'{"messages": [{"role": "user", "content": "book a flight"}]}\n{"messages": 7}\n\xff\n'
    )
    done = run_batch(_job(source, tiny_bundle), out, ONE)
    assert [(row["id"], row["line"]) for row in _rows(out)] == [("1", 1), ("6", 6)]
    places = [(row["line"], row["field"]) for row in _rows(rejects_path(out))]
    assert places == [(2, "text"), (4, None), (5, "context.n_tools"), (7, "messages"), (8, None)]
    assert done.n_rejected == 5
    with pytest.raises(RowError, match=r"in.jsonl:2: field 'text': must be a string"):
        run_batch(_job(source, tiny_bundle), tmp_path / "other.jsonl", ONE, stop_at_bad_row=True)


def test_a_corrected_row_lets_a_stopped_run_go_on(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = _queries(tmp_path / "in.jsonl", CHUNK_ROWS + 2), tmp_path / "out.jsonl"
    good = source.read_bytes()
    source.write_bytes(good + b"{}\n")
    with pytest.raises(RowError):
        run_batch(_job(source, tiny_bundle), out, ONE, stop_at_bad_row=True)
    source.write_bytes(good + b'{"text": "send it"}\n')
    assert run_batch(_job(source, tiny_bundle), out, ONE, stop_at_bad_row=True).n_decided == CHUNK_ROWS + 3


def test_what_would_mix_two_batches_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    source, out = _queries(tmp_path / "in.jsonl", 3 * CHUNK_ROWS), tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="switched off"):
        run_batch(_job(source, tiny_bundle), out, _EndsAfter(1))
    with pytest.raises(InputError, match=r"policy was balanced \w+, now fast \w+"):
        run_batch(_job(source, tiny_bundle, "fast"), out, ONE)
    source.write_bytes(source.read_bytes().replace(b"check email 0", b"check email 9"))
    with pytest.raises(InputError, match="was changed before the place where the batch stopped"):
        run_batch(_job(source, tiny_bundle), out, ONE)
    assert run_batch(_job(source, tiny_bundle), out, ONE, restart=True).n_decided == 3 * CHUNK_ROWS
    with pytest.raises(InputError, match="is already there"):
        run_batch(_job(source, tiny_bundle), out, ONE)


def test_parquet_gives_the_decisions_of_json_lines(tiny_bundle: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    source = _queries(tmp_path / "in.jsonl", 2 * CHUNK_ROWS + 9)
    table = pyarrow.Table.from_pylist([{**row, "unread": 1.5} for row in _rows(source)])
    parquet.write_table(table, tmp_path / "in.parquet", row_group_size=200)
    run_batch(_job(source, tiny_bundle), tmp_path / "json.jsonl", ONE)
    out = tmp_path / "out.parquet"
    with pytest.raises(OSError, match="switched off"):
        run_batch(_job(tmp_path / "in.parquet", tiny_bundle), out, _EndsAfter(1))
    run_batch(_job(tmp_path / "in.parquet", tiny_bundle), out, ONE)
    rows = parquet.read_table(out).to_pylist()
    wanted = _rows(tmp_path / "json.jsonl")
    assert [json.loads(row["decision"]) | {"decision_id": ""} for row in rows] == [
        row | {"decision_id": ""} for row in wanted
    ]
    assert [row["model"] for row in rows] == [row["model"] for row in wanted]


def test_a_broken_bundle_is_one_error_from_any_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    from router_ml.errors import BundleMissing

    job = _job(_queries(tmp_path / "in.jsonl", 5), tmp_path / "no such bundle")
    for engine in (ONE, LocalEngine(2)):
        with pytest.raises(BundleMissing):
            run_batch(job, tmp_path / "out.jsonl", engine)


def test_no_more_is_read_than_the_workers_need(tiny_bundle: Path, tmp_path: Path) -> None:
    read: list[int] = []
    job = _job(_queries(tmp_path / "in.jsonl", 40 * CHUNK_ROWS), tiny_bundle)

    def chunks() -> Any:
        for chunk in open_source(Path(job.source)).chunks(Place()):
            read.append(chunk.first_line)
            yield chunk

    results = LocalEngine(2).map(_line_counter, chunks())
    next(results)
    assert len(read) <= 6
    results.close()


def _count_lines(chunk: Any) -> int:
    return len(chunk.lines)


def _line_counter() -> Any:
    return _count_lines
