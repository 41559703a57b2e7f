"""Live figures agree with what a person would compute from the store with a spreadsheet."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent, Recorders
from router_ml.events.writer import EventWriter
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
            events.append(FeedbackEvent(f"d{i}", draw.choice(["thumb", "retry"]), float(draw.random() < 0.5)))
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
    guess = {e.decision_id: e.score for e in rows if isinstance(e, FeedbackEvent) and e.kind == "retry"}
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
