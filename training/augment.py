"""Changes of training queries that keep their labels.

Tools on offer say what an assistant can do, not what was asked; an assistant offers them with every query. The corpus
has few rows with tools, so without these changes a classifier takes tools themselves for a sign.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from router_ml.schema import Query, Tool, Turn
from training.splits import unit_interval

TOOLS_SHARE = 0.3  # of the rows without tools that are given some
UNMARKED_SHARE = 0.2  # of the rows with a history whose turns lose their speakers
MAX_TOOLS = 40


def tool_names(queries: Sequence[Query]) -> list[str]:
    """Every tool name that occurs in the contexts."""
    return sorted({tool.name for query in queries for tool in query.context.tools})


def with_tools(query: Query, names: Sequence[str], seed: int = 0) -> Query:
    """The query with 1 to `MAX_TOOLS` random tools on offer, half of the time with schemas of realistic size."""
    if query.context.n_tools or not names:
        return query
    rng = random.Random(f"{seed}|{query.id}")
    count = min(len(names), round(MAX_TOOLS ** rng.random()))
    described = rng.random() < 0.5
    tools = tuple(_tool(name, described, rng) for name in rng.sample(list(names), count))
    return replace(query, context=replace(query.context, tools=tools, n_tools=count))


def unmarked(query: Query) -> Query:
    """The query with a history whose turns do not say who spoke."""
    turns = tuple(Turn("", turn.content) for turn in query.context.history)
    return replace(query, context=replace(query.context, history=turns))


def augmented(queries: Sequence[Query], seed: int = 0) -> list[Query]:
    """The queries, some with tools on offer and some with unmarked turns; which ones depends on their ids alone."""
    names = tool_names(queries)
    changed = []
    for query in queries:
        if unit_interval(query.id, f"tools{seed}") < TOOLS_SHARE:
            query = with_tools(query, names, seed)
        if query.context.history and unit_interval(query.id, f"unmarked{seed}") < UNMARKED_SHARE:
            query = unmarked(query)
        changed.append(query)
    return changed


def _tool(name: str, described: bool, rng: random.Random) -> Tool:
    if not described:
        return Tool(name)
    parameters = rng.randint(0, 6)
    return Tool(
        name,
        description=name.replace("_", " ").replace(".", " "),
        n_parameters=parameters,
        n_required=rng.randint(0, parameters),
        schema_chars=120 + 90 * parameters + rng.randint(0, 200),
    )
