"""Live figures agree with what a person would compute from the store with a spreadsheet."""

from __future__ import annotations

import gc
import random
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router_ml.context import parse_context
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent, Recorders
from router_ml.events.writer import EventWriter, WriterState
from router_ml.monitor.metrics import LiveMetrics
from router_ml.monitor.prometheus import prometheus
from router_ml.types import Candidate, Quantiles

NOW_S = 1_000_000.0


def traffic(n: int, seed: int = 1) -> list[Event]:
    draw = random.Random(seed)
    events: list[Event] = []
    for i in range(n):
        model = draw.choice(["small", "large"])
        at_s = NOW_S - draw.uniform(0, 7200)
        ok = draw.random() > 0.05
        quick, slow = Quantiles(1.0, 2.0, 3.0), Quantiles(9.0, 12.0, 15.0)
        candidates = (
            Candidate("small", draw.random(), quick, 0.0, 1.0),
            Candidate("large", draw.random(), slow, 0.01, 1.0),
        )
        events.append(DecisionEvent(f"d{i}", model, "simple", "p", "b", 1.0, candidates, at_s=at_s))
        events.append(
            OutcomeEvent(
                f"d{i}",
                model,
                draw.choice([None, 0.0, 1.0]) if ok else 0.0,
                draw.lognormvariate(0.5, 0.7),
                ok,
                prompt_tokens=draw.randrange(10, 500),
                output_tokens=draw.randrange(1, 300),
                eval_s=draw.uniform(0.5, 4.0),
                first_token_s=draw.uniform(0.1, 1.0),
                cost_usd=draw.random() * 0.01,
                error=None if ok else "timeout",
                cache_hit=draw.random() < 0.2,
                fallback=draw.random() < 0.1,
                accurate_latency_s=12.5,
                accurate_cost_usd=0.02,
                variant=draw.choice([None, "new", "old"]),
                at_s=at_s,
            )
        )
        if draw.random() < 0.2:
            events.append(FeedbackEvent(f"d{i}", draw.choice(["thumb", "copied"]), float(draw.random() < 0.5)))
    return events


def test_a_window_agrees_with_a_recomputation_from_the_store(tmp_path: Path) -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    writer = EventWriter(lambda: open_store(tmp_path))
    both = Recorders((live, writer))
    for event in traffic(600):
        both.record(event)
    assert writer.close()
    rows = [s.event for s in open_store(tmp_path).read()]
    outcomes = [e for e in rows if isinstance(e, OutcomeEvent) and e.at_s >= NOW_S - 3600]
    person = {e.decision_id: e.score for e in rows if isinstance(e, FeedbackEvent) and e.kind == "thumb"}
    guess = {e.decision_id: e.score for e in rows if isinstance(e, FeedbackEvent) and e.kind == "copied"}
    snapshot = live.snapshot(3600.0)
    for name, summary in snapshot.by_model.items():
        mine = [o for o in outcomes if o.model == name]
        known = [
            person.get(o.decision_id, o.success if o.success is not None else guess.get(o.decision_id)) for o in mine
        ]
        right = [x for x in known if x is not None]
        assert summary.requests == len(mine)
        assert summary.judged == len(right)
        assert summary.success_rate == pytest.approx(np.mean(right))
        assert summary.latency_p95_s == pytest.approx(np.quantile([o.latency_s for o in mine], 0.95))
        seconds = sum(o.eval_s or 0 for o in mine)
        assert summary.output_tokens_per_s == pytest.approx(sum(o.output_tokens or 0 for o in mine) / seconds)
        assert summary.cache_hit_rate == pytest.approx(np.mean([o.cache_hit for o in mine]))
        assert summary.fallback_rate == pytest.approx(np.mean([o.fallback for o in mine]))
        answered = [o for o in mine if o.ok]  # what failed at once has saved nothing
        took = np.array([o.latency_s for o in answered])
        assert summary.saved_share == pytest.approx(1 - took.mean() / 12.5)
        assert summary.saved_usd == pytest.approx(sum(0.02 - (o.cost_usd or 0) for o in answered))
    assert snapshot.total.requests == len(outcomes) == sum(s.requests for s in snapshot.by_model.values())
    assert set(snapshot.by_variant) == {"new", "old"}


def decided(chosen: str, small: float, large: float, success: float) -> list[Event]:
    candidates = (
        Candidate("small", small, Quantiles(1.0, 2.0, 3.0), 0.0, 1.0),
        Candidate("large", large, Quantiles(9.0, 12.0, 15.0), 0.0, 1.0),
    )
    return [
        DecisionEvent("d", chosen, "simple", "p", "b", 1.0, candidates, at_s=NOW_S),
        OutcomeEvent("d", chosen, success, 1.0, at_s=NOW_S),
    ]


@pytest.mark.parametrize(
    ("chosen", "small", "large", "success", "over", "under"),
    [
        ("large", 0.9, 0.92, 1.0, 1.0, 0.0),  # the small one was nine times faster and as likely to be right
        ("large", 0.5, 0.92, 1.0, 0.0, 0.0),
        ("small", 0.5, 0.92, 0.0, 0.0, 1.0),  # wrong, and the large one was likelier to be right
        ("small", 0.9, 0.92, 0.0, 0.0, 0.0),
    ],
)
def test_over_and_under_routing(
    chosen: str, small: float, large: float, success: float, over: float, under: float
) -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    for event in decided(chosen, small, large, success):
        live.record(event)
    total = live.snapshot().total
    assert (total.over_routing_rate, total.under_routing_rate) == (over, under)


def test_an_empty_window_knows_nothing_and_says_so() -> None:
    total = LiveMetrics().snapshot().total
    assert (total.requests, total.success_rate, total.latency_p95_s, total.saved_s) == (0, None, None, None)


def test_shadow_decisions_are_not_counted_as_traffic() -> None:
    live = LiveMetrics()
    live.record(DecisionEvent("d", "m", "simple", "p", "b", 1.0, shadow=True))
    assert live.counters.decisions == {}


_LINE = re.compile(r'^[a-z_]+(\{([a-z_]+="(\\.|[^"\\])*",?)*\})? (-?[0-9.e+-]+|\+Inf|NaN)$')


def test_the_prometheus_text_is_well_formed_and_its_histograms_add_up() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    for event in traffic(200):
        live.record(event)
    live.record(OutcomeEvent("odd", 'a"b\\c\nd', 1.0, 2.0, at_s=NOW_S))
    text = prometheus(live, firing=[("failure_rate", "small")])
    lines = text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(_LINE.match(line) for line in samples), [line for line in samples if not _LINE.match(line)]
    assert 'a\\"b\\\\c\\nd' in text
    name = "gen_ai_client_operation_duration_seconds"
    counts = [float(line.split()[-1]) for line in samples if line.startswith(f"{name}_count")]
    tops = [float(line.split()[-1]) for line in samples if line.startswith(f"{name}_bucket") and 'le="+Inf"' in line]
    assert counts == tops
    assert sum(counts) == 201
    assert len({line.split()[2] for line in lines if line.startswith("# TYPE")}) == sum(
        line.startswith("# TYPE") for line in lines
    )


def test_recording_and_summing_up_cost_little_on_the_request_path(tmp_path: Path) -> None:
    writer = EventWriter(lambda: open_store(tmp_path))
    both = Recorders((LiveMetrics(), writer))
    events = [e for e in traffic(2000) if not isinstance(e, FeedbackEvent)]
    spent = []
    for decision, done in zip(events[::2], events[1::2], strict=True):
        began = time.perf_counter()
        both.record(decision)
        both.record(done)
        spent.append(time.perf_counter() - began)
    writer.close()
    assert sorted(spent)[len(spent) // 2] < 50e-6


def decision(number: int, **values: Any) -> DecisionEvent:
    return DecisionEvent(f"d{number}", values.pop("model", "m"), "simple", "p", "b", 1.0, at_s=NOW_S, **values)


def test_memory_does_not_depend_on_conversations_and_is_flat_once_the_window_is_full() -> None:
    live = LiveMetrics(kept=2000, clock=lambda: NOW_S)

    def record(first: int, n: int) -> int:
        for i in range(first, first + n):
            context = parse_context({"history": [f"{i} " + "x" * 5000]})
            live.record(decision(i, text="y" * 5000, context=context))
            live.record(OutcomeEvent(f"d{i}", "m", None, 1.0, at_s=NOW_S))
            live.record(FeedbackEvent(f"unknown{i}", "thumb", 1.0))
        assert live.snapshot().total.requests == min(first + n, 2000)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        full = record(0, 12_000)
        assert full - before < 15e6  # with the conversations it would be 120 MB
        assert record(12_000, 12_000) - full < 1e6
    finally:
        tracemalloc.stop()


def test_feedback_counts_before_and_after_its_outcome_and_an_explicit_word_outranks_an_inferred_one() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    live.record(FeedbackEvent("early", "thumb", 0.0))
    live.record(OutcomeEvent("early", "m", None, 1.0, at_s=NOW_S))
    live.record(OutcomeEvent("late", "m", None, 1.0, at_s=NOW_S))
    live.record(FeedbackEvent("late", "thumb", 1.0))
    live.record(FeedbackEvent("late", "copied", 0.0))
    live.record(OutcomeEvent("never", "m", None, 1.0, at_s=NOW_S))
    total = live.snapshot().total
    assert (total.requests, total.judged, total.success_rate) == (3, 2, 0.5)


def test_a_flood_of_feedback_under_unknown_ids_displaces_no_judgement() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    live.record(OutcomeEvent("mine", "m", None, 1.0, at_s=NOW_S))
    live.record(FeedbackEvent("mine", "thumb", 1.0))
    for i in range(30_000):
        live.record(FeedbackEvent(f"u{i}", "thumb", 0.0))
    assert live.snapshot().total.success_rate == 1.0


def test_recording_takes_no_lock_that_a_reader_or_a_signal_handler_may_hold() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    with live._lock:
        for i in range(5000):
            live.record(OutcomeEvent(f"d{i}", "m", 1.0, 1.0, at_s=NOW_S))
    assert live.snapshot().total.requests == 5000


def test_model_names_that_clients_make_up_become_no_labels_without_end() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    live.record(decision(0, model="real"))
    for i in range(500):
        live.record(decision(i, model=f"made-up-{i}", pinned=True))
        live.record(OutcomeEvent(f"d{i}", f"made-up-{i}", 0.0, 1.0, ok=False, error=f"e{i}", variant=f"v{i}"))
    live.record(OutcomeEvent("d", "answers", None, 1.0, at_s=NOW_S))
    text = prometheus(live)
    labels = set(re.findall(r'model="([^"]*)"', text))
    assert {"real", "answers", "other"} <= labels
    assert len(labels) <= 25
    assert len(set(re.findall(r'error_type="([^"]*)"', text))) <= 51
    assert len(set(re.findall(r'variant="([^"]*)"', text))) <= 51


@pytest.mark.parametrize("odd", ["a\rb", "a\0b", "half \ud800", "x" * 100_000])
def test_no_name_makes_a_scrape_fail(odd: str) -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    live.record(OutcomeEvent("d", odd, 1.0, 1.0, variant=odd, at_s=NOW_S))
    text = prometheus(live, firing=[(odd, odd)])
    assert all(_LINE.match(line) for line in text.splitlines() if line and not line.startswith("#"))
    assert len(text.encode()) < 250_000


def test_the_names_of_the_exposition_are_those_that_dashboards_use() -> None:
    live = LiveMetrics(clock=lambda: NOW_S)
    for event in traffic(50):
        live.record(event)
    text = prometheus(live, writer=WriterState(1, 2, 3, 4, None), firing=[("r", "s")])
    assert set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) == {
        "router_ml_requests_total", "router_ml_decisions_total", "router_ml_cache_hits_total",
        "router_ml_clarifications_total", "router_ml_fallbacks_total", "router_ml_escalations_total",
        "gen_ai_client_operation_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds", "gen_ai_client_token_usage", "router_ml_success_ratio",
        "router_ml_output_tokens_per_second", "router_ml_over_routing_ratio", "router_ml_under_routing_ratio",
        "router_ml_saved_ratio", "router_ml_alert_firing", "router_ml_events_written_total",
        "router_ml_events_dropped_total", "router_ml_events_pending",
    }  # fmt: skip
    assert 'gen_ai_operation_name="chat",gen_ai_provider_name="ollama",gen_ai_request_model="small"' in text
    parsed = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert "gen_ai_client_operation_duration_seconds_bucket" in parsed


def test_the_exposition_library_is_imported_by_a_scrape_only() -> None:
    code = (
        "import sys; from router_ml.monitor.watch import open_watch; from router_ml.settings import Settings\n"
        "assert 'prometheus_client' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
