"""router-ml alerts: what fires now, and what has fired."""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime

from router_ml.cli.events import duration_s, event_store
from router_ml.config import load_settings
from router_ml.telemetry.event import AlertEvent, as_dict
from router_ml.telemetry.store import Selection


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("alerts", help="what fires now; exit status 1 while anything does")
    verb.add_argument("--all", action="store_true", help="every change of the window, not only what fires now")
    verb.add_argument("--window", type=duration_s, default=604_800.0, metavar="AGE", help="how far back (default 1w)")
    verb.add_argument("--json", action="store_true", help="one JSON object a line")
    verb.set_defaults(func=_alerts)


def _alerts(options: argparse.Namespace) -> int:
    store = event_store(load_settings())
    try:
        selection = Selection(("alert",), since_s=time.time() - options.window)
        changes = [s.event for s in store.read(selection) if isinstance(s.event, AlertEvent)]
    finally:
        store.close()
    last = {(alert.rule, alert.subject): alert for alert in changes}
    firing = [alert for alert in last.values() if alert.state == "firing"]
    for alert in changes if options.all else firing:
        print(json.dumps(as_dict(alert)) if options.json else _told(alert))
    if not firing and not options.json:
        print("Nothing fires.")
    return 1 if firing else 0


def _told(alert: AlertEvent) -> str:
    when = datetime.fromtimestamp(alert.at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    line = f"{when}  {alert.state:8}  {alert.rule} ({alert.subject}): {alert.summary}"
    return f"{line}\n    {alert.advice}" if alert.state == "firing" else line
