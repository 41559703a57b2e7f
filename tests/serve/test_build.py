"""The composition root builds something that works from settings alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from router_ml.decide.router import Router
from router_ml.errors import GatewayError, SettingsError
from router_ml.events.connect import open_store
from router_ml.events.store import EventFilter
from router_ml.serve.build import build_gateway, build_node
from router_ml.settings import Settings, load_settings
from tests.ollama_double import DoubleModel, OllamaDouble
from tests.ollama_double.faults import Fault
from tests.serve.deciders import Recording


def test_settings_alone_make_a_gateway_that_answers_and_records(tmp_path) -> None:
    with OllamaDouble() as double:
        settings = Settings(models_dir=tmp_path / "none", ollama_host=double.url, state_dir=tmp_path / "state",
                            answer_cache_size=10, deadline_s=20.0)  # fmt: skip
        with build_gateway(settings, decider=Router.heuristic()) as gateway:
            context = {"session_id": "s"}
            first, second = (gateway.chat("Hello", options={"temperature": 0}, context=context) for _ in range(2))
            assert first.content.endswith("hello.")
            assert second.cached
    kinds = [stored.event.__class__.__name__ for stored in open_store(settings.state_dir).read(EventFilter())]
    assert sorted(kinds) == ["AttemptEvent", "DecisionEvent", "OutcomeEvent", "OutcomeEvent"]


def test_what_was_recorded_is_written_even_when_nobody_closes_the_gateway(tmp_path) -> None:
    script = (
        "from router_ml.serve.build import build_gateway\n"
        "from router_ml.decide.router import Router\n"
        "gateway = build_gateway(decider=Router.heuristic())\n"
        "print(gateway.chat('Hello').content)\n"
    )
    with OllamaDouble() as double:
        env = {**os.environ, "OLLAMA_HOST": double.url, "ROUTER_ML_STATE_DIR": str(tmp_path)}
        run = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "Qwen two says hello.")  # unsure rules choose it
    assert len(list(open_store(tmp_path).read(EventFilter()))) == 3


def test_a_node_decides_and_records(tmp_path) -> None:
    recording = Recording()
    node = build_node(Settings(state_dir=tmp_path), decider=Router.heuristic(), recorder=recording)
    assert node({"query": "hi"})["model"] == "qwen2.5:3b-instruct"
    assert len(recording.events) == 1


def test_the_environment_sets_what_the_gateway_does() -> None:
    env = {
        "ROUTER_ML_DEADLINE_S": "30",
        "ROUTER_ML_LAST_RESORT": "none",
        "ROUTER_ML_PARALLEL": "2",
        "ROUTER_ML_STICK_MARGIN": "0.05",
        "ROUTER_ML_PRELOAD": "1",
        "ROUTER_ML_ANSWER_CACHE": "100",
    }
    settings = load_settings(env)
    found = (settings.deadline_s, settings.last_resort, settings.parallel, settings.stick_margin, settings.preload)
    assert found == (30.0, None, 2, 0.05, True)
    assert settings.answer_cache_size == 100
    assert load_settings({}).last_resort == "qwen3:8b"


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="ROUTER_ML_DEADLINE_S"):
        load_settings({"ROUTER_ML_DEADLINE_S": value})


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:5", "http://1.2.3.4:5"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":5", "http://127.0.0.1:5"),
        ("https://example.com/", "https://example.com"),
    ],
)
def test_hosts_are_read_as_ollamas_client_reads_them(value: str, url: str) -> None:
    assert load_settings({"OLLAMA_HOST": value}).ollama_host == url


@pytest.mark.parametrize(
    "odd",
    [{"policy": "quick"}, {"policy": "/no/such.toml"}, {"deadline_s": float("nan")}, {"deadline_s": "5"},
     {"parallel": 0}, {"parallel": None}, {"stick_margin": float("nan")}, {"answer_cache_size": -1}],
    ids=str,
)  # fmt: skip
def test_odd_settings_are_found_when_the_gateway_is_built(tmp_path, odd) -> None:
    settings = Settings(state_dir=tmp_path, **odd)
    with pytest.raises(SettingsError):
        build_gateway(settings, decider=Router.heuristic(), recorder=Recording())


def test_a_node_reads_the_settings_given_to_it(tmp_path) -> None:
    settings = Settings(state_dir=tmp_path, models_dir=tmp_path / "none", policy="accurate")
    assert build_node(settings, recorder=Recording())({"query": "hi"})["routing"]["policy"] == "accurate"
    with pytest.raises(SettingsError, match="ROUTER_ML_POLICY"):
        build_node(Settings(state_dir=tmp_path, policy="quick"))


def test_without_a_catalogue_the_models_of_the_host_are_served_and_no_other(tmp_path) -> None:
    with OllamaDouble([DoubleModel("gemma3:4b", "Gemma says hello.", family="gemma3")]) as double:
        settings = Settings(models_dir=tmp_path / "none", ollama_host=double.url, state_dir=tmp_path / "state",
                            deadline_s=20.0)  # fmt: skip
        with build_gateway(settings, recorder=Recording()) as gateway:
            answer = gateway.chat("Hello")
            assert answer.model == "gemma3:4b"
            assert {row["model"] for row in gateway.status()["backends"]} == {"gemma3:4b"}
        asked = {seen.model for seen in double.seen if seen.path == "/api/chat"}
    assert asked == {"gemma3:4b"}  # the last resort, qwen3:8b, is not there


def test_the_last_resort_is_not_called_where_it_is_not_installed(tmp_path) -> None:
    broken = DoubleModel("gemma3:4b", family="gemma3")
    with OllamaDouble([broken]) as double:
        double.faults.set("gemma3:4b", Fault.ERROR_500)
        settings = Settings(models_dir=tmp_path / "none", ollama_host=double.url, state_dir=tmp_path / "state",
                            deadline_s=20.0)  # fmt: skip
        with build_gateway(settings, recorder=Recording()) as gateway, pytest.raises(GatewayError):
            gateway.chat("Hello")
        assert "qwen3:8b" not in {str(seen.body.get("model")) for seen in double.seen if seen.path == "/api/chat"}
