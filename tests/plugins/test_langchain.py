"""LangChain's own agents and middleware work with the router as chat model and as decision model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("langchain", reason="langchain is not installed (extra plugins)")

from langchain.agents import create_agent
from langchain.agents.middleware import ModelChoice, ModelRouterMiddleware
from langchain_core.decisions import Choice, Noul
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from router_ml import Gateway, Router, build_gateway
from router_ml.bundles.registry import shipped_bundle
from router_ml.errors import QueryError
from router_ml.plugins.langchain import RouterChatModel, RouterDecisionModel
from router_ml.settings import Settings
from tests.ollama_double import OllamaDouble

EASY, HARD = "turn off the kitchen lights", "find a free hour with Dana and mail her the agenda"


@pytest.fixture(scope="module")
def decisions() -> RouterDecisionModel:
    return RouterDecisionModel(router=Router.load(shipped_bundle()))


@pytest.fixture
def gateway(tmp_path: Any) -> Iterator[Gateway]:
    with OllamaDouble() as double:
        settings = Settings(ollama_host=double.url, state_dir=tmp_path)
        with build_gateway(settings, decider=Router.load(shipped_bundle())) as made:
            yield made


@pytest.mark.parametrize(("query", "who"), [(EASY, "small"), (HARD, "large")])
def test_langchain_s_middleware_sends_a_task_to_the_model_of_its_label(
    decisions: RouterDecisionModel, query: str, who: str
) -> None:
    models = {name: FakeListChatModel(responses=[name]) for name in ("small", "large")}
    middleware = ModelRouterMiddleware(
        choices={
            "simple": ModelChoice(models["small"], "one action"),
            "moderate": ModelChoice(models["small"], "several values"),
            "complex": ModelChoice(models["large"], "several steps"),
        },
        instructions="Which model suits the task?",
        classifier=decisions,
    )
    agent = create_agent(models["small"], middleware=[middleware])
    answer = agent.invoke({"messages": [HumanMessage(query)]})
    assert answer["messages"][-1].content == who


def test_a_choice_between_models_has_a_probability_for_each(decisions: RouterDecisionModel) -> None:
    question = Choice(instructions="which?", criteria={"llama3.2:3b-instruct": "", "qwen2.5:3b-instruct": ""})
    answer = decisions.invoke({"state": HARD, "questions": {"model": question}}).choices["model"]
    assert answer.choice == "qwen2.5:3b-instruct"
    assert sum(answer.probabilities.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "question",
    [Noul(instructions="is it urgent?"), Choice(instructions="which?", criteria={"billing": "", "sales": ""})],
)
def test_a_question_it_cannot_answer_is_refused(decisions: RouterDecisionModel, question: Any) -> None:
    with pytest.raises(QueryError, match="this router answers"):
        decisions.invoke({"state": EASY, "questions": {"q": question}})


def test_a_chat_says_which_model_answered(gateway: Gateway) -> None:
    message = RouterChatModel(gateway=gateway).invoke([SystemMessage("be brief"), HumanMessage(EASY)])
    assert isinstance(message, AIMessage)
    assert message.content
    assert message.response_metadata["model_name"] == "llama3.2:3b-instruct"


async def test_an_answer_streams(gateway: Gateway) -> None:
    model = RouterChatModel(gateway=gateway)
    who = {"model": "llama3.2:3b-instruct"}
    whole = (await model.ainvoke(EASY, **who)).content
    parts = [part.content async for part in model.astream(EASY, **who)]
    assert len(parts) > 1
    assert "".join(parts) == whole
    assert "".join(part.content for part in model.stream(EASY, **who)) == whole


def test_offered_tools_are_called_in_langchain_s_form(gateway: Gateway) -> None:
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        return f"sunny in {city}"

    message = RouterChatModel(gateway=gateway).bind_tools([get_weather]).invoke("what is the weather in Oslo?")
    assert [call["name"] for call in message.tool_calls] == ["get_weather"]
    assert message.tool_calls[0]["id"]
