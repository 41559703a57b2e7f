"""Alerts: evaluate the rules on the events, and report every change of state to the channels."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from router_ml.errors import SettingsError
from router_ml.events.event import (
    AlertEvent,
    AlertState,
    AttemptEvent,
    Event,
    NullRecorder,
    OutcomeEvent,
    Recorder,
    new_id,
    without_text,
)
from router_ml.events.privacy import without_url_secrets
from router_ml.monitor.labels import Labels
from router_ml.monitor.rule import AlertRule, Signal
from router_ml.monitor.rules import default_rules

_LOG = logging.getLogger("router_ml.alerts")

_INBOX = 50_000
_CHECK_S = 0.5
_RESEND_S = 300.0  # an Alertmanager forgets an alert that is not sent again
REMIND_S = (
    60.0  # interval at which firing alerts are recorded again, so that a dead process differs from a lasting fault
)
UNHEARD_S = 3 * REMIND_S  # an alert not recorded for so long: the process that watched it has ended
_TIMEOUT_S = 5.0


class Channel(Protocol):
    """Where alerts are delivered."""

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """Deliver alerts. May be slow and may raise; it is called from the alerts' own thread."""


def alert_line(alert: AlertEvent) -> str:
    """Return an alert as one line of text."""
    return f"{alert.state:8}  {alert.rule} ({alert.subject}): {alert.summary}"


class LogChannel:
    """Writes alerts to the log."""

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """Write one line per alert."""
        for alert in alerts:
            level, advice = (logging.WARNING, f". {alert.advice}") if alert.state == "firing" else (logging.INFO, "")
            _LOG.log(level, "%s%s", alert_line(alert), advice)


class WebhookChannel:
    """Posts to an Alertmanager (`http://host:9093/api/v2/alerts`), or to anything that takes its form.

    Raises `SettingsError` if the URL is not one of HTTP."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(
                f"the webhook of alerts must begin with http:// or https://, got {without_url_secrets(url)!r}"
            )
        self._url, self._timeout_s = url, timeout_s
        self._began: dict[tuple[str, str], float] = {}

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """Post all alerts in one request. Raises `OSError` if it is refused."""
        body = json.dumps([self._form(alert) for alert in alerts]).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=self._timeout_s):
            pass

    def _form(self, alert: AlertEvent) -> dict[str, Any]:
        key = (alert.rule, alert.subject)
        began_s = self._began.setdefault(key, alert.at_s)
        form: dict[str, Any] = {
            "labels": {
                "alertname": alert.rule,
                "subject": alert.subject,
                "service": "router_ml",
                "severity": "warning",
            },
            "annotations": {"summary": alert.summary, "description": alert.advice},
            "startsAt": _stamp(began_s),
        }
        if alert.state == "resolved":
            form["endsAt"] = _stamp(alert.at_s)
            del self._began[key]
        return form


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


class Alerts:
    """A `Recorder` that feeds the alert rules. Recording appends to a queue; `check` does the work, in a thread after
    `start`. The thread ends with `close`, or when nothing refers to this object any more."""

    def __init__(
        self,
        rules: Sequence[AlertRule] | None = None,
        channels: Sequence[Channel] = (LogChannel(),),
        *,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = tuple(default_rules() if rules is None else rules)
        self._channels = tuple(channels)
        self._recorder = recorder or NullRecorder()
        self._clock = clock
        self._models = Labels()
        self._started = False
        self._reset()
        _ALERTS.add(self)

    def _reset(self) -> None:
        """Begin without events, alerts and thread, as a forked child must: the parent watches its own requests."""
        self._inbox: deque[Event] = deque(maxlen=_INBOX)
        self._lock = threading.Lock()
        self._firing: dict[tuple[str, str], AlertEvent] = {}
        self._unsent: list[list[AlertEvent]] = [[] for _ in self._channels]
        self._resent_s = self._reminded_s = self._clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, event: Event) -> None:
        """Take one event, without its text; a clarifying question is no evidence about any model."""
        if not (isinstance(event, OutcomeEvent) and event.clarified):
            self._inbox.append(without_text(event))
        if self._started and self._thread is None:
            self.start()  # in a forked child

    def firing(self) -> tuple[AlertEvent, ...]:
        """Return the alerts that fire now, the oldest first."""
        with self._lock:
            return tuple(sorted(self._firing.values(), key=lambda alert: alert.at_s))

    def check(self) -> list[AlertEvent]:
        """Pass the recorded events to the rules, deliver the changes, and return them."""
        changes: list[AlertEvent] = []
        while self._inbox:
            changes += self._observe(self._inbox.popleft())
        self._remind()
        self._send(changes)
        return changes

    def start(self) -> None:
        """Check from a thread from now on."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._started = True
                self._stop.clear()
                self._thread = threading.Thread(
                    target=_watch, args=(weakref.ref(self), self._stop), name="router-ml-alerts", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Stop the thread, and record that firing alerts are no longer watched; the channels are not notified."""
        self._started = False
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_TIMEOUT_S)
        for alert in self.firing():
            self._record_again(alert, state="resolved", summary="the process that watched it has ended")
        with self._lock:
            self._firing.clear()

    def _observe(self, event: Event) -> list[AlertEvent]:
        changes = []
        if isinstance(event, AttemptEvent | OutcomeEvent):
            label = self._models.of(event.model, served=event.ok)  # rules hold a state for each model
            event = event if label == event.model else dataclasses.replace(event, model=label)
        for rule in self._rules:
            try:
                signals = list(rule.observe(event))
            except Exception:  # one broken rule must not silence the others
                _LOG.exception("the rule %s failed", rule.name)
                continue
            changes += [change for signal in signals if (change := self._change(rule, signal, event.at_s))]
        return changes

    def _change(self, rule: AlertRule, signal: Signal, at_s: float) -> AlertEvent | None:
        key = (rule.name, signal.subject)
        if signal.firing == (key in self._firing):
            return None
        state: AlertState = "firing" if signal.firing else "resolved"
        alert = AlertEvent(
            rule.name, state, signal.subject, signal.value, signal.threshold, signal.summary, rule.advice, at_s=at_s
        )
        with self._lock:
            if signal.firing:
                self._firing[key] = alert
            else:
                del self._firing[key]
        self._recorder.record(alert)
        return alert

    def _remind(self) -> None:
        if self._clock() - self._reminded_s < REMIND_S:
            return
        self._reminded_s = self._clock()
        for alert in self.firing():
            self._record_again(alert)

    def _record_again(self, alert: AlertEvent, **changed: Any) -> None:
        self._recorder.record(dataclasses.replace(alert, at_s=self._clock(), event_id=new_id(), **changed))

    def _send(self, changes: list[AlertEvent]) -> None:
        now_s = self._clock()
        again = list(self.firing()) if now_s - self._resent_s >= _RESEND_S else []
        if again:
            self._resent_s = now_s
        for index, channel in enumerate(self._channels):
            due = self._unsent[index] + changes
            if again and isinstance(channel, WebhookChannel):
                due = due + [alert for alert in again if alert not in due]
            if not due:
                continue
            try:
                channel.deliver(due)
                self._unsent[index] = []
            except Exception as error:
                # Tried again at the next check; only the last hundred, should the channel be away for long.
                self._unsent[index] = due[-100:]
                _LOG.warning("alerts could not be delivered by %s: %s", type(channel).__name__, _reason(error))


_ALERTS: weakref.WeakSet[Alerts] = weakref.WeakSet()


def _watch(alerts: weakref.ref[Alerts], stop: threading.Event) -> None:
    while not stop.wait(_CHECK_S):
        living = alerts()
        if living is None:
            return
        try:
            living.check()
        except Exception:
            _LOG.exception("a check of the alerts failed")
        del living


def _reason(error: Exception) -> str:
    """Return the reason of an error without a URL, which may hold a token."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, OSError) else error
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


def _after_fork_in_child() -> None:
    for alerts in list(_ALERTS):
        alerts._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
