"""The watch: event writer, live metrics, alerts and rollout behind one recorder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.events.connect import settings_store
from router_ml.events.event import Recorder, Recorders
from router_ml.events.retention import Retention
from router_ml.events.writer import EventWriter
from router_ml.experiments.rollout import Rollout, open_rollout
from router_ml.monitor.alerts import Alerts, Channel, LogChannel, WebhookChannel
from router_ml.monitor.metrics import LiveMetrics
from router_ml.monitor.prometheus import prometheus
from router_ml.monitor.rules import default_rules
from router_ml.settings import Settings
from router_ml.shared_state.connect import open_shared_state


@dataclass(frozen=True, slots=True)
class Watch:
    """The parts, and the one recorder that feeds them all. Give `rollout.assign` to the gateway as its assigner."""

    recorder: Recorder
    writer: EventWriter
    metrics: LiveMetrics
    alerts: Alerts
    rollout: Rollout

    def start(self) -> None:
        """Start the threads of experiments and alerts."""
        self.rollout.start()
        self.alerts.start()

    def close(self) -> None:
        """Stop the threads and write what waits."""
        self.rollout.close()
        self.alerts.close()
        self.writer.close()

    def prometheus(self, backends: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return all metrics as text for a scrape; `backends` are the gateway's rows, for its queues."""
        firing = [(alert.rule, alert.subject) for alert in self.alerts.firing()]
        return prometheus(self.metrics, writer=self.writer.state(), firing=firing, backends=backends)


def open_watch(settings: Settings, *, channels: Sequence[Channel] = ()) -> Watch:
    """Return the parts as the settings describe them; nothing runs before `start`, and a failing store is not an error.

    Alerts go to the log, to the webhook of the settings, and to further `channels`."""
    read_store = functools.partial(settings_store, settings)
    writer = open_writer(settings)
    webhook = (WebhookChannel(settings.alert_webhook),) if settings.alert_webhook else ()
    shared = open_shared_state(settings)
    alerts = Alerts(
        default_rules(lambda: shared.problem), channels=(LogChannel(), *webhook, *channels), recorder=writer
    )
    rollout = open_rollout(settings.state_dir, recorder=writer, read_store=read_store)
    metrics = LiveMetrics()
    return Watch(Recorders((writer, metrics, alerts, rollout)), writer, metrics, alerts, rollout)


def open_writer(settings: Settings) -> EventWriter:
    """Return the background writer into the event store of the settings."""
    opener = functools.partial(settings_store, settings, read_only=False)
    return EventWriter(opener, retention=Retention())
