"""Other routers ask this one which model or tier to take, through their own packages."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import httpx
import ollama
import pytest

from tests.http.conftest import Running
from tests.serve.conftest import MODELS
from tests.timing import PATIENCE_S

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would be fetched otherwise


@pytest.mark.parametrize(("label", "group"), [("simple", "small"), ("complex", "large")])
async def test_litellm_takes_its_tier_from_here(
    server_of: Callable[..., Running], router_that_says: Callable[..., Any], label: str, group: str
) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed (extra plugins)")
    decider = router_that_says(label)
    server = server_of(decider=decider)
    classifier = {"provider": "jev", "model": "auto", "api_base": server.url, "api_key": "none", "timeout_ms": 60_000}
    tiers = {"SIMPLE": "small", "MEDIUM": "small", "COMPLEX": "large", "REASONING": "large"}
    models = [
        {"model_name": name, "litellm_params": {"model": f"ollama/{name}", "mock_response": name}}
        for name in ("small", "large")
    ]
    auto = {
        "model_name": "auto",
        "litellm_params": {
            "model": "auto_router/complexity_router",
            "complexity_router_config": {
                "classifier_type": "oss_classifier",
                "opensource_classifier_config": classifier,
                "tiers": tiers,
            },
            "complexity_router_default_model": "small",
        },
    }
    router = litellm.Router(model_list=[*models, auto])
    system = {"role": "system", "content": "You are kind."}
    answer = await router.acompletion(model="auto", messages=[system, {"role": "user", "content": "Hello"}])
    assert answer.choices[0].message.content == group


def test_only_the_words_of_the_user_are_read_of_litellm_s_frame(server: Running) -> None:
    state = "\nCaller system prompt, quoted as task context:\nBe kind.\n\nClassify this message:\nHello"
    question = {"type": "choice", "instructions": "?", "criteria": {"SIMPLE": "", "COMPLEX": ""}}
    with server.client() as client:
        client.post("/v1/systemone", json={"state": state, "model": "auto", "questions": {"tier": question}})
    assert server.service.decider.seen[-1][0] == "Hello"  # type: ignore[attr-defined]


def test_langchain_routes_models_by_our_answer(server: Running) -> None:
    pytest.importorskip("langchain.agents.middleware.model_router", reason="langchain is not installed (extra plugins)")
    from langchain.agents import create_agent
    from langchain.agents.middleware import ModelRouterMiddleware
    from langchain.agents.middleware.model_router import ModelChoice
    from langchain_core.decisions import BaseDecisionModel, ClassifierResponse
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    class Ours(BaseDecisionModel):
        url: str

        @property
        def _provider(self) -> str:
            return "router_ml"

        def _classify(self, state: Any, questions: Any) -> ClassifierResponse:
            asked = {name: question.model_dump(exclude_none=True) for name, question in questions.items()}
            text = getattr(state, "content", state)
            body = {"model": self.model, "state": text, "questions": asked}
            answer = httpx.post(f"{self.url}/v1/systemone", json=body, timeout=PATIENCE_S).raise_for_status()
            return ClassifierResponse.model_validate(answer.json())

    choices = {name: ModelChoice(FakeListChatModel(responses=[name]), "any task") for name in MODELS[1:]}
    asks = Ours(model="auto", url=server.url)
    router = ModelRouterMiddleware(choices=choices, instructions="which model?", classifier=asks)
    agent = create_agent(FakeListChatModel(responses=["default"]), middleware=[router])
    answer = agent.invoke({"messages": [{"role": "user", "content": "Hello"}]})
    assert answer["messages"][-1].content == MODELS[1]  # of these two the one of higher utility


async def test_the_ollama_client_asks_typed_questions(server: Running) -> None:
    questions = {
        "tier": ollama.SystemOneChoiceQuestion(instructions="which?", criteria={"simple": None, "complex": None}),
        "level": ollama.SystemOneScoreQuestion(instructions="how hard?", criteria=["simple", "moderate", "complex"]),
    }
    answer = await ollama.AsyncClient(host=server.url).systemone("auto", "Hello", questions)
    assert answer.answers["tier"].choice == "simple"
    assert answer.answers["level"].score == 0.0
    assert answer.usage.output_tokens == 0
