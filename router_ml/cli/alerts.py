"""router-ml alerts: which alerts fire now, and which have fired."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import datetime

from router_ml.cli.events import age_s, event_store
from router_ml.events.event import AlertEvent, as_dict, json_line
from router_ml.events.store import EventFilter
from router_ml.monitor.alerts import UNHEARD_S, alert_line
from router_ml.settings import load_settings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("alerts", help="what fires now; exit status 1 while anything does")
    verb.add_argument("--all", action="store_true", help="every change of the window, not only what fires now")
    verb.add_argument("--window", type=age_s, default=604_800.0, metavar="AGE", help="how far back (default 1w)")
    verb.add_argument("--json", action="store_true", help="one JSON object a line")
    verb.set_defaults(func=_alerts)


def _alerts(options: argparse.Namespace) -> int:
    now_s = time.time()
    store = event_store(load_settings())
    try:
        selection = EventFilter(("alert",), since_s=now_s - options.window)
        alerts = [s.event for s in store.read(selection) if isinstance(s.event, AlertEvent)]
    finally:
        store.close()
    changes, last, last_seen_s = _changes(alerts)
    firing = [alert for alert in last.values() if alert.state == "firing"]
    stale = [alert for alert in firing if now_s - last_seen_s[_key(alert)] > UNHEARD_S]
    firing = [alert for alert in firing if alert not in stale]
    for alert in changes if options.all else firing:
        print(json_line(as_dict(alert)) if options.json else _line(alert))
    if not options.json:
        for alert in stale:
            at = _stamp(last_seen_s[_key(alert)])
            print(f"{at}  stale     {alert.rule} ({alert.subject}): its process no longer reports")
        if not firing:
            print("Nothing fires.")
    return 1 if firing else 0


def _key(alert: AlertEvent) -> tuple[str, str]:
    return alert.rule, alert.subject


def _changes(
    alerts: Sequence[AlertEvent],
) -> tuple[list[AlertEvent], dict[tuple[str, str], AlertEvent], dict[tuple[str, str], float]]:
    """Return all changes, the last event of each alert, and when each was last reported.

    A firing alert is reported again and again by its process, which is not a change."""
    changes: list[AlertEvent] = []
    last: dict[tuple[str, str], AlertEvent] = {}
    last_seen_s: dict[tuple[str, str], float] = {}
    for alert in alerts:
        key = _key(alert)
        reminds = key in last and last[key].state == alert.state and alert.at_s - last_seen_s[key] <= UNHEARD_S
        last_seen_s[key] = alert.at_s
        if not reminds:
            last[key] = alert
            changes.append(alert)
    return changes, last, last_seen_s


def _line(alert: AlertEvent) -> str:
    line = f"{_stamp(alert.at_s)}  {alert_line(alert)}"
    return f"{line}\n    {alert.advice}" if alert.state == "firing" else line


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
