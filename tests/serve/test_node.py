"""The coordinator's node, alone and inside a real LangGraph graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import ollama
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from router_ml.decide.router import Router
from router_ml.errors import QueryError
from router_ml.events.event import DecisionEvent
from router_ml.serve.node import CoordinatorNode
from tests.ollama_double import OllamaDouble
from tests.serve.deciders import BrokenDecider, FixedDecider, Recording, catalogue_of

LLAMA, QWEN2, QWEN3 = "llama3.2:3b-instruct", "qwen2.5:3b-instruct", "qwen3:8b"
CATALOGUE = catalogue_of(LLAMA, QWEN2, QWEN3)
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


class Keywords:
    """An assistant's own intent classifier."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def classify(self, text: str, context: Any) -> str:
        self.seen.append((text, context))
        return "weather" if "rain" in text else "other"


class BrokenClassifier:
    def classify(self, text: str, context: Any) -> str:
        raise RuntimeError("broken")


def _node(**more: Any) -> CoordinatorNode:
    more.setdefault("decider", FixedDecider(LLAMA, QWEN2, QWEN3))
    return CoordinatorNode(catalogue=CATALOGUE, **more)


def test_it_adds_its_keys_and_no_other() -> None:
    out = _node()({"messages": [{"role": "user", "content": "hi"}], "mood": "good"})
    assert set(out) == {"model", "intent", "complexity", "clarify", "routing"}
    assert (out["model"], out["intent"], out["complexity"], out["clarify"]) == (LLAMA, "simple", "simple", False)
    assert out["routing"]["ranked"][1]["model"] == QWEN2


def test_the_router_sees_the_conversation_the_tools_and_the_session() -> None:
    decider = FixedDecider(LLAMA)
    messages = [HumanMessage("find Dana"), AIMessage("found"), HumanMessage("mail her")]
    state = {"messages": messages, "tools": [WEATHER, "send_mail"], "model": QWEN3}
    _node(decider=decider)(state, {"configurable": {"thread_id": "t1"}})
    text, context, *_ = decider.seen[0]
    assert text == "mail her"
    assert [(turn.role, turn.content) for turn in context.history] == [("human", "find Dana"), ("ai", "found")]
    assert [tool.name for tool in context.tools] == ["get_weather", "send_mail"]
    assert context.session_id == "t1"
    assert context.extra["last_model"] == QWEN3


def test_images_of_the_conversation_need_a_model_that_sees() -> None:
    shown = HumanMessage([{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": "x"}}])
    decider = FixedDecider(LLAMA)
    for messages in ([shown], [shown, AIMessage("a cat"), HumanMessage("which colour")]):
        _node(decider=decider)({"messages": messages})
    (_, now, *_), (_, before, *_) = decider.seen
    assert (now.has_images, now.attachment_kind) == (True, "image")
    assert (before.has_images, before.attachment_kind) == (True, "")


def test_an_existing_classifier_keeps_its_job() -> None:
    classifier = Keywords()
    out = _node(classifier=classifier)({"messages": [("user", "will it rain")], "model": QWEN2})
    assert out["intent"] == "weather"
    assert classifier.seen[0][1]["last_model"] == QWEN2


def test_a_broken_classifier_leaves_the_complexity() -> None:
    assert _node(classifier=BrokenClassifier())({"query": "hi"})["intent"] == "simple"


def test_a_broken_router_leaves_the_rules() -> None:
    out = CoordinatorNode(decider=BrokenDecider())({"query": "hi"})
    assert out["model"] == LLAMA  # simple goes to the fastest
    assert out["routing"]["degraded"]
    assert out["routing"]["bundle"] == "heuristic"


def test_the_request_is_recorded() -> None:
    recording = Recording()
    out = _node(recorder=recording)({"query": "hi"}, {"configurable": {"thread_id": "t1"}})
    (event,) = recording.of(DecisionEvent)
    assert (event.model, event.unit, event.text) == (LLAMA, "t1", "hi")
    assert event.decision_id == out["routing"]["decision_id"]


def test_it_stays_with_the_model_that_spoke_last() -> None:
    decider = FixedDecider(LLAMA, QWEN2, utilities=[0.80, 0.78])
    state = {"query": "hi", "model": QWEN2}
    assert _node(decider=decider, stick_margin=0.05)(state)["model"] == QWEN2
    assert _node(decider=decider)(state)["model"] == LLAMA


@dataclass
class OwnState:
    messages: list[Any] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)


@pytest.mark.parametrize(
    "state",
    [{"messages": []}, {"query": None}, {"messages": [AIMessage("hello")]}, {"messages": "hi"}, OwnState(),
     OwnState(["hi"]), {"query": "hi", "context": {"latency_budget_s": -1}}, {"query": "hi", "tools": [3]},
     {"messages": [HumanMessage([{"type": "text", "text": "hi"}])]}],
)  # fmt: skip
def test_no_state_breaks_it(state: Any) -> None:
    assert _node(decider=Router.heuristic())(state)["model"] in {LLAMA, QWEN2, QWEN3}


@pytest.mark.parametrize("state", [{}, {"input": "hi", "chat": []}, object()])
def test_a_state_without_a_conversation_is_an_error_that_names_its_keys(state: Any) -> None:
    with pytest.raises(QueryError, match="neither 'messages' nor 'query'") as caught:
        _node()(state)
    if isinstance(state, dict) and state:
        assert "'chat', 'input'" in str(caught.value)
    assert _node(messages_key="chat")({"chat": ["hi"]})["model"] == LLAMA


class GraphState(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    tools: list[Any]
    model: str
    intent: str
    complexity: str
    clarify: bool
    routing: dict[str, Any]
    mood: str


def _graph(url: str, node: CoordinatorNode) -> Any:
    client = ollama.Client(host=url)
    roles = {"human": "user", "ai": "assistant"}

    def answer(state: GraphState) -> dict[str, Any]:
        turns = [{"role": roles[m.type], "content": m.content} for m in state["messages"]]
        said = client.chat(model=state["model"], messages=turns).message.content
        return {"messages": [AIMessage(said or "")]}

    graph = StateGraph(GraphState)
    graph.add_node("route", node)
    graph.add_node("answer", answer)
    graph.add_edge(START, "route")
    graph.add_edge("route", "answer")
    graph.add_edge("answer", END)
    return graph.compile()


async def test_inside_a_real_graph() -> None:
    recording = Recording()
    with OllamaDouble() as double:
        graph = _graph(double.url, _node(decider=FixedDecider(QWEN2, LLAMA), recorder=recording))
        start = {"messages": [HumanMessage("hi")], "mood": "good", "tools": [WEATHER]}
        config = {"configurable": {"thread_id": "t1"}}
        done = graph.invoke(start, config)
        assert done["messages"][-1].content == "Qwen two says hello."
        assert (done["model"], done["mood"]) == (QWEN2, "good")
        again = await graph.ainvoke({**done, "messages": [HumanMessage("and now?")]}, config)
        assert again["model"] == QWEN2
    assert [event.unit for event in recording.of(DecisionEvent)] == ["t1", "t1"]  # the graph handed its config over
