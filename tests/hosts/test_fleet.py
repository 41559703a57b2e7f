"""Hosts and models as the gateway sees them, against a double."""

from __future__ import annotations

import pytest

from router_ml.catalogue import load_catalogue
from router_ml.errors import SettingsError
from router_ml.hosts.fleet import Fleet
from router_ml.hosts.options import GatewayOptions
from tests.ollama_double import DoubleModel, Fault, OllamaDouble
from tests.serve.deciders import catalogue_of

LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
OPTIONS = GatewayOptions(probe_wait_s=60.0, residency_wait_s=60.0, connect_s=10.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_installed_models_are_found_under_any_of_their_names() -> None:
    models = [DoubleModel("llama3.2:3b-instruct-q4_K_M"), DoubleModel("qwen3", capabilities=frozenset({"completion"}))]
    with OllamaDouble(models) as double:
        fleet = Fleet(load_catalogue(), double.url, OPTIONS)
        await fleet.refresh()
        (llama,), (qwen3,) = fleet.backends(LLAMA), fleet.backends("qwen3:latest")
        assert llama.wire_name == "llama3.2:3b-instruct-q4_K_M"
        assert (qwen3.model, qwen3.wire_name) == (QWEN3, "qwen3:latest")
        assert qwen3.capabilities(fleet.catalogue) == {"completion"}
        states = fleet.state().models
        assert {name: state.available for name, state in states.items()} == {LLAMA: True, QWEN2: False, QWEN3: True}
        assert "not installed" in states[QWEN2].reason
        await fleet.close()


async def test_looks_are_repeated_when_they_are_old_and_not_before() -> None:
    clock = Clock()
    with OllamaDouble() as double:
        fleet = Fleet(catalogue_of(LLAMA, QWEN2), double.url, OPTIONS, clock)
        for seconds in (0.0, 2.0, 3.5, 1.0, 300.0):
            clock.now_s += seconds
            await fleet.refresh()
        paths = [seen.path for seen in double.seen]
        assert (paths.count("/api/tags"), paths.count("/api/ps")) == (2, 3)
        await fleet.close()


async def test_what_is_in_memory_is_known_and_forgotten_when_the_host_falls_silent() -> None:
    clock = Clock()
    with OllamaDouble() as double:
        fleet = Fleet(catalogue_of(LLAMA, QWEN2), double.url, OPTIONS, clock)
        double.load_now(LLAMA)
        await fleet.refresh()
        assert [fleet.state().models[name].resident for name in (LLAMA, QWEN2)] == [True, False]
        double.faults.set("*", Fault.TAGS_DOWN)
        clock.now_s += 10.0
        await fleet.refresh()
        assert fleet.state().models[LLAMA].resident is True  # ten seconds old: still worth something
        clock.now_s += 10.0
        await fleet.refresh()
        assert fleet.state().models[LLAMA].resident is None
        assert fleet.state().models[LLAMA].available  # stale-while-error: it was there five minutes ago
        await fleet.close()


async def test_a_load_never_seen_is_estimated_by_size() -> None:
    models = [DoubleModel(LLAMA, size_gb=2.0), DoubleModel(QWEN3, size_gb=5.0)]
    with OllamaDouble(models) as double:
        fleet = Fleet(catalogue_of(LLAMA, QWEN3), double.url, OPTIONS)
        await fleet.refresh()
        assert fleet.state().models[QWEN3].load_s is None
        (llama,) = fleet.backends(LLAMA)
        llama.rates.succeeded(3.0, 2.4)
        llama.answered(cold=True)
        assert fleet.state().models[LLAMA].load_s == pytest.approx(2.4)
        assert fleet.state().models[QWEN3].load_s == pytest.approx(2.4 / 2.0 * 5.0)
        await fleet.close()


async def test_the_state_of_a_model_is_that_of_the_host_that_would_begin_first() -> None:
    with OllamaDouble() as one, OllamaDouble() as other:
        other.load_now(LLAMA)
        catalogue = catalogue_of(LLAMA, hosts={LLAMA: [f"127.0.0.1:{one.port}", other.url]})
        fleet = Fleet(catalogue, one.url, OPTIONS)
        await fleet.refresh()
        assert [backend.host.url for backend in fleet.backends(LLAMA)] == [other.url, one.url]
        assert fleet.state().models[LLAMA].resident is True
        for backend in fleet.backends(LLAMA)[:1]:
            for _ in range(3):
                backend.breaker.acquire().failed()
        assert fleet.backends(LLAMA)[0].host.url == one.url
        assert fleet.state().models[LLAMA].available
        await fleet.close()


@pytest.mark.parametrize("model_hosts", [{}, {LLAMA: ["vllm+http://gpu:8000"]}])
def test_an_unknown_type_of_host_is_named_with_those_there_are(model_hosts: dict[str, list[str]]) -> None:
    default = "http://127.0.0.1:1" if model_hosts else "vllm+http://gpu:8000"
    with pytest.raises(
        SettingsError, match=r"unknown host type 'vllm' in vllm\+http://gpu:8000; use one of ollama, or"
    ):
        Fleet(catalogue_of(LLAMA, hosts=model_hosts), default, OPTIONS)


async def test_the_prefix_of_an_ollama_server_may_be_written_out() -> None:
    with OllamaDouble([DoubleModel(LLAMA)]) as double:
        fleet = Fleet(catalogue_of(LLAMA), f"ollama+{double.url}", OPTIONS)
        await fleet.refresh()
        assert [host.url for host in fleet.hosts] == [double.url]
        assert fleet.state().models[LLAMA].available
        await fleet.close()
