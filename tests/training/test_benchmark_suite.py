"""The shipped cases: sound, balanced, solvable by doing what is asked, and not by anything less."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from router_ml.jsonl import read_queries
from router_ml.types import LABELS, Query
from training.benchmark import suite_path
from training.measuring.conversation import messages_of, tools_of
from training.measuring.expected_answer import ExpectedAnswer, ExpectedCall, expected_answer
from training.measuring.measured_answer import MeasuredAnswer
from training.measuring.scoring import outcome
from training.measuring.tool_calls import MadeCall

QUERIES = read_queries(suite_path())
EXPECTED = {query.id: expected_answer(query) for query in QUERIES}

# What a person would write where a case only describes the text.
WRITTEN = {
    r"(ten|10).*late|late.*(ten|10)": "Sorry, I'm running ten minutes late.",
    r"acc": "Accountant",
    r"off?ice": "their office",
    r"^Taxes/2026/?(invoice_0117\.pdf)?$": "Taxes/2026/invoice_0117.pdf",
    r"8|eight": "Dinner is at eight, not at seven.",
    r"1[,. ]?284[.,]50?": "Brightwater billed 1,284.50 EUR.",
    r"train": "It will rain, so we are taking the train.",
    r"39[.,]90?": "You charged me twice; please pay back 39.90 euros.",
    r"Tuesday|17": "The dentist is now on Tuesday at 14:00.",
}
TEXTS = {"regex": {r"\b54\b": "54 euros more", r"10[ ,.\u202f]?080": "There are 10,080."}}


def written(expected: Any, schema: dict[str, Any]) -> Any:
    """A value a careful model might give where `expected` stands."""
    if isinstance(expected, list):
        return [written(item, {}) for item in expected]
    if not isinstance(expected, dict):
        return expected
    ((pattern, wanted),) = expected.items()
    if pattern == "$any":
        return wanted[0]
    if pattern == "$contains":
        return wanted if isinstance(wanted, str) else " and ".join(wanted)
    if pattern == "$regex":
        return WRITTEN[wanted]
    return {"integer": 60, "number": 60.0}.get(schema.get("type", ""), "Something")


def schemas(query: Query) -> dict[str, dict[str, Any]]:
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools_of(query)}


def made(query: Query, call: ExpectedCall, *, sparing: bool) -> MadeCall:
    """The call as a careful model makes it; a sparing one leaves out what may be left out."""
    properties = schemas(query)[call.name]["properties"]
    kept = {key: value for key, value in call.arguments.items() if not (sparing and key in call.optional)}
    return MadeCall(call.name, {key: written(value, properties[key]) for key, value in kept.items()})


def said(expected: ExpectedAnswer) -> str:
    checks = dict(expected.text or {})
    if checks.get("asks"):
        return "Which one do you mean?"
    if "regex" in checks:
        return TEXTS["regex"][checks["regex"]]
    return str(checks.get("contains", "All done."))


def success(query: Query, calls: list[MadeCall], text: str) -> float | None:
    answer = MeasuredAnswer(query.id, "m", content=text, calls=tuple(calls), turns=1)
    return outcome(answer, EXPECTED[query.id], None).success


@pytest.mark.parametrize("sparing", [True, False])
@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.id)
def test_doing_what_is_asked_succeeds(query: Query, sparing: bool) -> None:
    expected = EXPECTED[query.id]
    calls = [made(query, call, sparing=sparing) for call in expected.calls or ()]
    assert success(query, calls, said(expected)) == 1.0
    for call in calls:  # and the calls are ones the tools take
        validator = Draft202012Validator(schemas(query)[call.name])
        required_later = [e for e in validator.iter_errors(dict(call.arguments)) if e.validator != "required"]
        assert not required_later, required_later
        assert sparing or not list(validator.iter_errors(dict(call.arguments)))


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.id)
def test_leaving_a_call_out_or_adding_one_fails(query: Query) -> None:
    expected = EXPECTED[query.id]
    calls = [made(query, call, sparing=False) for call in expected.calls or ()]
    for left_out in range(len(calls)):
        assert success(query, calls[:left_out] + calls[left_out + 1 :], said(expected)) == 0.0
    if expected.calls is not None:
        needed = {call.name for call in calls} | expected.allowed
        other = next(name for name in schemas(query) if name not in needed)
        assert success(query, [*calls, MadeCall(other, {})], said(expected)) == 0.0


def test_models_that_do_not_think_fail() -> None:
    def share(calls: Any, text: str) -> float:
        return sum(success(query, calls(query), text) or 0.0 for query in QUERIES) / len(QUERIES)

    assert share(lambda q: [], "Done.") < 0.05
    assert share(lambda q: [], "What do you mean?") < 0.30  # always asking back earns the ambiguous ones only
    assert share(lambda q: [MadeCall(next(iter(schemas(q))), {})], "Done.") < 0.05


def test_the_suite_is_balanced_and_each_label_expects_its_kind_of_answer() -> None:
    counts = Counter(query.label for query in QUERIES)
    assert len(QUERIES) >= 90
    assert set(counts) == set(LABELS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({query.slice for query in QUERIES}) >= 12
    for query in QUERIES:
        expected = EXPECTED[query.id]
        if query.label == "ambiguous":
            assert expected.calls == ()
            assert expected.text == {"asks": True}
        if query.label == "simple":
            assert len(expected.calls or ()) <= 1
        assert (expected.results is not None) == (query.label == "complex")


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.id)
def test_every_case_names_tools_that_are_offered_and_has_others_to_choose_from(query: Query) -> None:
    expected, offered = EXPECTED[query.id], schemas(query)
    results = {result.name for result in expected.results or ()}
    assert {call.name for call in expected.calls or ()} | expected.allowed | results <= set(offered)
    assert len(offered) >= 3
    for parameters in offered.values():
        Draft202012Validator.check_schema(parameters)
    assert query.raw_context is not None
    assert query.raw_context["now"] in messages_of(query, "")[0]["content"]


def test_ids_are_in_order_and_texts_differ() -> None:
    assert [query.id for query in QUERIES] == [f"tc{n:03d}" for n in range(1, len(QUERIES) + 1)]
    repeated = [text for text, n in Counter(query.text.lower() for query in QUERIES).items() if n > 1]
    assert repeated == ["send it"]  # once with a draft in the history, once without: one group
    assert len({query.group for query in QUERIES if query.text == "send it"}) == 1
