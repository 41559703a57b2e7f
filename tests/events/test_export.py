"""A row of the bandit export holds what off-policy evaluation needs, and nobody's silence counts as success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router_ml.decide.selection.policy import Policy, policy_parameters
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent, decision_event
from router_ml.events.export import bandit_rows, export_bandit, export_events
from router_ml.events.store import EventFilter, EventStore
from router_ml.types import Candidate, Decision, Quantiles

SMALL = Candidate("small", 0.7, Quantiles(1.0, 2.0, 3.0), 0.0, float("nan"), admissible=True)
LARGE = Candidate("large", 0.9, Quantiles(4.0, 8.0, 9.0), 0.01, 0.5, admissible=False)


def decision(decision_id: str, at_s: float = 0.0, **values: Any) -> DecisionEvent:
    probabilities = {"simple": 0.7, "moderate": 0.1, "complex": 0.1, "ambiguous": 0.1}
    made = Decision("small", "simple", probabilities, (SMALL, LARGE), "answer", "r", decision_id, "fast", "b1", 0.8)  # type: ignore[arg-type]
    policy = policy_parameters(Policy("fast", latency_weight_per_s=0.1))
    return decision_event(made, at_s=at_s, unit="session", policy_parameters=policy, **values)


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    return open_store(tmp_path)


def rows_of(store: EventStore, *events: Event) -> dict[str, dict[str, Any]]:
    store.append(events)
    return {row["decision_id"]: row for row in bandit_rows(store)}


def test_a_row_holds_what_was_offered_chosen_and_with_which_probability(store: EventStore) -> None:
    row = rows_of(store, decision("d1", 5.0), OutcomeEvent("d1", "small", None, 2.5, cost_usd=0.1))["d1"]
    assert (row["chosen"], row["propensity"], row["at_s"], row["bundle"]) == ("small", 0.8, 5.0, "b1")
    assert [(c["model"], c["p_success"], c["admissible"]) for c in row["candidates"]] == [
        ("small", 0.7, True), ("large", 0.9, False)
    ]  # fmt: skip
    assert row["candidates"][0]["utility"] is None  # JSON knows no NaN
    assert row["complexity_probabilities"]["simple"] == 0.7
    assert row["policy_parameters"]["latency_weight_per_s"] == 0.1
    assert (row["latency_s"], row["cost_usd"], row["fallback"], row["answered_by"]) == (2.5, 0.1, False, "small")
    assert row["unit"] not in (None, "session")


def test_not_judged_is_no_reward_and_explicit_outranks_inferred(store: EventStore) -> None:
    rows = rows_of(
        store,
        *(decision(name) for name in ("silent", "person", "guess", "again", "failed", "open", "own")),
        OutcomeEvent("silent", "small", None, 1.0),
        OutcomeEvent("person", "small", 1.0, 1.0),
        FeedbackEvent("person", "thumb", 0.0),
        FeedbackEvent("person", "retry", 1.0),
        OutcomeEvent("guess", "small", None, 1.0),
        FeedbackEvent("guess", "copied", 0.0),
        OutcomeEvent("again", "small", None, 1.0),
        FeedbackEvent("again", "retry", 0.0),
        OutcomeEvent("failed", "small", 0.0, 1.0, ok=False, error="timeout"),
        OutcomeEvent("own", "large", 1.0, 1.0, fallback=True),
    )
    said = {name: (row["reward"], row["judged"], row["judged_by"]) for name, row in rows.items()}
    assert said == {
        "silent": (None, False, None),
        "person": (0.0, True, "explicit"),
        "guess": (0.0, True, "inferred"),
        "again": (None, False, None),  # nobody sends a sign for an answer that is not asked for again
        "failed": (0.0, False, "outcome"),
        "open": (None, False, None),
        "own": (1.0, True, "outcome"),
    }
    assert (rows["open"]["answered"], rows["failed"]["answered"], rows["own"]["answered"]) == (None, False, True)
    assert (rows["own"]["fallback"], rows["own"]["answered_by"]) == (True, "large")


def test_shadow_decisions_are_left_out_and_windows_are_kept(store: EventStore, tmp_path: Path) -> None:
    store.append([decision("old", 1.0), decision("new", 10.0), decision("shadow", 11.0, shadow=True)])
    path = tmp_path / "bandit.jsonl"
    assert export_bandit(store, path, EventFilter(since_s=5.0)) == 1
    assert [json.loads(line)["decision_id"] for line in path.read_text().splitlines()] == ["new"]


def test_a_decision_of_an_older_release_has_no_parameters_and_is_exported(store: EventStore) -> None:
    row = rows_of(store, DecisionEvent("d", "m", "simple", "p", "b", 1.0))["d"]
    assert (row["policy_parameters"], row["complexity_probabilities"]) == ({}, {})


def test_events_with_half_characters_can_be_exported(store: EventStore, tmp_path: Path) -> None:
    store.append([OutcomeEvent("d", "half \ud800", 1.0, 1.0)])
    assert export_events(store, tmp_path / "events.jsonl") == 1
    assert json.loads((tmp_path / "events.jsonl").read_text())["model"] == "half ?"


def test_the_parameters_of_a_policy_that_cannot_be_resolved_any_more_are_empty() -> None:
    assert dict(policy_parameters("gone.toml")) == {}
    assert policy_parameters("fast")["latency_budget_s"] == 5.0
