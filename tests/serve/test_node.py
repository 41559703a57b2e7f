"""The coordinator's node, alone and inside a real LangGraph graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import ollama
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from router_ml.decide.router import Router
from router_ml.errors import QueryError
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent
from router_ml.events.store import EventFilter
from router_ml.serve.node import CoordinatorNode, settings_recorder
from router_ml.settings import load_settings
from tests.ollama_double import OllamaDouble
from tests.serve.deciders import BrokenDecider, FixedDecider, Recording, Unsure, catalogue_of

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
    assert [(turn.role, turn.content) for turn in context.history] == [("user", "find Dana"), ("assistant", "found")]
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
    assert out["model"] == QWEN2  # the rules call it simple, but are right in half of the cases only
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


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def _itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "state",
    [{"messages": 5}, {"messages": True}, {"messages": [None, None]}, {"messages": (m for m in ["hi"])},
     {"messages": [{"role": "user", "content": _nested(900)}]}, {"messages": [{"role": "user", "content": _itself()}]},
     {"messages": [{"role": _nested(900), "content": "x"}]}, {"messages": "hi", "tools": 5},
     {"messages": "hi", "tools": [{"name": "f", "parameters": _itself()}, "g"]}, {"messages": "\ud83d"},
     {"messages": "hi", "context": {"n_tools": _nested(900), "tools": [_itself()], "attachment": _nested(900)}},
     {"messages": "hi", "session_id": _nested(900)}, {"messages": "hi", "model": ["x"]}],
)  # fmt: skip
def test_whatever_a_conversation_holds_it_decides(state: Any) -> None:
    assert _node(decider=Router.heuristic())(state, {"configurable": "x"})["model"] in {LLAMA, QWEN2, QWEN3}


def test_one_message_alone_is_a_conversation() -> None:
    decider = FixedDecider(LLAMA)
    for alone in ({"role": "user", "content": "hi"}, HumanMessage("hi"), "hi"):
        _node(decider=decider)({"messages": alone})
    assert [text for text, *_ in decider.seen] == ["hi"] * 3


def test_an_unreadable_part_costs_nothing_else() -> None:
    decider = FixedDecider(LLAMA)
    tools = [{"name": "f", "parameters": _itself()}, WEATHER]
    _node(decider=decider)({"messages": [3, "hi"], "tools": tools, "context": {"n_tools": [], "latency_budget_s": 2}})
    text, context, *_ = decider.seen[0]
    assert (text, [tool.name for tool in context.tools], context.latency_budget_s) == ("hi", ["get_weather"], 2)


CALL = {"function": {"name": "get_mail", "arguments": {"q": "x"}}}
LOOP = [
    {"role": "user", "content": "check my mail"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "mail " * 24_000, "tool_name": "get_mail"},
]


def test_tool_results_count_in_the_size_of_the_prompt() -> None:
    decider = FixedDecider(LLAMA)
    _node(decider=decider)({"messages": LOOP})
    _, context, *_ = decider.seen[0]
    assert context.prompt_tokens == pytest.approx(30_000, rel=0.01)  # 120,000 characters, four to a token


def test_a_tools_result_goes_to_the_model_that_asked() -> None:
    out = _node()({"messages": LOOP, "model": QWEN3})
    assert (out["model"], out["routing"]["reason"]) == (QWEN3, f"{QWEN3} asked for the tool whose result this is")
    assert _node()({"messages": LOOP, "model": "unknown"})["model"] == LLAMA
    assert _node()({"messages": [*LOOP, {"role": "user", "content": "thanks"}], "model": QWEN3})["model"] == LLAMA


QUESTION = "What exactly do you mean? Please say a little more."


@pytest.mark.parametrize(
    ("state", "asks"),
    [
        ({"messages": ["send it"]}, True),
        ({"query": "send it"}, True),
        ({"messages": LOOP}, False),
        ({"messages": ["user: send it", f"assistant: {QUESTION}", "user: the thing"]}, False),
        ({"messages": ["user: send it", "assistant: Send what?", "user: the thing"], "clarify": True}, False),
        ({"messages": ["user: send it", "assistant: Send what?", "user: the thing"], "clarify": False}, True),
        ({"messages": ["send it"], "clarify": True}, True),
    ],
)
def test_a_question_is_never_asked_in_a_tool_loop_nor_twice_in_a_row(state: Any, asks: bool) -> None:
    assert _node(decider=Unsure(LLAMA))(state)["clarify"] is asks


def test_a_node_alone_records_its_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTER_ML_STATE_DIR", str(tmp_path))
    out = CoordinatorNode(decider=FixedDecider(LLAMA))({"query": "hi"})
    settings_recorder(load_settings()).close()  # type: ignore[attr-defined]
    (stored,) = open_store(tmp_path).read(EventFilter())
    assert stored.event.decision_id == out["routing"]["decision_id"]


def test_a_recorder_that_raises_costs_no_decision() -> None:
    class Raises:
        def record(self, event: object) -> None:
            raise OSError("full")

    assert _node(recorder=Raises())({"query": "hi"})["model"] == LLAMA


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
