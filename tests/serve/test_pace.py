"""The first model that answers does not keep all later queries because the others' speed is not known yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router_ml import build_gateway
from router_ml.settings import Settings
from router_ml.types import MachineState, ModelState
from tests.ollama_double import DoubleModel, OllamaDouble

SIZES_GB = {"llama3.2:3b-instruct": 2.0, "qwen2.5:3b-instruct": 1.9, "qwen3:8b": 5.2}


@pytest.mark.parametrize("first", ["simple", "complex"])
@pytest.mark.parametrize("decode_tokens_per_s", [60.0, 600.0])
def test_what_is_served_soon_is_what_the_policy_serves_on_known_rates(
    router_that_says: Callable[..., Any], tmp_path: Path, first: str, decode_tokens_per_s: float
) -> None:
    rates = {name: decode_tokens_per_s * 2.0 / size_gb for name, size_gb in SIZES_GB.items()}
    models = [DoubleModel(name, size_gb=size_gb, decode_tokens_per_s=rates[name]) for name, size_gb in SIZES_GB.items()]
    known = MachineState({name: ModelState(resident=True, decode_tokens_per_s=rate) for name, rate in rates.items()})
    other = "complex" if first == "simple" else "simple"
    routers = {label: router_that_says(label) for label in (first, other)}
    served: dict[str, list[str]] = {label: [] for label in routers}
    label = first

    class Chosen:
        def decide(self, *args: Any, **more: Any) -> Any:
            return routers[label].decide(*args, **more)

    with OllamaDouble(models) as double:
        settings = Settings(ollama_host=double.url, state_dir=tmp_path)
        with build_gateway(settings, decider=Chosen(), catalogue=routers[first].catalogue) as gateway:
            for round_ in range(10):
                label = first if round_ == 0 or round_ % 2 else other
                served[label].append(gateway.chat(f"query {round_}").model)
    expected = {each: router.decide("query", machine=known).model for each, router in routers.items()}
    assert {each: set(models[-3:]) for each, models in served.items()} == {each: {m} for each, m in expected.items()}
