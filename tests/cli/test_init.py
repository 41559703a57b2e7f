"""router-ml init: the catalogue it writes, what a second run keeps, and what it says where there is nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from router_ml.catalogue import load_catalogue
from router_ml.cli import main
from router_ml.decide.router import Router
from router_ml.settings import load_settings
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.timing import Stopwatch

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ROUTER_ML_BUNDLE", str(tiny_bundle))
    monkeypatch.delenv("ROUTER_ML_CATALOGUE", raising=False)
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaDouble]:
    with OllamaDouble() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        yield server


def test_a_host_with_three_models_becomes_a_catalogue_that_serving_finds(double: OllamaDouble, capsys: Capture) -> None:
    with Stopwatch() as watch:
        assert main(["init"]) == 0
    assert watch.s < 20
    assert len(double.generations) == 4  # one for each model, and one with thinking
    settings = load_settings()
    assert settings.catalogue == settings.state_dir / "catalogue.toml"
    catalogue = load_catalogue(settings.catalogue)
    assert set(catalogue.names) == {"llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"}
    assert {model.role for model in catalogue.models} == {"fast", "balanced", "accurate"}
    assert [arm.think for arm in catalogue["qwen3:8b"].arms] == [False, True]
    for arm in catalogue.arms:
        assert arm.prior.latency_source == "measured"
        assert arm.context_window_tokens == 4096
    decision = Router.heuristic(catalogue).decide("check email")
    assert {candidate.latency_source for candidate in decision.ranked} == {"measured"}
    assert {candidate.source for candidate in decision.ranked} == {"prior"}
    out = capsys.readouterr().out
    assert 'What the policy "balanced" would do now' in out
    assert "book a flight" in out
    assert "no policy ever chooses it" in out  # on the double a larger model is as fast


def test_without_measuring_no_model_runs(double: OllamaDouble) -> None:
    assert main(["init", "--no-measure"]) == 0
    assert double.generations == []
    assert [seen for seen in double.seen if seen.method == "POST" and seen.path != "/api/show"] == []
    assert load_catalogue(load_settings().catalogue)["qwen3:8b"].measured is None


def test_a_second_run_keeps_edits_adds_models_and_marks_those_that_are_gone(
    double: OllamaDouble, capsys: Capture
) -> None:
    assert main(["init"]) == 0
    path = load_settings().catalogue
    assert path is not None
    text = path.read_text()
    edited = text.replace('role = "balanced"', 'role = "balanced"  # my favourite\nprice_output_usd_per_mtok = 3')
    path.write_text(edited)
    del double.models["llama3.2:3b-instruct"]
    double.models["gemma3:4b"] = DoubleModel("gemma3:4b", family="gemma3")
    assert main(["init"]) == 0
    merged = path.read_text()
    assert "# my favourite\nprice_output_usd_per_mtok = 3" in merged
    assert merged.count("\nabsent = true") == 1
    assert set(load_catalogue(path).names) == {"qwen2.5:3b-instruct", "qwen3:8b", "gemma3:4b"}
    assert path.with_name("catalogue.toml.bak").read_text() == edited

    double.models["llama3.2:3b-instruct"] = DoubleModel("llama3.2:3b-instruct")
    assert main(["init"]) == 0
    assert "\nabsent" not in path.read_text()
    assert len(load_catalogue(path)) == 4
    assert path.read_text().count("[model.measured]\n") == 4


def test_a_host_that_does_not_answer_marks_nothing_as_gone(double: OllamaDouble, capsys: Capture) -> None:
    assert main(["init", "--no-measure"]) == 0
    del double.models["qwen3:8b"]
    assert main(["init", "--no-measure", "--hosts", double.url, "http://127.0.0.1:9"]) == 0
    assert "left out: http://127.0.0.1:9 takes no connections" in capsys.readouterr().out
    assert "qwen3:8b" in load_catalogue(load_settings().catalogue)


def test_force_writes_anew(double: OllamaDouble, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("this is = not TOML at all [")
    assert main(["init", "--no-measure", "--out", str(out)]) == 2
    assert main(["init", "--no-measure", "--force", "--out", str(out)]) == 0
    assert len(load_catalogue(out)) == 3


@pytest.mark.parametrize(
    ("models", "advice"),
    [
        ([], "has no model; install one that does, for example: ollama pull"),
        (
            [DoubleModel("nomic-embed-text", capabilities=frozenset({"embedding"}))],
            "has only models that do not chat (nomic-embed-text:latest)",
        ),
    ],
)
def test_a_host_without_a_model_that_chats_gets_one_line_of_advice(
    models: list[DoubleModel], advice: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    with OllamaDouble(models) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert main(["init"]) != 0
    out, err = capsys.readouterr()
    assert out == ""
    assert advice in err
    assert len(err.splitlines()) == 1
    assert load_settings().catalogue is None


def test_no_host_gets_one_line_of_advice(capsys: Capture) -> None:
    assert main(["init"]) != 0
    err = capsys.readouterr().err
    assert "ollama serve" in err
    assert len(err.splitlines()) == 1
