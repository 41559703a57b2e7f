"""What the training queries are changed into, and what must stay."""

from __future__ import annotations

from router_ml.context import parse_context
from router_ml.schema import Query
from training.augment import MAX_TOOLS, TOOLS_SHARE, augmented, tool_names, unmarked, with_tools

NAMES = [f"agent_{i}.do" for i in range(60)]


def _query(i: int, context: dict[str, object] | None = None) -> Query:
    return Query(id=f"q{i}", text="turn on the lamp", context=parse_context(context), label="simple")


def test_about_the_announced_share_is_offered_tools_and_no_label_changes() -> None:
    rows = [_query(i) for i in range(2000)] + [_query(2000, {"tools": NAMES})]
    changed = augmented(rows)
    share = sum(bool(query.context.n_tools) for query in changed[:-1]) / 2000
    assert abs(share - TOOLS_SHARE) < 0.04  # four standard errors of a share of .3 in 2,000
    assert [(q.id, q.text, q.label) for q in changed] == [(q.id, q.text, q.label) for q in rows]


def test_tools_are_drawn_from_the_names_once_each_and_follow_from_the_id_alone() -> None:
    offered = [with_tools(_query(i), NAMES) for i in range(200)]
    for query in offered:
        names = [tool.name for tool in query.context.tools]
        assert 1 <= len(set(names)) == len(names) == query.context.n_tools <= MAX_TOOLS
        assert set(names) <= set(NAMES)
    assert offered == [with_tools(_query(i), NAMES) for i in range(200)]
    assert {query.context.n_tools for query in offered} >= {1, 2, 3}
    assert any(tool.schema_chars for query in offered for tool in query.context.tools)


def test_rows_that_have_tools_keep_them() -> None:
    query = _query(1, {"tools": ["only_this"]})
    assert with_tools(query, NAMES) == query
    assert tool_names([query, _query(2)]) == ["only_this"]


def test_unmarked_turns_keep_their_words() -> None:
    query = _query(1, {"history": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Yes?"}]})
    assert [(t.role, t.content) for t in unmarked(query).context.history] == [("", "hi"), ("", "Yes?")]
