"""router-ml sync: copy experiments from the event store to MLflow."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from pathlib import Path

from router_ml.cli.events import age_s, event_store
from router_ml.errors import StoreError
from router_ml.experiments.mlflow import WINDOW_S, MlflowSync, SyncReport
from router_ml.settings import load_settings


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("sync", help="copy closed windows of experiments to MLflow")
    verb.add_argument("--mlruns", type=Path, help="MLflow's folder (default: MLFLOW_TRACKING_URI, else mlruns)")
    verb.add_argument("--window", type=age_s, default=WINDOW_S, metavar="AGE", help="of one point (default 10m)")
    verb.add_argument("--every", type=age_s, metavar="AGE", help="repeat, with a pass every 1m, 10m ...")
    verb.set_defaults(func=_sync)


def _sync(options: argparse.Namespace) -> int:
    opener = functools.partial(event_store, load_settings())
    sync = MlflowSync(opener, root=options.mlruns, window_s=options.window)
    while True:
        try:
            report = sync.sync()
            print(
                f"{report.experiments} experiments, {report.windows} new windows, {report.metrics} metrics", flush=True
            )
            if options.every is None:
                _show(report)
        except StoreError as error:
            if options.every is None:
                raise
            print(error, file=sys.stderr, flush=True)
        if options.every is None:
            return 0
        time.sleep(options.every)


def _show(report: SyncReport) -> None:
    """Print how to view the report."""
    if not report.pages:
        return
    if report.uri.startswith("sqlite:"):
        print(f"View it: mlflow server --backend-store-uri {report.uri} --host 127.0.0.1 --workers 1, then")
    base = report.uri if report.uri.startswith("http") else "http://127.0.0.1:5000"
    for page in report.pages:
        print(f"  {base.rstrip('/')}/{page}")
