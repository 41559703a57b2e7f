"""Use the router in LangChain: as a chat model, or as the decision model of `ModelRouterMiddleware`.

    from router_ml.plugins.langchain import RouterChatModel, RouterDecisionModel

    agent = create_agent(RouterChatModel(), tools=[...])           # each call goes to the model that suits it

    middleware = ModelRouterMiddleware(                            # or: LangChain calls the models, the router chooses
        choices={"simple": ModelChoice(small, ""), "complex": ModelChoice(large, "")},
        instructions="Which model?", classifier=RouterDecisionModel(),
    )

The names of the choices are complexity labels, tiers (fast, balanced, accurate) or models of the catalogue.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cached_property
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.decisions import BaseDecisionModel, Choice, ChoiceAnswer, ClassifierResponse
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_messages
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from router_ml import Answer, Gateway, Router, build_gateway
from router_ml.decide.choices import choice_question
from router_ml.decide.selection.policy import resolve_policy
from router_ml.errors import QueryError


class RouterDecisionModel(BaseDecisionModel):
    """Answers choice questions between models, tiers or complexity labels, without calling a model."""

    model_config = ConfigDict(arbitrary_types_allowed=True, ignored_types=(cached_property,))

    model: str = "router_ml"
    policy: str = "balanced"
    router: Router = Field(default_factory=Router.load_or_heuristic)

    @property
    def _provider(self) -> str:
        return "router_ml"

    def _classify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        messages = [state] if isinstance(state, str | BaseMessage) else state
        turns = messages if isinstance(messages, Sequence) else [str(messages)]
        conversation = convert_to_messages([turn if isinstance(turn, BaseMessage) else str(turn) for turn in turns])
        answers: Any = {name: self._answer(name, question, conversation) for name, question in questions.items()}
        return ClassifierResponse(model=self.model, answers=answers)

    def _answer(self, name: str, question: Any, messages: list[BaseMessage]) -> ChoiceAnswer:
        if not isinstance(question, Choice):
            raise QueryError(f"question {name!r:.60}: this router answers choices only, got {type(question).__name__}")
        options = list(question.criteria)
        known = choice_question(name, options, self.router.catalogue)
        shares = known.answer(lambda policy: self.router.decide(messages, None, policy), resolve_policy(self.policy))
        return ChoiceAnswer(
            type="choice",
            choice=options[shares.choice],
            probabilities=dict(zip(options, shares.probabilities, strict=True)),
            confidence=shares.confidence,
        )


class RouterChatModel(BaseChatModel):
    """A chat model whose every call goes through a gateway: routed, with fallback, recorded.

    `response_metadata` of each message says which model answered and why."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: str = "balanced"
    gateway: Gateway = Field(default_factory=build_gateway)

    @property
    def _llm_type(self) -> str:
        return "router_ml"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Return a runnable that offers these tools with every call."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(self.gateway.chat(list(messages), **self._arguments(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return _result(await self.gateway.achat(list(messages), **self._arguments(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for part in self.gateway.chat(list(messages), stream=True, **self._arguments(stop, kwargs)):
            yield _chunk(part)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        stream = await self.gateway.achat(list(messages), stream=True, **self._arguments(stop, kwargs))
        async for part in stream:
            yield _chunk(part)

    def _arguments(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        known = ("tools", "format", "think", "context", "model", "deadline_s", "options")
        chosen = {key: given[key] for key in known if given.get(key) is not None}
        if stop:
            chosen["options"] = {**(chosen.get("options") or {}), "stop": stop}
        return {"policy": self.policy, **chosen}


def _result(answer: Answer) -> ChatResult:
    message = AIMessage(
        content=answer.content,
        tool_calls=_tool_calls(answer.message.tool_calls),
        response_metadata={
            "model_name": answer.model,
            "reason": answer.decision.reason,
            "decision_id": answer.decision.decision_id,
        },
        usage_metadata=_usage(answer.prompt_eval_count, answer.eval_count),
    )
    return ChatResult(generations=[ChatGeneration(message=message)])


def _chunk(part: Any) -> ChatGenerationChunk:
    calls: Any = _tool_calls(part.message.tool_calls)
    message = AIMessageChunk(content=part.message.content or "", tool_calls=calls)
    return ChatGenerationChunk(message=message)


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    return [
        {"name": call.function.name, "args": dict(call.function.arguments), "id": f"call_{index}", "type": "tool_call"}
        for index, call in enumerate(calls or ())
    ]


def _usage(prompt_tokens: int | None, output_tokens: int | None) -> Any:
    if prompt_tokens is None or output_tokens is None:
        return None
    total = prompt_tokens + output_tokens
    return {"input_tokens": prompt_tokens, "output_tokens": output_tokens, "total_tokens": total}
