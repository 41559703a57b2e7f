"""A whole run against a double of the server: rows, timings, faults, kills, judging, MLflow."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ollama
import pytest

from router_ml.errors import NoModelAvailable
from router_ml.jsonl import read_outcomes
from router_ml.types import Outcome
from tests.ollama_double import DoubleModel, Fault, OllamaDouble, Reply
from tests.timing import best, until
from training import benchmark
from training.measuring import asker
from training.measuring.conversation import ChatSettings

ROOT = Path(__file__).resolve().parents[2]
WEATHER = {
    "name": "weather",
    "description": "Forecast",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
MAIL = {
    "name": "mail",
    "description": "Sends mail",
    "parameters": {"type": "object", "properties": {"to": {"type": "string"}, "text": {"type": "string"}}},
}
ROWS: list[dict[str, Any]] = [
    {
        "id": "weather",
        "text": "weather in Paris",
        "label": "simple",
        "context": {"tools": [WEATHER], "now": "Monday 2026-03-09 08:00"},
        "expected_calls": [{"name": "weather", "arguments": {"city": "paris"}}],
    },
    {
        "id": "umbrella",
        "text": "if it rains in Paris, mail Bo",
        "label": "complex",
        "context": {"tools": [WEATHER, MAIL]},
        "expected_calls": [
            {"name": "weather", "arguments": {"city": "Paris"}},
            {"name": "mail", "arguments": {"to": "Bo"}, "optional": ["text"]},
        ],
        "tool_results": [{"name": "weather", "arguments": {"city": "Paris"}, "result": {"sky": "rain"}}],
        "expected": {"contains": "mailed"},
    },
    {"id": "send", "text": "send it", "label": "ambiguous", "expected_calls": [], "expected": {"asks": True}},
    {"id": "free", "text": "say something", "label": None},
]


def call(name: str, **arguments: str) -> Reply:
    return Reply(tool_calls=({"name": name, "arguments": arguments},))


def clever(body: Mapping[str, Any]) -> Reply | str:
    """Does all of ROWS right."""
    text = next((m["content"] for m in reversed(body["messages"]) if m["role"] == "user"), "")
    if text.startswith("weather"):
        return call("weather", city="Paris")
    if text.startswith("if it rains"):
        given = [m for m in body["messages"] if m["role"] == "tool"]
        if not given:
            return call("weather", city="Paris")
        if len(given) == 1 and json.loads(given[0]["content"]) == {"sky": "rain"}:
            return call("mail", to="Bo")
        return "It rains, so I mailed Bo."
    return "Which one?" if text == "send it" else "Something."


def hasty(body: Mapping[str, Any]) -> Reply | str:
    """Calls the first tool with nothing, else claims success."""
    if body.get("tools") and body["messages"][-1]["role"] == "user":
        return Reply(tool_calls=({"name": body["tools"][0]["function"]["name"], "arguments": {}},))
    return "Done."


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    models = [
        DoubleModel("clever:8b", reply=clever, decode_tokens_per_s=2000.0, load_s=0.2),
        DoubleModel("hasty:3b", reply=hasty, decode_tokens_per_s=8000.0),
    ]
    with OllamaDouble(models) as double:
        yield double


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asker, "_WAITS_S", (0.0, 0.0))


class Bench:
    """The command with a queries file, an out file and a host."""

    def __init__(self, folder: Path, url: str, rows: list[dict[str, Any]]) -> None:
        self.out = folder / "out.jsonl"
        self.queries = folder / "queries.jsonl"
        self.url = url
        self.write(rows)

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.queries.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def arguments(self, *extra: str, models: tuple[str, ...] = ("clever:8b", "hasty:3b")) -> list[str]:
        files = ["--queries", str(self.queries), "--out", str(self.out), "--host", self.url]
        return ["--models", *models, *files, "--no-mlflow", "--quiet", *extra]

    def __call__(self, *extra: str, models: tuple[str, ...] = ("clever:8b", "hasty:3b")) -> int:
        return benchmark.main(self.arguments(*extra, models=models))

    def forget(self) -> None:
        """Remove what was measured."""
        for path in list(self.out.parent.glob("out.*")):
            path.unlink()

    def outcomes(self) -> dict[tuple[str, str], Outcome]:
        return {(o.query_id, o.model): o for o in read_outcomes(self.out)}


@pytest.fixture
def bench(tmp_path: Path, double: OllamaDouble) -> Bench:
    return Bench(tmp_path, double.url, ROWS)


def test_a_run_scores_and_times_every_query_of_every_model(
    bench: Bench, double: OllamaDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--json") == 0
    found = bench.outcomes()
    assert {key: o.success for key, o in found.items()} == {
        ("weather", "clever:8b"): 1.0,
        ("umbrella", "clever:8b"): 1.0,
        ("send", "clever:8b"): 1.0,
        ("free", "clever:8b"): None,
        ("weather", "hasty:3b"): 0.0,
        ("umbrella", "hasty:3b"): 0.0,
        ("send", "hasty:3b"): 0.0,
        ("free", "hasty:3b"): None,
    }
    one = found["weather", "clever:8b"]
    assert one.latency_s is not None
    assert one.eval_s is not None
    assert one.output_tokens is not None
    assert one.output_tokens / one.eval_s == pytest.approx(2000, rel=0.01)  # the double's speed
    assert one.eval_s < one.latency_s < 5
    three_turns = found["umbrella", "clever:8b"]
    assert three_turns.extra["turns"] == 3
    assert three_turns.prompt_tokens is not None
    assert one.prompt_tokens is not None
    assert three_turns.prompt_tokens > 2 * one.prompt_tokens
    assert found["umbrella", "hasty:3b"].extra["call_names"] == 0.5
    printed = capsys.readouterr().out.splitlines()
    figures = json.loads(printed[-1])["models"]
    assert figures["clever:8b"]["success"] == 1.0
    assert figures["hasty:3b"]["labels"]["ambiguous"]["success"] == 0.0
    assert figures["clever:8b"]["tokens_per_s"] == pytest.approx(2000, rel=0.01)
    assert figures["clever:8b"]["warm_up_s"] >= 0.2
    assert any(line.startswith("clever:8b  all") and "100.0%" in line for line in printed)


def test_the_warm_up_pays_for_loading_and_is_no_row(bench: Bench, double: OllamaDouble) -> None:
    def most_s() -> float:
        """The longest load of a row, where the model was not in memory before the run."""
        double.scheduler.memory.loaded.clear()
        bench.forget()
        assert bench(models=("clever:8b",)) == 0
        assert len(bench.outcomes()) == len(ROWS)
        assert all(o.resident is True for o in bench.outcomes().values())
        return max(o.load_s or 0.0 for o in bench.outcomes().values())

    assert best(most_s, 0.1) < 0.1


def test_without_a_warm_up_the_first_row_pays(bench: Bench) -> None:
    assert bench("--no-warm-up", models=("clever:8b",)) == 0
    first, *others = bench.outcomes().values()
    assert first.resident is False
    assert first.load_s is not None
    assert first.latency_s is not None
    assert 0.15 < first.load_s < first.latency_s
    assert all(o.resident for o in others)


def test_the_server_gets_json_schema_types_the_time_and_one_set_of_options(bench: Bench, double: OllamaDouble) -> None:
    assert bench("--num-ctx", "2048", models=("clever:8b",)) == 0
    bodies = [seen.body for seen in double.generations]
    asked = next(b for b in bodies if b["messages"][-1]["content"] == "weather in Paris")
    assert asked["tools"][0]["function"]["parameters"]["type"] == "object"
    assert asked["messages"][0]["role"] == "system"
    assert "Monday 2026-03-09 08:00" in asked["messages"][0]["content"]
    assert {b["options"]["num_ctx"] for b in bodies} == {2048}
    assert double.scheduler.loads == ["clever:8b"]  # never loaded anew


def test_going_on_asks_nothing_twice(bench: Bench, double: OllamaDouble) -> None:
    assert bench() == 0
    before, n = bench.out.read_bytes(), len(double.generations)
    assert bench() == 2  # rows are there and nobody said --resume
    assert bench("--resume") == 0
    assert bench.out.read_bytes() == before
    assert len(double.generations) == n


def test_going_on_takes_in_new_queries_and_models(bench: Bench) -> None:
    bench.write(ROWS[:2])
    assert bench(models=("hasty:3b",)) == 0
    bench.write(ROWS)
    assert bench("--resume") == 0
    assert len(bench.outcomes()) == 2 * len(ROWS)


def test_figures_measured_in_another_way_are_not_mixed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    before = bench.out.read_bytes()
    assert bench("--resume", "--temperature", "1") == 2
    assert "options" in capsys.readouterr().err
    bench.write([{**ROWS[0], "text": "weather in Rome"}, *ROWS[1:]])
    assert bench("--resume") == 2
    assert "query 'weather'" in capsys.readouterr().err
    assert bench.out.read_bytes() == before


def test_answers_are_scored_again_without_asking_again(bench: Bench, double: OllamaDouble) -> None:
    assert bench(models=("clever:8b",)) == 0
    n = len(double.generations)
    bench.write([{**ROWS[0], "expected_calls": []}, *ROWS[1:3], {**ROWS[3], "expected": {"exact": "something"}}])
    assert bench("--rescore", models=("clever:8b",)) == 0
    found = bench.outcomes()
    assert found["weather", "clever:8b"].success == 0.0
    assert found["free", "clever:8b"].success == 1.0
    assert len(double.generations) == n


def test_a_failing_model_is_a_row_and_may_be_asked_again(bench: Bench, double: OllamaDouble) -> None:
    double.faults.set("hasty:3b", Fault.ERROR_500)
    assert bench() == 0
    failed = bench.outcomes()["weather", "hasty:3b"]
    assert (failed.success, failed.latency_s) == (0.0, None)
    assert failed.error is not None
    assert failed.error.startswith("server_error")
    double.faults.clear()
    assert bench("--retry-errors") == 0
    assert all(o.error is None for o in bench.outcomes().values())
    assert len(bench.outcomes()) == 2 * len(ROWS)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.MALFORMED_JSON, "malformed"),
        (Fault.WRONG_MODEL, "wrong_model"),
        (Fault.EMPTY_ANSWER, "empty"),
        (Fault.QUEUE_FULL_503, "busy"),
        (Fault.RESET_BEFORE_HEADERS, "connection"),
        (Fault.MISSING_404, "missing"),
    ],
)
def test_each_fault_is_named(bench: Bench, double: OllamaDouble, fault: Fault, kind: str) -> None:
    double.faults.set("*", fault)
    bench.write(ROWS[:1])
    assert bench("--no-warm-up", models=("hasty:3b",)) == 0
    (row,) = bench.outcomes().values()
    assert row.error is not None
    assert row.error.startswith(kind + ":")


def test_a_hanging_model_costs_its_time_limit(bench: Bench, double: OllamaDouble) -> None:
    double.faults.set("*", Fault.HANG_BEFORE_HEADERS)
    bench.write(ROWS[:1])

    def cost_s() -> float:
        bench.forget()
        assert bench("--no-warm-up", "--timeout", "0.3", models=("hasty:3b",)) == 0
        (row,) = bench.outcomes().values()
        assert row.error == "cold_timeout: no answer in time"
        assert row.latency_s is not None
        return row.latency_s

    assert best(cost_s, 0.55) == pytest.approx(0.3, abs=0.25)


def test_a_host_that_goes_away_ends_the_run_without_false_rows(
    bench: Bench, double: OllamaDouble, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Leaving(ollama.Client):
        asked = 0

        def chat(self, *arguments: Any, **others: Any) -> Any:
            Leaving.asked += 1
            if Leaving.asked == 4:  # after the warm-up's and two rows of one turn each
                double.refuse()
            return super().chat(*arguments, **others)

    bench.write([ROWS[0], ROWS[2], ROWS[3]])
    with monkeypatch.context() as patch:
        patch.setattr(asker.ollama, "Client", Leaving)
        assert bench() == 1
    assert "continue with --resume" in capsys.readouterr().err
    assert [(o.query_id, o.error) for o in bench.outcomes().values()] == [("weather", None), ("send", None)]
    double.accept()
    assert bench("--resume") == 0
    assert len(bench.outcomes()) == 6
    assert all(o.error is None for o in bench.outcomes().values())


def _told(bench: Bench) -> list[dict[str, Any]]:
    """Rows and answers in the order of their files, without times."""
    timed = ("latency_s", "load_s", "prompt_eval_s", "eval_s", "resident")
    files = (bench.out, bench.out.with_suffix(".answers.jsonl"))
    rows = [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


@pytest.mark.parametrize("engine", [("--workers", "2"), ("--engine", "ray"), ("--engine", "ray", "--workers", "3")])
def test_any_engine_measures_the_same_rows_in_the_same_order(
    bench: Bench, double: OllamaDouble, engine: tuple[str, ...]
) -> None:
    if "ray" in engine:
        pytest.importorskip("ray", reason="ray is not installed")
    double.models["judge:70b"] = DoubleModel("judge:70b", reply=lambda body: json.dumps({"pass": True}))
    bench.write([*ROWS, *({**ROWS[3], "id": f"j{i}", "expected": {"judge": "says something"}} for i in range(3))])
    assert bench("--judge", "judge:70b") == 0
    told = _told(bench)
    bench.forget()
    how = ("--judge", "judge:70b", *engine)
    assert bench("--limit", "2", *how) == 0
    n = len(double.generations)
    assert bench("--resume", *how) == 0
    assert len(double.generations) > n  # the rest alone was asked
    key = operator.itemgetter("model", "query_id")
    assert sorted(_told(bench), key=key) == sorted(told, key=key)
    first = [(row["model"], row["query_id"]) for row in _told(bench)[:4]]
    assert first == [(model, row["id"]) for model in ("clever:8b", "hasty:3b") for row in ROWS[:2]]
    run = json.loads(bench.out.with_suffix(".run.json").read_text())
    assert run["warm_up"].keys() == {"clever:8b", "hasty:3b"}


def test_figures_of_more_requests_at_once_are_not_mixed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--limit", "1") == 0
    assert bench("--resume", "--workers", "2") == 2
    assert "1 requests at once, not 2 (--workers)" in capsys.readouterr().err


def test_a_worker_whose_host_has_another_model_says_so(double: OllamaDouble) -> None:
    job = asker.HostJob(double.url, ChatSettings(), digests={"clever:8b": "of another machine"})
    with pytest.raises(NoModelAvailable, match="has another version of clever:8b: ollama pull clever:8b there"):
        job.answering()
    with pytest.raises(NoModelAvailable, match="has no gone:1b"):
        dataclasses.replace(job, digests={"gone:1b": ""}).answering()


def test_no_host_and_no_model_say_what_to_do(
    bench: Bench, double: OllamaDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(models=("clever:8b", "gone:1b")) == 1
    assert "ollama pull gone:1b" in capsys.readouterr().err
    bench.url = "http://127.0.0.1:9"
    assert bench() == 1
    assert "start Ollama" in capsys.readouterr().err
    assert not bench.out.exists()


@pytest.mark.parametrize(
    "extra", [{"expected_calls": [{"nome": "x"}]}, {"expected": {"regex": "("}}, {"context": {"tools": 5}}]
)
def test_a_bad_row_is_refused_before_anything_is_asked(
    bench: Bench, double: OllamaDouble, extra: dict[str, Any]
) -> None:
    bench.write([{**ROWS[0], **extra}])
    assert bench() == 2
    assert not double.generations


def test_a_judge_decides_after_all_models_are_measured(bench: Bench, double: OllamaDouble) -> None:
    def judge(body: Mapping[str, Any]) -> str:
        said = body["messages"][-1]["content"].split("<<ANSWER>>\n")[1].split("\n<<CRITERION>>")[0]
        return json.dumps({"reason": "short", "pass": said == "Something."})

    double.models["judge:70b"] = DoubleModel("judge:70b", reply=judge)
    bench.write([{**ROWS[3], "expected": {"judge": "says something"}}])
    assert bench() == 0
    assert {o.success for o in bench.outcomes().values()} == {None}
    assert bench("--rescore", "--judge", "judge:70b") == 0
    assert bench.outcomes()["free", "clever:8b"].success == 1.0
    assert bench.outcomes()["free", "hasty:3b"].success == 0.0
    double.models["other:70b"] = DoubleModel("other:70b", reply=judge)
    assert bench("--resume", "--judge", "other:70b") == 2  # verdicts of two judges are not mixed
    assert [s.model for s in double.generations][-2:] == ["judge:70b"] * 2


def test_killed_at_any_moment_a_run_ends_with_each_row_once(tmp_path: Path) -> None:
    """SIGKILL, up to six times, at moments spread over the whole run; then each query was answered to the end once,
    but for the one that was on its way."""
    slow = [DoubleModel(name, reply=clever, prompt_tokens_per_s=3e4) for name in ("clever:8b", "hasty:3b")]
    rows = [{**ROWS[i % 4], "id": f"q{i}", "text": f"{ROWS[i % 4]['text']}"} for i in range(40)]
    with OllamaDouble(slow) as double:
        bench = Bench(tmp_path, double.url, rows)
        command = [sys.executable, "-m", "training.benchmark", *bench.arguments("--resume")]
        kills = 0
        for kill in range(40):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            _wait_for_row(bench.out, before=_size(bench.out), process=process)
            time.sleep(0.003 * (4 * kill % 13))  # somewhere within the next rows
            if process.poll() is None and kills < 6:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            _, said = process.communicate(timeout=120)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, said.decode()
        found = read_outcomes(bench.out)  # refuses a repeated or a torn row
        assert len(found) == 80
        assert {(o.query_id, o.model) for o in found} == {
            (row["id"], model) for row in rows for model in ("clever:8b", "hasty:3b")
        }
        assert kills >= 3
        asked = Counter(seen.model for seen in double.generations if seen.body["options"].get("num_predict") != 1)
        needed = sum(3 if row["text"].startswith("if") else 1 for row in rows)
        assert 2 * needed <= sum(asked.values()) <= 2 * needed + 3 * kills


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _wait_for_row(path: Path, before: int, process: subprocess.Popen[bytes]) -> None:
    until(lambda: _size(path) != before or process.poll() is not None)


def test_paths_that_cannot_be_used_are_said(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--system", str(tmp_path / "none.txt")) == 2
    bench.out = tmp_path / "queries.jsonl" / "out.jsonl"  # below a file
    assert bench() == 2
    assert "choose another --out" in capsys.readouterr().err


def test_the_suite_may_be_asked_beside_own_queries(bench: Bench, tmp_path: Path) -> None:
    assert bench("--suite", "--limit", "6", models=("hasty:3b",)) == 0
    asked = [json.loads(line)["id"] for line in (tmp_path / "out.queries.jsonl").read_text("utf-8").splitlines()]
    assert asked == ["weather", "umbrella", "send", "free", "tc001", "tc002"]
    assert {query for query, _ in bench.outcomes()} == set(asked)


def test_every_model_is_a_run_of_mlflow(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    arguments = [argument for argument in bench.arguments() if argument != "--no-mlflow"]
    monkeypatch.chdir(tmp_path)
    assert benchmark.main(arguments) == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("router_ml benchmarks")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"clever:8b", "hasty:3b"}
    assert runs["clever:8b"].data.metrics["test/success"] == 1.0
    assert runs["hasty:3b"].data.metrics["success/ambiguous"] == 0.0
    assert runs["hasty:3b"].data.params["model"] == "hasty:3b"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_mlflow_down_is_a_warning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    arguments = [argument for argument in bench.arguments() if argument != "--no-mlflow"]
    assert benchmark.main(arguments) == 0
    assert "the rows are saved all the same" in caplog.text
    assert len(bench.outcomes()) == 2 * len(ROWS)


def test_each_arm_of_a_model_that_can_think_is_measured_and_resumed(tmp_path: Path) -> None:
    def thoughtful(body: Mapping[str, Any]) -> Reply | str:
        return Reply("Something.", "Hm.") if body.get("think", True) else hasty(body)

    models = [
        DoubleModel("thinker:8b", reply=thoughtful, capabilities=frozenset({"completion", "tools", "thinking"})),
        DoubleModel("hasty:3b", reply=hasty),
    ]
    with OllamaDouble(models) as double:
        bench = Bench(tmp_path, double.url, ROWS[:2])
        names = ("thinker:8b", "hasty:3b")
        assert bench("--arms", models=names) == 0
        found = Counter((o.model, o.think) for o in read_outcomes(bench.out))
        assert found == {("thinker:8b", False): 2, ("thinker:8b", True): 2, ("hasty:3b", None): 2}
        asked = [g.body.get("think") for g in double.generations if g.body["model"] == "thinker:8b"]
        assert {True, False} <= set(asked)
        assert all("think" not in g.body for g in double.generations if g.body["model"] == "hasty:3b")
        lines = bench.out.read_text().splitlines()
        bench.out.write_text("".join(line + "\n" for line in lines[:3]))
        answers = bench.out.with_suffix(".answers.jsonl")
        answers.write_text("".join(line + "\n" for line in answers.read_text().splitlines()[:3]))
        before = len(double.generations)
        assert bench("--arms", "--resume", "--no-warm-up", models=names) == 0
        assert Counter((o.model, o.think) for o in read_outcomes(bench.out)) == found
        assert bench.out.read_text().splitlines()[:3] == lines[:3]
        assert before < len(double.generations) <= before + 4


def test_the_arms_to_measure_are_those_of_the_catalogue(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text(
        '[[model]]\nname = "oss:20b"\nprior = { latency_s = 1, success = 0.5 }\n'
        '[[model.arm]]\nthink = "low"\n[[model.arm]]\nthink = "high"\n'
    )
    thinks = frozenset({"completion", "thinking"})
    with OllamaDouble([DoubleModel("oss:20b", capabilities=thinks)]) as double:
        bench = Bench(tmp_path, double.url, ROWS[3:])
        assert bench("--arms", "--catalogue", str(catalogue), models=("oss:20b",)) == 0
        assert [(o.query_id, o.think) for o in read_outcomes(bench.out)] == [("free", "low"), ("free", "high")]


def test_each_row_has_the_mean_log_probability_of_its_tokens(bench: Bench, double: OllamaDouble) -> None:
    def unsure(body: Mapping[str, Any]) -> Reply:
        given = sum(message["role"] == "tool" for message in body["messages"])
        if body["messages"][-1]["content"].startswith("if it rains") or given == 1:
            return dataclasses.replace(call("weather", city="Paris"), logprob=-1.0)  # one entry a turn
        return Reply("mailed", logprob=-4.0)

    double.models["hasty:3b"] = dataclasses.replace(double.models["hasty:3b"], reply=unsure, gives_logprobs=True)
    double.models["clever:8b"] = dataclasses.replace(double.models["clever:8b"], gives_logprobs=False)
    bench.write(ROWS[1:2])
    assert bench() == 0
    rows = bench.outcomes()
    assert rows["umbrella", "hasty:3b"].logprob_mean == pytest.approx((-1.0 - 1.0 - 4.0) / 3)
    assert rows["umbrella", "clever:8b"].logprob_mean is None


def test_rows_from_before_log_probabilities_are_continued(bench: Bench) -> None:
    bench.write(ROWS[:2])
    assert bench("--limit", "1") == 0
    plain = [{k: v for k, v in json.loads(line).items() if k != "logprob_mean"} for line in bench.out.open()]
    bench.out.write_text("".join(json.dumps(row) + "\n" for row in plain))
    assert bench("--resume") == 0
    assert [row.logprob_mean for row in bench.outcomes().values()] == [None, None, 0.0, 0.0]
