"""Use the router as a node of a LangGraph graph. Needs langgraph (pip install langgraph).

python examples/graph_node.py
"""

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from router_ml import CoordinatorNode


class State(TypedDict, total=False):
    messages: list[dict[str, Any]]
    model: str
    complexity: str
    clarify: bool
    routing: dict[str, Any]


graph = StateGraph(State)
graph.add_node("route", CoordinatorNode())
graph.add_edge(START, "route")
graph.add_edge("route", END)

state = graph.compile().invoke({"messages": [{"role": "user", "content": "find a free hour with Dana"}]})
print(state["model"], state["complexity"], state["routing"]["reason"])
