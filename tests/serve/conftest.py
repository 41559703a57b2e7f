"""A double with the three models of the default catalogue, and gateways in front of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from router_ml.hosts import ollama
from router_ml.hosts.options import BreakerOptions
from router_ml.serve import Gateway, GatewayOptions
from tests.ollama_double import OllamaDouble
from tests.serve.deciders import FixedDecider, Recording, catalogue_of

MODELS = ("llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b")
# No limit passes on a machine that is busy with others. A test in which one is to pass says which: `o_idle_s=0.4`.
PATIENT = GatewayOptions(
    deadline_s=60.0, attempt_min_s=30.0, attempt_min_tokens=0, attempt_factor=1.0, cold_load_s=30.0, idle_s=30.0,
    connect_s=30.0, probe_wait_s=30.0, residency_wait_s=30.0, breaker=BreakerOptions(open_s=60.0, open_max_s=60.0),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _patient_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama, "_PROBE_S", 30.0)


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep events out of the home folder."""
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path_factory.getbasetemp() / "state"))


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as running:
        yield running


@pytest.fixture
def recording() -> Recording:
    return Recording()


@pytest.fixture
def gateway_of(double: OllamaDouble, recording: Recording) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways in front of the double; keyword arguments beginning with `o_` change options."""
    made: list[Gateway] = []

    def make(*, decider: Any = None, catalogue: Any = None, **more: Any) -> Gateway:
        changes = {key[2:]: more.pop(key) for key in list(more) if key.startswith("o_")}
        options = dataclasses.replace(PATIENT, **changes)
        gateway = Gateway(
            decider or FixedDecider(*MODELS),
            catalogue or catalogue_of(*MODELS),
            default_host=double.url,
            options=options,
            recorder=recording,
            **more,
        )
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.close()


@pytest.fixture
def gateway(gateway_of: Callable[..., Gateway]) -> Gateway:
    return gateway_of()
