"""LiteLLM's own router chooses tiers and deployments through this router."""

from __future__ import annotations

from typing import Any

import pytest

litellm = pytest.importorskip("litellm", reason="litellm is not installed (extra plugins)")

from router_ml.plugins.litellm import ComplexityClassifier, RoutingStrategy, last_user_turn, own_name  # noqa: E402

EASY = [{"role": "user", "content": "turn off the kitchen lights"}]
HARD = [{"role": "user", "content": "find a free hour with Dana and mail her the agenda"}]


def _deployments(*models: str, group: str = "local") -> list[dict[str, Any]]:
    return [
        {
            "model_name": group,
            "litellm_params": {"model": model, "api_base": "http://127.0.0.1:9", "mock_response": model},
        }
        for model in models
    ]


@pytest.mark.parametrize(("messages", "model"), [(EASY, "llama3.2:3b-instruct"), (HARD, "qwen2.5:3b-instruct")])
async def test_a_group_is_served_by_the_model_that_suits_the_query(messages: Any, model: str) -> None:
    router = litellm.Router(model_list=_deployments("ollama/llama3.2:3b-instruct", "ollama/qwen2.5:3b-instruct"))
    router.set_custom_routing_strategy(RoutingStrategy(router))
    answer = await router.acompletion(model="local", messages=messages)
    assert answer.choices[0].message.content == f"ollama/{model}"


@pytest.mark.parametrize(("messages", "model"), [(EASY, "small"), (HARD, "large")])
async def test_the_complexity_router_takes_our_label_as_its_tier(messages: Any, model: str) -> None:
    auto = {
        "model_name": "auto",
        "litellm_params": {
            "model": "auto_router/complexity_router",
            "complexity_router_config": {
                "classifier_type": "custom",
                "classifier_plugin": ComplexityClassifier(),
                "tiers": {"SIMPLE": "small", "MEDIUM": "small", "COMPLEX": "large", "REASONING": "large"},
            },
            "complexity_router_default_model": "small",
        },
    }
    models = [*_deployments("ollama/small", group="small"), *_deployments("ollama/large", group="large"), auto]
    router = litellm.Router(model_list=models)
    answer = await router.acompletion(model="auto", messages=messages)
    assert answer.choices[0].message.content == f"ollama/{model}"


def test_a_group_of_models_unknown_to_the_catalogue_is_still_served() -> None:
    class Group:
        model_list = _deployments("openai/one", "openai/two")

    assert RoutingStrategy(Group()).get_available_deployment("local", EASY) in Group.model_list


def test_the_last_user_turn_is_read_with_what_stood_before_it() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, *EASY]
    assert last_user_turn(turns) == (EASY[0]["content"], turns[:2])
    assert last_user_turn([{"role": "user", "content": [{"type": "text", "text": "a"}]}]) == ("a", [])
    assert last_user_turn([{"role": "system", "content": "x"}]) == ("", [])


def test_the_provider_is_no_part_of_a_model_s_name() -> None:
    assert own_name({"litellm_params": {"model": "ollama_chat/qwen3:8b"}}) == "qwen3:8b"
    assert own_name({"litellm_params": {"model": "qwen3:8b"}}) == "qwen3:8b"
