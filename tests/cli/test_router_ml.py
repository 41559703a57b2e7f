"""The command line: what it prints, and that every error is one line and exit code 2."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router_ml.catalogue import load_catalogue
from router_ml.cli import DECIDING, LOOKING_AFTER, main
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent
from router_ml.settings import CHECKOUT

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_place(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ROUTER_ML_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")


def _pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("verb", ["", *DECIDING, *LOOKING_AFTER])
def test_every_verb_has_help(verb: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"] if verb else ["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: router-ml")
    assert len(out.splitlines()) > 4
    if not verb:
        assert all(name in out for name in (*DECIDING, *LOOKING_AFTER, "examples:", "ROUTER_ML_BUNDLE"))


def test_a_table_for_one_query(capsys: Capture) -> None:
    assert main(["route", "check email"]) == 0
    head, rule, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["query", "model", "complexity", "p_success", "p50/p90/p95", "s", "source", "reason"]
    assert "  prior   " in row
    assert set(rule) == {"-", " "}
    assert row.startswith("check email  ")
    assert "p_success ." in row


def test_several_queries_and_what_they_save(capsys: Capture) -> None:
    assert main(["route", "check email", "book a flight\nto Oslo " + "x" * 99]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[3].startswith("book a flight to Oslo xxx")
    assert "…" in lines[3]
    assert lines[4].startswith("expected: ")
    assert "instead of" in lines[4]


def test_lines_of_standard_input_as_json(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    rows = [
        b"\xef\xbb\xbfcheck email\r",
        b"",
        b"   ",
        b'{"text": "send it", "context": {"history": ["the report"]}, "id": 7}',
        "über\u2028uns \x0c neu".encode(),
        b"\xff\xfe broken bytes",
        b'{"not json',
        b"[1, 2]",
    ]
    _pipe(monkeypatch, b"\n".join(rows))
    assert main(["route", "--json"]) == 0
    decisions = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [d["query"] for d in decisions] == [
        "check email",
        "send it",
        "über\u2028uns \x0c neu",
        "\ufffd\ufffd broken bytes",
        '{"not json',
        "[1, 2]",
    ]
    for decision in decisions:
        assert decision["model"] == decision["ranked"][0]["model"]
        assert sum(decision["complexity_probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_a_bad_row_is_named_and_the_others_are_answered(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    rows = [b"check email", b'{"text": 5}', b"", b'{"text": "mail her", "context": {"tools": "mail"}}',
            b'{"text": "x", "context": 7}', b'{"text": "send it", "context": {"n_tools": 2}}']  # fmt: skip
    _pipe(monkeypatch, b"\n".join(rows))
    assert main(["route", "--json"]) == 1
    said = capsys.readouterr()
    assert [json.loads(line)["query"] for line in said.out.splitlines()] == ["check email", "send it"]
    first, second, third = said.err.splitlines()
    assert first.startswith("router-ml: standard input:2: field 'text': must be a string")
    assert second.startswith("router-ml: standard input:4: field 'context.tools': tools must be a list")
    assert third.startswith("router-ml: standard input:5: field 'context': context must be a dictionary")
    _pipe(monkeypatch, b'{"text": null}')
    assert main(["route"]) == 1
    assert capsys.readouterr().out == ""


def test_a_thousand_lines(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    _pipe(monkeypatch, b"".join(b"query %d\n" % i for i in range(1000)))
    assert main(["route", "--json"]) == 0
    assert [json.loads(line)["query"] for line in capsys.readouterr().out.splitlines()] == [
        f"query {i}" for i in range(1000)
    ]


def test_context_from_the_command_line_and_from_a_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "c.json").write_text('{"prompt_tokens": 100000}')
    for given in ('{"prompt_tokens": 100000}', f"@{tmp_path / 'c.json'}"):
        assert main(["route", "--json", "x", "--context", given]) == 0
        assert json.loads(capsys.readouterr().out)["model"] == "llama3.2:3b-instruct"


def test_policies_are_obeyed(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.toml").write_text('preset = "accurate"\n')
    for policy, name in (("fast", "fast"), (str(tmp_path / "mine.toml"), "mine")):
        assert main(["route", "--json", "x", "--policy", policy]) == 0
        assert json.loads(capsys.readouterr().out)["policy"] == name


def test_explain_shows_evidence_and_alternatives(capsys: Capture) -> None:
    assert main(["explain", "book a flight"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("log-odds", "wording", "qwen3:8b", "llama3.2:3b-instruct", "novelty"))
    assert main(["explain", "book a flight", "--json"]) == 0
    explanation = json.loads(capsys.readouterr().out)
    assert explanation["label"] == explanation["decision"]["complexity"]
    assert main(["explain", "what is this", "--context", '{"attachment": "a.png"}']) == 0
    assert "left out: cannot see images" in capsys.readouterr().out


def test_demo_models_and_status(capsys: Capture) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "check email" in out
    assert "bundle: tiny@" in out
    assert main(["models"]) == 0
    assert "qwen3:8b" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert [m["role"] for m in json.loads(capsys.readouterr().out)] == ["fast", "balanced", "accurate"]
    assert main(["status"]) == 1  # no host answers, so no model can be served
    out = capsys.readouterr().out
    assert "no answer from http://127.0.0.1:9" in out
    assert "not on any host           llama3.2:3b-instruct, qwen2.5:3b-instruct, qwen3:8b" in out
    assert main(["status", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["bundle"].startswith("tiny@")
    assert facts["models"] == [{"name": name, "known_by": "priors"} for name in load_catalogue().names]
    assert (facts["ollama"]["host"], facts["ollama"]["models"]) == ("http://127.0.0.1:9", None)
    assert all(isinstance(value, float) for value in facts["metrics"].values())


def test_without_a_usable_bundle_the_rules_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tmp_path / "nowhere"))
    assert main(["route", "--json", "check email"]) == 0
    decision = json.loads(capsys.readouterr().out)
    assert (decision["bundle"], decision["degraded"], decision["complexity"]) == ("heuristic", True, "simple")
    assert main(["status", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["bundle"] is None
    assert "no bundle in" in facts["problem"]
    assert main(["status"]) == 1
    assert "none usable, routing by rules: no bundle in" in capsys.readouterr().out
    assert main(["explain", "check email"]) == 0
    assert "hand-written rules" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["route", "x", "--policy", "nope"], "unknown policy 'nope'"),
        (["route", "x", "--policy", "no\nsuch"], "unknown policy"),
        (["route", "x", "--policy", "/nowhere/p.toml"], "cannot read the policy file"),
        (["route", "x", "--context", "{"], "--context is not JSON"),
        (["route", "x", "--context", "[" * 100_000], "--context is not JSON"),
        (["route", "x", "--context", "[]"], "--context must be a JSON object"),
        (["route", "x", "--context", "@/nowhere"], "cannot read the context file"),
        (["route", "x", "--context", '{"n_tools": -1}'], "n_tools must be a number"),
        (["route", "x", "--context", '{"history": "hi"}'], "history must be a list"),
        (["route", "x", "--bundle", "/nowhere"], "no bundle in /nowhere"),
        (["explain", "x", "--bundle", "/nowhere"], "no bundle in /nowhere"),
        (["explain", "x", "--context", "5"], "--context must be a JSON object"),
        (["feedback", "some-id", "great"], "up, down or a number"),
        (["feedback", "some-id", "nan"], "up, down or a number"),
        (["feedback", "some-id", "1.5"], "up, down or a number"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(arguments: list[str], said: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("router-ml: ")
    assert said in captured.err


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", 2, "standard input is empty"),
        (b"\n \n", 2, "standard input is empty"),
        (b'ok\n{"text": 5}\n', 1, "standard input:2: field 'text'"),
        (b'{"text": "x", "context": []}\n', 1, "context must be a dictionary"),
        (b'{"text": "x", "context": {"tools": 1}}\n', 1, "tools must be a list"),
    ],
)
def test_bad_standard_input_is_one_line(
    data: bytes, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    _pipe(monkeypatch, data)
    assert main(["route", "--json"]) == code
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err


@pytest.mark.parametrize(
    ("name", "value"),
    [("ROUTER_ML_POLICY", "nope"), ("ROUTER_ML_THREADS", "x"), ("ROUTER_ML_CATALOGUE", "/nowhere.toml")],
)
def test_bad_settings_are_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv(name, value)
    assert main(["route", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ([], "router-ml "),
        (["nope"], "router-ml "),
        (["--nope"], "router-ml "),
        (["route", "--nope"], "router-ml route "),
        (["explain"], "router-ml explain "),
        (["explain", "a", "b"], "router-ml explain "),
        (["experiment", "start", "x", "--nope"], "router-ml experiment start "),
        (["alerts", "--window", "soon"], "router-ml alerts "),
    ],
)
def test_wrong_usage_exits_with_2_and_shows_the_usage_of_its_verb(
    arguments: list[str], usage: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: {usage}")
    assert "'soon'" not in said or "write 90s, 15m, 12h, 7d" in said


def test_feedback_is_recorded(tmp_path: Path, capsys: Capture) -> None:
    store = open_store(tmp_path / "state")
    store.append([DecisionEvent("abc", "m", "simple", "balanced", "b", 1.0)])
    store.close()
    assert main(["feedback", "abc", "up"]) == 0
    assert main(["feedback", "abc", "0.25"]) == 0
    assert capsys.readouterr().out.splitlines() == ["recorded 1 for abc", "recorded 0.25 for abc"]


def test_feedback_on_a_decision_nobody_made_is_kept_and_said_so(tmp_path: Path, capsys: Capture) -> None:
    assert main(["feedback", "typo", "up"]) == 1
    said = capsys.readouterr()
    assert "no decision typo is in the event store" in said.err
    assert len(said.err.splitlines()) == 1
    store = open_store(tmp_path / "state")
    assert [stored.event.decision_id for stored in store.read()] == ["typo"]
    store.close()


def _run(*arguments: Any, **changes: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "router_ml.cli", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **changes},
    )


def test_bytes_that_are_no_text_and_a_terminal_that_shows_ascii_only() -> None:
    done = _run("route", b"caf\xe9 \xf0\x9f\x93\xa7 now", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"now" in done.stdout


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; from router_ml.cli import main; main(['route', 'check email']); "
        "print(sorted({'torch', 'sklearn', 'mlflow', 'pandas', 'scipy', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.splitlines()[-1] == b"[]"
