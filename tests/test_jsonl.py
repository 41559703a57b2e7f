"""Files of rows: what is wrong is named by file, line and field; what is unknown survives a round trip."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_ml.errors import InputError, RowError
from router_ml.jsonl import outcome_row, query_row, read_outcomes, read_queries, write_rows
from router_ml.types import LABELS

QUERY: dict[str, Any] = {"id": "q1", "text": "check email", "context": None, "label": "simple"}
OUTCOME: dict[str, Any] = {"query_id": "q1", "model": "m", "success": 1, "latency_s": 2.5}


def _file(tmp_path: Path, *lines: bytes | str | dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    encoded = [
        line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
        for line in lines
    ]
    path.write_bytes(b"\n".join(encoded) + b"\n")
    return path


def test_a_query_with_everything(tmp_path: Path) -> None:
    row = {**QUERY, "context": {"n_tools": 2}, "group": "g", "slice": "plain", "voice": "rude", "stars": [1, 2]}
    (query,) = read_queries(_file(tmp_path, row))
    assert (query.id, query.text, query.label, query.group, query.slice) == (
        "q1",
        "check email",
        "simple",
        "g",
        "plain",
    )
    assert query.context.n_tools == 2
    assert query.extra == {"voice": "rude", "stars": [1, 2]}


def test_unknown_keys_survive_a_round_trip(tmp_path: Path) -> None:
    queries = [{**QUERY, "context": {"n_tools": 1, "odd": None}, "voice": "ü"}, {**QUERY, "id": "q2", "label": None}]
    write_rows(tmp_path / "again.jsonl", [query_row(q) for q in read_queries(_file(tmp_path, *queries))])
    assert [json.loads(line) for line in (tmp_path / "again.jsonl").open(encoding="utf-8")] == queries
    outcomes = [{**OUTCOME, "gpu": "none", "resident": False, "output_tokens": 12}]
    write_rows(tmp_path / "o.jsonl", [outcome_row(o) for o in read_outcomes(_file(tmp_path, *outcomes))])
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").open(encoding="utf-8")] == outcomes


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"text": None}, "text"),
        ({"text": ["a"]}, "text"),
        ({"label": "hard"}, "label"),
        ({"label": ["simple"]}, "label"),
        ({"label": "Simple"}, "label"),
        ({"group": 5}, "group"),
        ({"slice": {}}, "slice"),
        ({"context": []}, "context"),
        ({"context": "none"}, "context"),
        ({"context": {"n_tools": -1}}, "context.n_tools"),
        ({"context": {"history": "hi"}}, "context.history"),
        ({"context": {"prompt_tokens": 10**400}}, "context.prompt_tokens"),
    ],
)
def test_a_bad_query_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = _file(tmp_path, QUERY, {**QUERY, "id": "q2", **change})
    with pytest.raises(RowError) as caught:
        read_queries(path)
    assert (caught.value.file, caught.value.line, caught.value.field) == (str(path), 2, field)
    assert str(caught.value).startswith(f"{path}:2: field {field!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"query_id": 1}, "query_id"),
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"success": 1.01}, "success"),
        ({"success": -0.5}, "success"),
        ({"success": True}, "success"),
        ({"success": "yes"}, "success"),
        ({"latency_s": -1}, "latency_s"),
        ({"latency_s": 2_500_000_000}, "latency_s"),  # nanoseconds
        ({"latency_s": 10**400}, "latency_s"),
        ({"prompt_tokens": 10**400}, "prompt_tokens"),
        ({"output_tokens": -3}, "output_tokens"),
        ({"load_s": "1"}, "load_s"),
        ({"cost_usd": -0.1}, "cost_usd"),
        ({"resident": 1}, "resident"),
        ({"error": 404}, "error"),
        ({"logprob_mean": 0.5}, "logprob_mean"),  # a probability
        ({"logprob_mean": -(10**6)}, "logprob_mean"),
        ({"logprob_mean": "low"}, "logprob_mean"),
    ],
)
def test_a_bad_outcome_names_file_line_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    path = _file(tmp_path, {**OUTCOME, **change})
    with pytest.raises(RowError) as caught:
        read_outcomes(path)
    assert (caught.value.line, caught.value.field) == (1, field)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, number: str) -> None:
    line = json.dumps(OUTCOME).replace("2.5", number)
    with pytest.raises(RowError) as caught:
        read_outcomes(_file(tmp_path, line))
    assert caught.value.field == "latency_s"


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"not json",
        b"[1]",
        b'"text"',
        b"null",
        b"\xff\xfe{}",
        b'{"id": "\xe9"}',
        b"[" * 100_000,
        b'{"id": "q9", "text": "half a pair \\ud83d", "label": null}',
        b'{"id": "q9", "n": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_line_that_cannot_be_read_names_its_place(tmp_path: Path, line: bytes) -> None:
    path = _file(tmp_path, QUERY, b"", line)
    with pytest.raises(RowError) as caught:
        read_queries(path)
    assert (caught.value.file, caught.value.line) == (str(path), 3)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    second = json.dumps({**QUERY, "id": "q2"})
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(QUERY).encode() + b"\r\n\r\n   \r\n" + second.encode())
    assert [query.id for query in read_queries(path)] == ["q1", "q2"]
    path.write_bytes(b"\xef\xbb\xbf\r\n" + second.encode())
    assert [query.id for query in read_queries(path)] == ["q2"]


def test_repeats_name_both_lines(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="repeats line 1") as caught:
        read_queries(_file(tmp_path, QUERY, "", {**QUERY, "text": "other"}))
    assert (caught.value.line, caught.value.field) == (3, "id")
    with pytest.raises(RowError, match="repeats line 1"):
        read_outcomes(_file(tmp_path, OUTCOME, OUTCOME))
    other = read_outcomes(_file(tmp_path, OUTCOME, {**OUTCOME, "model": "n"}))
    assert [o.model for o in other] == ["m", "n"]


def test_an_empty_text_is_a_query(tmp_path: Path) -> None:
    assert read_queries(_file(tmp_path, {**QUERY, "text": ""}))[0].text == ""


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(InputError, match=str(tmp_path)):
            read_queries(path)


def test_writing_fails_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [QUERY])
    with pytest.raises(TypeError):
        write_rows(path, [QUERY, {"id": object()}])
    assert json.loads(path.read_text(encoding="utf-8")) == QUERY


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    st.lists(
        st.tuples(_TEXT, st.sampled_from([*LABELS, None]), st.dictionaries(st.sampled_from(["x", "y"]), _TEXT)),
        max_size=6,
    )
)
def test_any_text_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("rows") / "q.jsonl"
    written = [
        {"id": f"q{i}", "text": text, "context": None, "label": label, **extra}
        for i, (text, label, extra) in enumerate(rows)
    ]
    write_rows(path, written)
    assert [query_row(query) for query in read_queries(path)] == written


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ('{"id": "a", "text": "one", "text": "two"}', "text", "given twice"),
        ('{"id": "a", "text": "x", "context": {"n_tools": 1, "n_tools": 2}}', "n_tools", "given twice"),
        ('{"id": "a", "text": "x", "note": NaN}', "note", "must be finite"),
        ('{"id": "a", "text": "x", "note": [1e999]}', "note", "must be finite"),
        ('{"id": "a", "text": "x", "note": "\\ud83d"}', "note", "unpaired surrogate"),
        ('{"id": "a", "text": "x", "n": ' + "9" * 5000 + "}", None, "is not JSON"),
        ("[" * 100_000, None, "nested too deeply"),
    ],
)
def test_what_python_reads_and_json_does_not_hold_is_named(
    tmp_path: Path, row: str, field: str | None, problem: str
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "first", "text": "x"}\n' + row)
    with pytest.raises(RowError, match=problem) as caught:
        read_queries(path)
    assert (caught.value.line, caught.value.field) == (2, field)
    assert len(str(caught.value)) < 400


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router_ml.jsonl.MAX_LINE_BYTES", 1000)
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "x" * 2000}))
    with pytest.raises(RowError, match="longer than 1,000 bytes"):
        read_queries(path)


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"n": np.int64(3), "x": np.float32(0.5)}])
    assert path.read_text() == '{"n": 3, "x": 0.5}\n'
    with pytest.raises(InputError, match="row 2"):
        write_rows(path, [{}, {"x": math.nan}])
    assert path.read_text() == '{"n": 3, "x": 0.5}\n'


def test_a_mean_log_probability_survives_a_round_trip_and_need_not_be_there(tmp_path: Path) -> None:
    rows = [{**OUTCOME, "logprob_mean": -0.25}, {**OUTCOME, "model": "old"}]
    (new, old) = read_outcomes(_file(tmp_path, *rows))
    assert (new.logprob_mean, old.logprob_mean) == (-0.25, None)
    assert (outcome_row(new)["logprob_mean"], "logprob_mean" in outcome_row(old)) == (-0.25, False)
