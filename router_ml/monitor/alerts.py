"""Alerts: runs the rules beside the traffic, and tells of every change of state to log, webhook and callback."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from router_ml.errors import SettingsError
from router_ml.events.event import AlertEvent, AlertState, Event, NullRecorder, OutcomeEvent, Recorder, new_id
from router_ml.monitor.rules import Rule, Signal, default_rules

_LOG = logging.getLogger("router_ml.alerts")

_INBOX = 50_000
_CHECK_S = 0.5
_RESEND_S = 300.0  # an Alertmanager forgets an alert that is not sent again
REMIND_S = 60.0  # what fires is recorded again so often, so that a reader can tell a dead process from a lasting fault
UNHEARD_S = 3 * REMIND_S  # nobody has spoken of an alert for so long: whoever watched it is gone
_TIMEOUT_S = 5.0


class Channel(Protocol):
    """Where alerts go."""

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """Tell of alerts. May be slow and may raise; it is called from the alerts' own thread."""


class LogChannel:
    """Writes to the log."""

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """One line an alert."""
        for alert in alerts:
            if alert.state == "firing":
                _LOG.warning("%s (%s): %s. %s", alert.rule, alert.subject, alert.summary, alert.advice)
            else:
                _LOG.info("%s (%s) is over: %s", alert.rule, alert.subject, alert.summary)


class CallbackChannel:
    """Calls a function with each alert."""

    def __init__(self, call: Callable[[AlertEvent], None]) -> None:
        self._call = call

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """One call an alert."""
        for alert in alerts:
            self._call(alert)


class WebhookChannel:
    """Posts to an Alertmanager (`http://host:9093/api/v2/alerts`), or to anything that takes its form.

    Raises `SettingsError` where the URL is none of HTTP."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S, source: str = "") -> None:
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"the webhook of alerts must begin with http:// or https://, found {url!r}")
        self._url, self._timeout_s, self._source = url, timeout_s, source
        self._began: dict[tuple[str, str], float] = {}

    def deliver(self, alerts: Sequence[AlertEvent]) -> None:
        """One request for all. Raises `OSError` where it is not taken."""
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
        if self._source:
            form["generatorURL"] = self._source
        if alert.state == "resolved":
            form["endsAt"] = _stamp(alert.at_s)
            del self._began[key]
        return form


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat()


class Alerts:
    """A `Recorder` that watches. Recording appends to a queue; `check` does the work, in a thread after `start`."""

    def __init__(
        self,
        rules: Sequence[Rule] | None = None,
        channels: Sequence[Channel] = (LogChannel(),),
        *,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._rules = tuple(default_rules() if rules is None else rules)
        self._channels = tuple(channels)
        self._recorder = recorder or NullRecorder()
        self._clock = clock
        self._inbox: deque[Event] = deque(maxlen=_INBOX)
        self._lock = threading.Lock()
        self._firing: dict[tuple[str, str], AlertEvent] = {}
        self._unsent: list[list[AlertEvent]] = [[] for _ in self._channels]
        self._resent_s = self._reminded_s = clock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def record(self, event: Event) -> None:
        """Take one event; a question to the user tells nothing of any model."""
        if not (isinstance(event, OutcomeEvent) and event.clarified):
            self._inbox.append(event)

    def firing(self) -> tuple[AlertEvent, ...]:
        """The alerts that fire now, the oldest first."""
        with self._lock:
            return tuple(sorted(self._firing.values(), key=lambda alert: alert.at_s))

    def check(self) -> list[AlertEvent]:
        """Work through what has come, and tell of what changed; the changes."""
        changes: list[AlertEvent] = []
        while self._inbox:
            changes += self._observe(self._inbox.popleft())
        self._remind()
        self._send(changes)
        return changes

    def start(self) -> None:
        """Check from a thread from now on."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="router-ml-alerts", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread, and record that nobody watches any more what fires; the channels are not told."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(_TIMEOUT_S)
        for alert in self.firing():
            self._record_again(alert, state="resolved", summary="the process that watched it has ended")
        with self._lock:
            self._firing.clear()

    def _run(self) -> None:
        while not self._stop.wait(_CHECK_S):
            try:
                self.check()
            except Exception:
                _LOG.exception("a check of the alerts failed")

    def _observe(self, event: Event) -> list[AlertEvent]:
        changes = []
        for rule in self._rules:
            try:
                signals = list(rule.observe(event))
            except Exception:  # one broken rule must not silence the others
                _LOG.exception("the rule %s failed", rule.name)
                continue
            changes += [change for signal in signals if (change := self._change(rule, signal, event.at_s))]
        return changes

    def _change(self, rule: Rule, signal: Signal, at_s: float) -> AlertEvent | None:
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
                _LOG.warning("alerts could not be delivered by %s: %s", type(channel).__name__, error)
