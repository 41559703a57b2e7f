"""The report of an evaluation and the replay, on worlds whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from router_ml.catalogue import load_catalogue
from router_ml.decide.features.extractor import TABLE_NAMES, Features
from router_ml.decide.router import Router
from router_ml.errors import InputError
from router_ml.types import Outcome, Query
from training.evaluate import JudgedOutcomes, judge, report, summary
from training.measuring.plots import draw_all
from training.measuring.traffic import Machine, at_rates, zipf_hit_rate
from training.outcomes.table import OutcomeTable, outcome_table
from training.replay import DEFAULT_MIX, replay, speed_ups, traffic_of_outcomes, traffic_of_priors
from training.replay import summary as replay_summary

MODELS = ("cheap", "dear")


def table(n: int = 120) -> OutcomeTable:
    """`dear` is always right and takes 4 s; `cheap` takes 1 s and is right on every second query."""
    queries = [Query(id=f"q{i}", text="x" * (i % 7), slice="even" if i % 2 == 0 else "odd") for i in range(n)]
    outcomes = [
        Outcome(q.id, model, 1.0 if model == "dear" else float(i % 2 == 0), 4.0 if model == "dear" else 1.0)
        for i, q in enumerate(queries)
        for model in MODELS
    ]
    return outcome_table(queries, outcomes)


def judged(p_cheap: np.ndarray, rows: OutcomeTable) -> JudgedOutcomes:
    n = len(rows)
    latency = np.tile(np.array([[1.0, 1.2, 1.3], [4.0, 4.5, 5.0]]), (n, 1, 1))
    features = Features(np.eye(n, 8, dtype=np.float32), np.zeros((n, len(TABLE_NAMES)), np.float32))
    choices = {"fast": np.zeros(n, dtype=np.intp)}
    return JudgedOutcomes(
        rows, np.column_stack((p_cheap, np.ones(n))), latency, np.zeros((n, 2)), np.zeros(n), choices, features
    )


def test_a_router_that_knows_reaches_the_oracle() -> None:
    rows = table()
    found = report(judged(rows.success[:, 0], rows), resamples=50)
    figures = {name: value["value"] for name, value in found["figures"].items()}
    assert figures["aiq_normalised"] == pytest.approx(1.0)
    assert figures["accuracy"] == 1.0
    assert figures["latency_s_at_best_accuracy"] == pytest.approx(2.5)
    # from (1 s, .5) to (2.5 s, 1): .99 is reached at 2.47 s of the 4 s the best single model takes
    assert figures["cost_share_within_1_point"] == pytest.approx(2.47 / 4, abs=1e-3)
    assert figures["cpt_50"] == pytest.approx(0.25)
    assert (found["over_routed"], found["under_routed"]) == (0.0, 0.0)
    assert found["calibration"]["ece"] == pytest.approx(0.0)
    assert found["latency"]["dear"]["coverage_p95"] == 1.0
    assert found["policies"]["fast"]["accuracy"] == 0.5
    assert found["baselines"]["always dear"]["mean_cost"] == 4.0


def test_always_one_model_is_judged_where_it_was_measured() -> None:
    rows = table()
    rows.success[::2, 1] = np.nan  # `dear` was measured on the odd queries alone, where `cheap` fails
    rows.latency_s[::2, 1] = np.nan
    found = report(judged(np.full(len(rows), 0.5), rows), resamples=5)
    always = found["baselines"]["always dear"]
    assert (always["queries"], always["accuracy"], always["mean_cost"]) == (60, 1.0, 4.0)
    assert always["shares"] == {"cheap": 0.0, "dear": 1.0}
    (line,) = [line for line in summary(found).splitlines() if line.startswith("always dear")]
    assert line.split()[-1] == "60"


def test_a_router_that_knows_nothing_gains_nothing() -> None:
    rows = table()
    found = report(judged(np.full(len(rows), 0.5), rows), resamples=50)
    interval = found["figures"]["aiq_normalised"]
    assert interval["low"] - 1e-9 <= 0.0 <= interval["high"] + 1e-9
    assert found["slices"]["odd"]["router"] == 1.0


def test_the_report_is_json_and_can_be_read_and_drawn(tmp_path: Path) -> None:
    rows = table(60)
    router = judged(rows.success[:, 0], rows)
    found = report(router, resamples=20)
    json.dumps(found)
    assert "always dear" in summary(found)
    draw_all(found, router.latency_s, rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"quality_cost.png", "reliability.png", "latency.png"}


def test_models_the_bundle_does_not_know_are_named() -> None:
    with pytest.raises(InputError, match="'cheap'"):
        judge(Router.heuristic(), table(4))


def test_judging_goes_through_the_router() -> None:
    catalogue = load_catalogue()
    queries = [Query(id="a", text="check email"), Query(id="b", text="plan a trip to Oslo and mail Dana the agenda")]
    outcomes = [Outcome(q.id, model, 1.0, 1.0) for q in queries for model in catalogue.names]
    router = Router.heuristic(catalogue)
    found = judge(router, outcome_table(queries, outcomes))
    decisions = router.decide_many([q.text for q in queries], policy="balanced")
    names = sorted(catalogue.names)
    assert [names[i] for i in found.policy_choices["balanced"]] == [decision.model for decision in decisions]


def test_replay_of_priors_weighs_the_mix() -> None:
    catalogue = load_catalogue()
    queries = [Query(id=f"{label}{i}", text="check email", label=label) for label in DEFAULT_MIX for i in range(3)]
    found = replay(traffic_of_priors(queries, catalogue, DEFAULT_MIX), Router.heuristic(catalogue))
    assert "priors of the catalogue" in replay_summary(found)
    prior = catalogue["qwen3:8b"].prior
    expected = sum(share * prior.latency_s[label] for label, share in DEFAULT_MIX.items())
    row = found["rows"]["always qwen3:8b+think"]
    assert row["mean_latency_s"] == pytest.approx(expected)
    assert row["share_over_5_s"] == pytest.approx(1.0)
    assert row["speed_up"] == pytest.approx(1.0)
    fast = found["rows"]["router, policy fast"]
    assert fast["speed_up"] == pytest.approx(expected / fast["mean_latency_s"])


def test_replay_names_a_label_without_queries() -> None:
    with pytest.raises(InputError, match="complex"):
        traffic_of_priors([Query(id="a", text="x", label="simple")], load_catalogue(), {"simple": 0.5, "complex": 0.5})


def test_replay_of_outcomes_needs_whole_rows() -> None:
    queries = [Query(id="a", text="x"), Query(id="b", text="y")]
    outcomes = [Outcome("a", "m", 1.0, 2.0), Outcome("a", "n", 1.0, 3.0), Outcome("b", "m", 1.0, 9.0)]
    traffic = traffic_of_outcomes(outcome_table(queries, outcomes), None)
    assert [query.id for query in traffic.queries] == ["a"]
    with pytest.raises(InputError, match="every model"):
        traffic_of_outcomes(outcome_table(queries, outcomes[1:]), None)


def test_a_replay_at_rates_takes_each_arms_tokens_at_its_models_rate() -> None:
    catalogue = load_catalogue()
    queries = [Query(id=f"s{i}", text="check email", label="simple") for i in range(5)]
    traffic = traffic_of_priors(queries, catalogue, {"simple": 1.0})
    machine = Machine({"qwen3:8b": 20.0}, start_s=0.5)
    timed = at_rates(traffic, catalogue, machine)
    mean = dict(zip(timed.models, timed.latency_s.mean(axis=0), strict=True))
    assert mean["qwen3:8b+think"] == pytest.approx(0.5 + 180 / 20)
    assert mean["qwen3:8b+nothink"] == pytest.approx(0.5 + 40 / 20)
    assert mean["llama3.2:3b-instruct"] == pytest.approx(1.7)  # no rate: its prior


def test_a_cache_shortens_the_mean_by_its_hits_and_the_speed_up_says_which_are_needed() -> None:
    catalogue = load_catalogue()
    queries = [Query(id=f"{label}{i}", text="check email", label=label) for label in DEFAULT_MIX for i in range(3)]
    found = replay(traffic_of_priors(queries, catalogue, DEFAULT_MIX), Router.heuristic(catalogue), hit_rate=0.5)
    row = found["rows"]["router, policy fast"]
    assert row["cached_mean_latency_s"] == pytest.approx(0.5 * row["mean_latency_s"] + 0.5 * 0.005)
    cell = speed_ups(found, "router, policy fast")
    needed = cell["hit_rate_for"]["10"]
    slow, mean = cell["reference_latency_s"], cell["mean_latency_s"]
    assert slow / ((1 - needed) * mean + needed * 0.005) == pytest.approx(10.0)
    assert "cached: behind an answer cache with 50.0% hits" in replay_summary(found)


def test_the_hit_rate_of_zipf_traffic() -> None:
    """Two texts, asked 2:1: three requests miss once for each text that comes, 3 - (2/3)**3 - (1/3)**3 - 1 hits."""
    assert zipf_hit_rate(3, 2, 1.0) == pytest.approx(1 - (2 - (1 / 3) ** 3 - (2 / 3) ** 3) / 3)
    assert zipf_hit_rate(1, 100, 1.0) == pytest.approx(0.0)
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 51)
    runs = [1 - len(set(rng.choice(50, 200, p=weights / weights.sum()).tolist())) / 200 for _ in range(300)]
    assert zipf_hit_rate(200, 50, 1.0) == pytest.approx(float(np.mean(runs)), abs=0.005)
