"""Converters: small files of each public form, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_ml.jsonl import read_outcomes, read_queries
from training.datasets import main


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_routellm(tmp_path: Path) -> None:
    source = tmp_path / "gsm8k.csv"
    source.write_text('prompt,strong/model,weak\n"2+2?",True,False\n"a, b",False,False\n', encoding="utf-8")
    assert main(["routellm", str(source), "--out", str(tmp_path / "out")]) == 0
    queries = read_queries(tmp_path / "out" / "queries.jsonl")
    outcomes = read_outcomes(tmp_path / "out" / "outcomes.jsonl")
    assert [query.text for query in queries] == ["2+2?", "a, b"]
    assert {(o.query_id, o.model, o.success) for o in outcomes} == {
        ("gsm8k_0", "strong/model", 1.0),
        ("gsm8k_0", "weak", 0.0),
        ("gsm8k_1", "strong/model", 0.0),
        ("gsm8k_1", "weak", 0.0),
    }


def test_a_wide_table_with_costs(tmp_path: Path) -> None:
    source = tmp_path / "bench.csv"
    source.write_text(
        "sample_id,prompt,eval_name,m1,m2,m1|model_response,m1|total_cost,m2|total_cost,oracle_model_to_route_to\n"
        "a.1,\"['Hello', 'there']\",hello,1.0,0.5,hi,0.01,0.2,m1\n",
        encoding="utf-8",
    )
    assert main(["table", str(source), "--out", str(tmp_path)]) == 0
    (query,) = read_queries(tmp_path / "queries.jsonl")
    assert (query.id, query.text, query.slice) == ("a.1", "Hello\nthere", "hello")
    found = {o.model: (o.success, o.cost_usd) for o in read_outcomes(tmp_path / "outcomes.jsonl")}
    assert found == {"m1": (1.0, 0.01), "m2": (0.5, 0.2)}


def test_a_long_table_with_milliseconds(tmp_path: Path) -> None:
    row = {"task_name": "t", "query": "q", "performance": 0.5, "output_tokens": 7}
    source = lines(
        tmp_path / "long.jsonl",
        [{**row, "model_name": "m1", "latency_ms": 1500}, {**row, "model_name": "m2", "latency_ms": None}],
    )
    assert main(["table", str(source), "--out", str(tmp_path / "out")]) == 0
    assert len(read_queries(tmp_path / "out" / "queries.jsonl")) == 1
    outcomes = read_outcomes(tmp_path / "out" / "outcomes.jsonl")
    assert [(o.latency_s, o.output_tokens) for o in outcomes] == [(1.5, 7), (None, 7)]


def test_bfcl_folders(tmp_path: Path) -> None:
    tool = {"name": "area", "parameters": {"type": "dict", "properties": {"base": {"type": "integer"}}}}
    name = "gorilla_openfunctions_v1_test_simple"
    asked = [
        {"id": f"simple_{i}", "question": [[{"role": "user", "content": f"ask {i}"}]], "function": [tool]}
        for i in range(3)
    ]
    lines(tmp_path / "questions" / f"{name}.json", asked)
    scores = [{"accuracy": 2 / 3, "correct_count": 2, "total_count": 3}, {"id": "simple_1", "valid": False}]
    lines(tmp_path / "score" / "m" / f"{name}_score.json", scores)
    results = [{"id": f"simple_{i}", "latency": [0.5, 0.25], "output_token_count": 9} for i in range(3)]
    lines(tmp_path / "result" / "m" / f"{name}_result.json", results)
    arguments = ["--questions", "questions", "--scores", "score", "--results", "result", "--out", "out"]
    assert main(["bfcl", *[str(tmp_path / a) if not a.startswith("--") else a for a in arguments]]) == 0
    queries = read_queries(tmp_path / "out" / "queries.jsonl")
    assert queries[1].text == "ask 1"
    assert queries[1].context.tools[0].name == "area"
    outcomes = read_outcomes(tmp_path / "out" / "outcomes.jsonl")
    assert [o.success for o in outcomes] == [1.0, 0.0, 1.0]
    assert {(o.latency_s, o.output_tokens) for o in outcomes} == {(0.75, 9)}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "one,two\n1,2\n", "no prompt column"),
        ("b.csv", "prompt,answer_text\nhi,there\n", "found neither"),
        ("c.pkl", "x", "may run code"),
        ("d.jsonl", "{not json}\n", "cannot read"),
        ("e.csv", "", "holds no row"),
        ("f.csv", "query,model,score\nhi,m,7\n", "between 0 and 1"),
        ("g.csv", "query,model,score\nhi,m,1\nhi,m,0\n", "repeats model"),
    ],
)
def test_what_it_does_not_know_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert main(["table", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
