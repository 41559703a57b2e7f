"""Alerts find what is wrong soon, stay quiet otherwise, and say what to do."""

from __future__ import annotations

import gc
import http.server
import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.alert_replay import Fault, delay, false_alarms, traffic
from router_ml.context import parse_context
from router_ml.errors import SettingsError
from router_ml.events.event import AlertEvent, AttemptEvent, DecisionEvent, Event, OutcomeEvent
from router_ml.monitor.alerts import Alerts, WebhookChannel
from router_ml.monitor.failure_rate import FailureRate
from router_ml.monitor.latency_drift import LatencyDrift
from router_ml.monitor.rule import Signal
from router_ml.monitor.rules import (
    RULES,
    BreakerOpen,
    BudgetMisses,
    CacheHits,
    CalibrationDrift,
    ComplexityShift,
    Novelty,
    SharedStateAway,
    default_rules,
)
from router_ml.types import LABELS
from tests.timing import PATIENCE_S, until


def outcome(number: int, **values: Any) -> OutcomeEvent:
    success = values.pop("success", 1.0)
    return OutcomeEvent(
        f"d{number}", values.pop("model", "m"), success, values.pop("latency_s", 1.0), at_s=float(number), **values
    )


def run(alerts: Alerts, events: Sequence[Event]) -> list[tuple[str, str, str]]:
    changes = []
    for event in events:
        alerts.record(event)
        changes += [(c.rule, c.subject, c.state) for c in alerts.check()]
    return changes


def test_healthy_traffic_with_shifting_prompts_raises_no_alarm() -> None:
    assert false_alarms(12_000, seed=3) == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_doubled_latency_is_found_within_a_hundred_requests(seed: int) -> None:
    assert delay(Fault(latency_times=2.0), "latency_drift", seed, healthy=1000) <= 100


def test_thirty_percent_failures_are_found_within_a_hundred_and_fifty_requests() -> None:
    delays = sorted(delay(Fault(failure_rate=0.3), "failure_rate", seed, healthy=1500) for seed in range(9))
    assert delays[4] <= 100
    assert delays[7] <= 150


@pytest.mark.parametrize("seed", range(3))
def test_thirty_percent_of_calls_without_answer_are_found_within_forty_requests(seed: int) -> None:
    assert delay(Fault(error_rate=0.3), "failure_rate", seed, healthy=400) <= 40


def test_an_alarm_of_failures_lasts_as_long_as_they_do() -> None:
    healthy, sick = traffic(5), traffic(6, Fault(failure_rate=0.35), 0)
    alerts = Alerts((FailureRate(),), channels=())
    run(alerts, [next(healthy) for _ in range(1500)])
    changes = run(alerts, [next(sick) for _ in range(800)])
    assert [c for c in changes if c[1] == "all"] == [("failure_rate", "all", "firing")]
    run(alerts, [next(healthy) for _ in range(500)])
    assert alerts.firing() == ()


def test_answers_that_nobody_judged_count_as_answers() -> None:
    alerts = Alerts((FailureRate(), CalibrationDrift()), channels=())
    fine = [outcome(i, success=None, p_success=0.9) for i in range(99)]
    lost = outcome(99, success=0.0, ok=False, p_success=0.9)
    assert run(alerts, [*fine, lost] * 20) == []  # one call in a hundred brings no answer: usual


def test_errors_that_a_fallback_hid_count_for_the_model_that_made_them() -> None:
    def request(number: int, bad: bool) -> list[Event]:
        first = AttemptEvent(f"d{number}", "first", 0, ok=not bad, error="server_error" if bad else None)
        if not bad:
            return [first, outcome(number, model="first", success=None)]
        rescue = AttemptEvent(f"d{number}", "second", 1, ok=True)
        return [first, rescue, outcome(number, model="second", success=None, fallback=True)]

    alerts = Alerts((FailureRate(),), channels=())
    assert run(alerts, [event for i in range(200) for event in request(i, False)]) == []
    changes = run(alerts, [event for i in range(60) for event in request(200 + i, i % 3 == 0)])
    assert changes == [("failure_rate", "first", "firing")]


@pytest.mark.parametrize("error", ["open", "absent", "shed", "invalid", "cancelled"])
def test_calls_never_made_and_people_who_went_away_blame_no_model(error: str) -> None:
    attempts = [AttemptEvent(f"d{i}", "m", 0, ok=False, error=error) for i in range(300)]
    cancelled = [outcome(i, success=0.0, ok=False, error="cancelled") for i in range(300)]
    assert run(Alerts((FailureRate(),), channels=()), [*attempts, *cancelled]) == []


def test_an_alarm_ends_when_the_fault_does_and_not_before() -> None:
    healthy = traffic(5)
    sick = traffic(6, Fault(latency_times=2.5), 0)
    alerts = Alerts((LatencyDrift(),), channels=())
    run(alerts, [next(healthy) for _ in range(1000)])
    changes = run(alerts, [next(sick) for _ in range(500)])
    assert ("latency_drift", "all", "firing") in changes
    assert all(state == "firing" for _, _, state in changes)
    changes = run(alerts, [next(healthy) for _ in range(500)])
    assert ("latency_drift", "all", "resolved") in changes
    assert alerts.firing() == ()


def test_an_answer_that_a_cascade_did_not_serve_slows_no_model_down() -> None:
    healthy = traffic(5)
    alerts = Alerts((LatencyDrift(),), channels=())
    run(alerts, [next(healthy) for _ in range(1000)])
    events = [next(healthy) for _ in range(500)]
    longer = [
        replace(e, latency_s=e.latency_s + 30.0, unused_s=30.0) if isinstance(e, OutcomeEvent) and e.latency_s else e
        for e in events
    ]
    assert run(alerts, longer) == []


def test_failures_before_there_is_enough_traffic_raise_nothing() -> None:
    assert run(Alerts((FailureRate(),), channels=()), [outcome(i, success=0.0) for i in range(15)]) == []


def test_a_failing_model_is_named() -> None:
    events = [outcome(i, model="good" if i % 2 else "bad", success=float(i % 20 > 1)) for i in range(400)]
    alerts = Alerts((FailureRate(),), channels=())
    assert run(alerts, events) == []
    broken = [
        outcome(i, model="good" if i % 4 else "bad", ok=bool(i % 4), success=None if i % 4 else 0.0) for i in range(200)
    ]
    fired = {subject for _, subject, state in run(alerts, broken) if state == "firing"}
    assert "bad" in fired
    assert "good" not in fired


def test_misses_of_the_budget_need_both_windows_and_clear_with_hysteresis() -> None:
    alerts = Alerts((BudgetMisses(budget_s=5.0),), channels=())
    fine = [outcome(i, latency_s=6.0 if i % 20 == 0 else 1.0) for i in range(400)]
    assert run(alerts, fine) == []
    assert run(alerts, [outcome(i, latency_s=6.0) for i in range(12)]) == []  # a short burst
    assert run(alerts, [outcome(i, latency_s=6.0) for i in range(40)]) == [("latency_budget", "all", "firing")]
    assert run(alerts, [outcome(i) for i in range(80)]) == []
    assert run(alerts, [outcome(i) for i in range(60)]) == [("latency_budget", "all", "resolved")]


def test_a_cache_that_stops_hitting_is_seen() -> None:
    alerts = Alerts((CacheHits(),), channels=())
    assert run(alerts, [outcome(i, cache_hit=i % 10 < 8) for i in range(1500)]) == []
    assert run(alerts, [outcome(i) for i in range(200)]) == [("cache_hit_rate", "all", "firing")]


def test_an_open_breaker_fires_at_once_and_ends_when_it_closes() -> None:
    def attempt(state: str) -> AttemptEvent:
        return AttemptEvent("d", "m", 0, ok=False, breaker=state)

    alerts = Alerts((BreakerOpen(),), channels=())
    assert run(alerts, [attempt("closed")]) == []
    assert run(alerts, [attempt("open"), attempt("half_open"), attempt("open")]) == [("breaker_open", "m", "firing")]
    assert run(alerts, [attempt("half_open"), attempt("closed")]) == [("breaker_open", "m", "resolved")]


def test_predictions_that_promise_too_much_are_seen() -> None:
    alerts = Alerts((CalibrationDrift(),), channels=())
    assert run(alerts, [outcome(i, success=float(i % 10 > 0), p_success=0.9) for i in range(600)]) == []
    changes = run(alerts, [outcome(i, success=float(i % 10 > 2), p_success=0.9) for i in range(600)])
    assert changes == [("calibration", "all", "firing")]


def test_queries_unlike_the_training_are_seen() -> None:
    def decision(number: int, novelty: float) -> DecisionEvent:
        return DecisionEvent(f"d{number}", "m", "simple", "p", "b", 1.0, novelty=novelty)

    alerts = Alerts((Novelty(),), channels=())
    assert run(alerts, [decision(i, 0.95 if i % 10 == 0 else 0.2) for i in range(600)]) == []
    assert run(alerts, [decision(i, 0.95) for i in range(200)]) == [("novelty", "all", "firing")]


def test_a_changed_mix_of_complexities_is_told_and_a_stable_one_is_not() -> None:
    rng = random.Random(4)

    def decisions(n: int, weights: Sequence[float]) -> list[Event]:
        labels = rng.choices(LABELS, weights, k=n)
        return [DecisionEvent(f"d{i}", "m", label, "p", "b", 1.0) for i, label in enumerate(labels)]

    alerts = Alerts((ComplexityShift(),), channels=())
    assert run(alerts, decisions(6000, (0.5, 0.3, 0.1, 0.1))) == []
    # (.2 - .5) ln(.2 / .5) + (.6 - .3) ln(.6 / .3) = .48, above .25
    assert run(alerts, decisions(400, (0.2, 0.6, 0.1, 0.1))) == [("complexity_shift", "all", "firing")]
    assert run(alerts, decisions(4000, (0.2, 0.6, 0.1, 0.1))) == [("complexity_shift", "all", "resolved")]


def test_every_rule_has_a_name_and_says_what_to_do() -> None:
    rules = default_rules()
    assert len({rule.name for rule in rules}) == len(rules) == 9
    assert all(rule.advice.endswith(".") and len(rule.advice) > 40 for rule in rules)


class Wolf:
    """Fires as it is told."""

    name = "wolf"
    advice = "Close the gate."

    def observe(self, event: Event) -> Iterator[Signal]:
        assert isinstance(event, OutcomeEvent)
        yield Signal("all", not event.ok, 1.0, 0.5, "a wolf")


class Broken:
    """Always fails."""

    name = "broken"
    advice = "Mend it."

    def observe(self, event: Event) -> Iterator[Signal]:
        raise RuntimeError("no")


class Told:
    """A channel that remembers what it was given."""

    def __init__(self) -> None:
        self.alerts: list[AlertEvent] = []

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        self.alerts.extend(alerts)


def test_a_change_is_told_once_to_channel_and_store_and_a_broken_rule_silences_nobody() -> None:
    channel = Told()
    kept: list[Event] = []

    class Kept:
        def record(self, event: Event) -> None:
            kept.append(event)

    alerts = Alerts((Broken(), Wolf()), (channel,), recorder=Kept())
    run(alerts, [outcome(1), outcome(2, ok=False), outcome(3, ok=False), outcome(4)])
    assert [(a.rule, a.state, a.at_s) for a in channel.alerts] == [("wolf", "firing", 2.0), ("wolf", "resolved", 4.0)]
    assert kept == channel.alerts


def test_what_fires_is_recorded_again_each_minute_and_resolved_when_the_process_ends() -> None:
    now, kept = [2.0], []

    class Kept:
        def record(self, event: Event) -> None:
            kept.append(event)

    alerts = Alerts((Wolf(),), channels=(), recorder=Kept(), clock=lambda: now[0])
    run(alerts, [outcome(2, ok=False)])
    for second in (30.0, 63.0, 90.0, 125.0):
        now[0] = second
        alerts.check()
    now[0] = 130.0
    alerts.close()
    assert [(a.state, a.at_s) for a in kept] == [("firing", 2.0), ("firing", 63.0), ("firing", 125.0),
                                                 ("resolved", 130.0)]  # fmt: skip
    assert len({a.event_id for a in kept}) == 4
    assert alerts.firing() == ()


def test_an_open_breaker_of_a_model_nobody_calls_any_more_is_no_alert() -> None:
    def attempt(model: str, at_s: float, breaker: str) -> AttemptEvent:
        return AttemptEvent(f"d{at_s}", model, 0, breaker == "closed", breaker=breaker, at_s=at_s)

    alerts = Alerts((BreakerOpen(quiet_s=300.0),), channels=())
    events = [attempt("m", 10.0, "open"), attempt("n", 200.0, "closed"), attempt("m", 210.0, "open"),
              attempt("n", 500.0, "closed")]  # fmt: skip
    assert run(alerts, events) == [("breaker_open", "m", "firing")]
    assert run(alerts, [outcome(511)]) == [("breaker_open", "m", "resolved")]


class Manager(http.server.BaseHTTPRequestHandler):
    """Takes alerts as an Alertmanager does, after refusing the first request."""

    taken: list[list[dict[str, Any]]]
    refuse: int

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).refuse:
            type(self).refuse -= 1
            self.send_response(503)
        else:
            type(self).taken.append(json.loads(body))
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def manager() -> Iterator[tuple[str, type[Manager]]]:
    handler = type("Handler", (Manager,), {"taken": [], "refuse": 1})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api/v2/alerts", handler
    server.shutdown()
    server.server_close()


def test_the_webhook_speaks_alertmanagers_form_and_sends_again_what_was_refused(
    manager: tuple[str, type[Manager]],
) -> None:
    url, handler = manager
    alerts = Alerts((Wolf(),), (WebhookChannel(url, timeout_s=PATIENCE_S),))
    run(alerts, [outcome(1, ok=False)])
    assert handler.taken == []
    run(alerts, [outcome(60)])
    (posted,) = handler.taken
    assert [a["labels"]["alertname"] for a in posted] == ["wolf", "wolf"]
    assert posted[0] == {
        "labels": {"alertname": "wolf", "subject": "all", "service": "router_ml", "severity": "warning"},
        "annotations": {"summary": "a wolf", "description": "Close the gate."},
        "startsAt": "1970-01-01T00:00:01+00:00",
    }
    assert posted[1]["endsAt"] == "1970-01-01T00:01:00+00:00"
    assert posted[1]["startsAt"] == posted[0]["startsAt"]


def test_what_fires_is_sent_again_so_that_an_alertmanager_does_not_forget_it(
    manager: tuple[str, type[Manager]],
) -> None:
    url, handler = manager
    handler.refuse = 0
    now = [0.0]
    alerts = Alerts((Wolf(),), (WebhookChannel(url, timeout_s=PATIENCE_S),), clock=lambda: now[0])
    run(alerts, [outcome(1, ok=False)])
    alerts.check()
    assert len(handler.taken) == 1
    now[0] = 301.0
    alerts.check()
    assert [a["labels"]["alertname"] for a in handler.taken[1]] == ["wolf"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "host:9093"])
def test_a_webhook_that_is_not_http_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="http"):
        WebhookChannel(url)


def test_a_shadow_decision_or_cached_answer_changes_no_rule() -> None:
    events = [replace(outcome(i), cache_hit=True, success=0.0, ok=False) for i in range(500)]
    assert run(Alerts((FailureRate(), LatencyDrift(), CalibrationDrift()), channels=()), events) == []


def test_a_url_of_the_webhook_with_a_token_is_in_no_log(
    manager: tuple[str, type[Manager]], caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = manager
    handler.refuse = 1
    for secret in (f"{url}?token=hunter2", "http://bob:hunter2@127.0.0.1:1/x", "http://127.0.0.1:1/a b?key=hunter2"):
        run(Alerts((Wolf(),), (WebhookChannel(secret),)), [outcome(1, ok=False)])
    assert len([r for r in caplog.records if "could not be delivered" in r.message]) == 3
    assert "hunter2" not in caplog.text
    with pytest.raises(SettingsError) as caught:
        WebhookChannel("ftp://bob:hunter2@host/?token=hunter2")
    assert "hunter2" not in str(caught.value)


def test_model_names_that_clients_make_up_are_watched_as_one() -> None:
    alerts = Alerts((FailureRate(), BreakerOpen()), channels=())
    names = [f"made-up-{i}" for i in range(500)]
    run(alerts, [AttemptEvent(f"d{i}", name, 0, ok=False, breaker="open") for i, name in enumerate(names)])
    assert len(alerts.firing()) <= 25
    assert "other" in {alert.subject for alert in alerts.firing()}


def test_what_waits_for_the_rules_holds_no_conversation() -> None:
    seen: list[Event] = []

    class Seen:
        name, advice = "seen", "Look."

        def observe(self, event: Event) -> Iterator[Signal]:
            seen.append(event)
            return iter(())

    context = parse_context({"history": ["a long conversation"]})
    run(Alerts((Seen(),), channels=()), [DecisionEvent("d", "m", "simple", "p", "b", 1.0, text="q", context=context)])
    (event,) = seen
    assert isinstance(event, DecisionEvent)
    assert (event.text, event.context, event.decision_id) == (None, None, "d")


def test_alerts_that_nobody_refers_to_end_their_thread() -> None:
    before = set(threading.enumerate())
    alerts = Alerts((Wolf(),), channels=())
    alerts.start()
    (thread,) = set(threading.enumerate()) - before
    del alerts
    gc.collect()
    until(lambda: not thread.is_alive())


def test_a_forked_child_watches_its_own_requests() -> None:
    alerts = Alerts((Wolf(),), channels=())
    alerts.start()
    child = os.fork()
    if child == 0:
        alerts.record(outcome(1, ok=False))
        try:
            until(alerts.firing)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    alerts.close()


def test_every_rule_of_the_registry_is_made_anew() -> None:
    first, second = default_rules(), default_rules()
    assert [type(rule) for rule in first] == list(RULES)
    assert not any(one is other for one, other in zip(first, second, strict=True))


def test_shared_state_that_is_away_fires_until_it_is_back() -> None:
    problem = ["Redis at host:6379: no answer in time"]
    alerts = Alerts([SharedStateAway(lambda: problem[0])], channels=())
    alerts.record(OutcomeEvent("d1", "m", 1.0, 1.0))
    assert [(alert.state, alert.summary) for alert in alerts.check()] == [("firing", problem[0])]
    problem[0] = ""
    alerts.record(OutcomeEvent("d2", "m", 1.0, 1.0))
    assert [alert.state for alert in alerts.check()] == ["resolved"]
