"""A server in front of a double, in this process, on a free port of the loopback interface."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from router_ml.hosts import ollama
from router_ml.http import proxy
from router_ml.http.options import ServerOptions
from router_ml.http.server import Server, listen
from router_ml.http.service import Service, open_service
from router_ml.settings import Settings
from tests.ollama_double import DoubleModel, OllamaDouble, default_models
from tests.serve.conftest import MODELS, PATIENT
from tests.serve.deciders import FixedDecider, catalogue_of
from tests.timing import PATIENCE_S, until


@pytest.fixture(autouse=True)
def _patient_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "_TAGS_WAIT_S", PATIENCE_S)
    monkeypatch.setattr(ollama, "_PROBE_S", PATIENCE_S)


class Running:
    """One server that runs in a thread."""

    def __init__(self, service: Service) -> None:
        self.service = service
        listener = listen(service.options)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = Server(service)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        until(lambda: self._server.started)

    def client(self, **more: Any) -> httpx.Client:
        """A plain HTTP client."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, **more)

    def stop(self) -> None:
        """Stop as a signal would."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        self.service.close()


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as running:
        yield running


@pytest.fixture
def server_of(double: OllamaDouble, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Makes servers in front of the double; `o_` changes options of the gateway, others those of the server."""
    made: list[Running] = []

    def make(*, decider: Any = None, catalogue: Any = None, **more: Any) -> Running:
        limits = dataclasses.replace(PATIENT, **{key[2:]: more.pop(key) for key in list(more) if key.startswith("o_")})
        settings = Settings(state_dir=tmp_path / "state", ollama_host=double.url)
        options = ServerOptions(**{"port": 0, "stop_s": 1.0, **more})
        service = open_service(
            settings,
            options,
            decider=decider or FixedDecider(*MODELS),
            catalogue=catalogue or catalogue_of(*MODELS),
            gateway_limits=limits,
        )
        running = Running(service)
        made.append(running)
        return running

    yield make
    for running in made:
        running.stop()


@pytest.fixture
def server(server_of: Callable[..., Running]) -> Running:
    return server_of()


def with_models(*models: DoubleModel) -> tuple[DoubleModel, ...]:
    """The double's usual models, and these."""
    return (*default_models(), *models)
