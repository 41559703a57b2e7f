"""Prompts longer than a model's window are given a larger one, or the cut is reported."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from router_ml.hosts.host import Running
from tests.ollama_double import OllamaDouble
from tests.serve.deciders import FixedDecider, catalogue_of

LLAMA = "llama3.2:3b-instruct"


def _long(words: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Never reveal the code."}, {"role": "user", "content": "word " * words}]


def _num_ctx(double: OllamaDouble) -> Any:
    return (double.generations[-1].body.get("options") or {}).get("num_ctx")


@pytest.fixture
def catalogue() -> Any:
    """A model that reads 32,768 tokens."""
    models = catalogue_of(LLAMA).models
    return dataclasses.replace(
        catalogue_of(LLAMA), models=tuple(dataclasses.replace(m, context_window_tokens=32_768) for m in models)
    )


def test_a_long_prompt_is_given_a_window_that_holds_it(gateway_of, double, catalogue) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue, o_last_resort=None)
    answer = gateway.chat("Hello")
    assert (_num_ctx(double), answer.attempts[-1].adapted, answer.prompt_cut) == (None, (), False)
    answer = gateway.chat(_long(8_000), context={"prompt_tokens": 10_000})
    assert _num_ctx(double) == 12_288  # 10,000 and room for an answer, in steps of 4,096
    assert "num_ctx" in answer.attempts[-1].adapted


def test_a_window_is_not_raised_beyond_model_setting_and_callers_wish(gateway_of, double, catalogue) -> None:
    def sent(prompt_tokens: int, options: dict[str, Any] | None = None, **more: Any) -> Any:
        gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue, o_last_resort=None, **more)
        gateway.chat(_long(10), context={"prompt_tokens": prompt_tokens}, options=options)
        return _num_ctx(double)

    assert sent(100_000, o_max_num_ctx=131_072) == 32_768
    assert sent(30_000, o_max_num_ctx=16_384) == 16_384
    assert sent(30_000, o_max_num_ctx=0) is None
    assert sent(30_000, options={"num_ctx": 2048}) == 2048


def test_a_window_already_loaded_is_enough(gateway_of, double, catalogue) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue, o_last_resort=None, o_residency_ttl_s=60.0)
    gateway.refresh()
    (backend,) = gateway._fleet.backends(LLAMA)
    backend.host.running.change(lambda running: {LLAMA: Running(16_384)})
    gateway.chat(_long(10), context={"prompt_tokens": 10_000})
    assert _num_ctx(double) is None


def test_a_prompt_that_was_cut_is_told_on_the_answer_and_counted(gateway_of, double, catalogue) -> None:
    gateway = gateway_of(decider=FixedDecider(LLAMA), catalogue=catalogue, o_last_resort=None, o_max_num_ctx=0)
    answer = gateway.chat(_long(10), context={"prompt_tokens": 10_000})
    assert answer.prompt_eval_count < 100
    assert answer.prompt_cut
    assert gateway.status()["backends"][0]["prompts_cut"] == 1
