"""Copy experiments from the event store to MLflow: closed windows become metrics of one flat run per arm.

Never on the request path: a job (`router-ml sync`) reads the store and catches up from where MLflow
stands. A window is one `log_batch`, which MLflow's store commits as a whole, and its number is the metrics' step; so
the highest step is the watermark, and a job that was killed repeats nothing and leaves nothing out. The tag
`ab.watermark` shows it to people.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router_ml.arm import think_text
from router_ml.errors import StoreError
from router_ml.events.event import ExperimentEvent, FeedbackEvent, OutcomeEvent
from router_ml.events.store import EventFilter, EventStore
from router_ml.experiments.evidence import METRICS
from router_ml.experiments.mlflow_store import database_uri, ensure_experiment, open_tracking, tracking_root
from router_ml.experiments.report import Analysis, analyses_of, difference_svg, report_html
from router_ml.files import file_lock
from router_ml.monitor.summary import Summary, summarise
from router_ml.settings import without_credentials

_LOG = logging.getLogger("router_ml.events")

WINDOW_S = 600.0
_GRACE_S = 30.0  # a window is closed once events of its time have surely been written
_WATERMARK = "ab.watermark"
_LOGGED = "ab.logged"  # the verdict and number of analyses the artifacts show
_STEP_METRIC = "win/requests"
_COLOURS = {"control": "#8a8a86", "challenger": "#2a78d6"}
_ENDINGS = ("rolled_back", "invalid", "stopped", "failed")

# Three to six a section, because each section is a row of charts; `ab` is cumulative, since the comparison table
# shows only the last step, and `win` is the window alone.
_AB = {
    "requests": "requests",
    "success_rate": "success_rate",
    "latency_p50_s": "latency_p50_s",
    "latency_p95_s": "latency_p95_s",
    "cost_usd": "cost_usd",
    "saved_share": "saved_share",
}
_WIN = {
    "requests": "requests",
    "success_rate": "success_rate",
    "latency_p50_s": "latency_p50_s",
    "latency_p95_s": "latency_p95_s",
    "output_tokens_per_s": "output_tokens_per_s",
    "fallback_rate": "fallback_rate",
}


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What one pass copied."""

    experiments: int
    windows: int
    metrics: int
    uri: str = ""  # of the tracking store
    pages: tuple[str, ...] = ()  # fragments of the comparison's address in MLflow's pages, one an experiment


class MlflowSync:
    """Copies experiments from an event store to MLflow. One pass at a time, also among processes."""

    def __init__(
        self,
        open_store: Callable[[], EventStore],
        *,
        root: Path | None = None,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._open_store = open_store
        self._root = root
        self._window_s = window_s
        self._clock = clock
        self._settled: set[str] = set()  # ended and fully copied

    def sync(self) -> SyncReport:
        """Make one pass.

        Raises `StoreError` if the event store or MLflow cannot be reached; the next pass catches up."""
        uri = ""
        try:
            uri = open_tracking(self._root)
            with self._locked(uri):
                return self._sync(uri)
        except StoreError:
            raise
        except ModuleNotFoundError as error:
            needed = "copying experiments to MLflow needs its package: pip install 'router-ml[train]'"
            raise StoreError(f"{needed} ({error})") from error
        except Exception as error:
            text = str(error).replace(uri, without_credentials(uri)) if uri else str(error)
            raise StoreError(f"cannot write to MLflow: {text}; events wait in the store until it is back") from error

    def _locked(self, uri: str) -> AbstractContextManager[None]:
        folder = tracking_root(self._root)
        return file_lock(folder / ".sync.lock") if uri == database_uri(folder) else nullcontext()

    def _sync(self, uri: str) -> SyncReport:
        from mlflow.tracking import MlflowClient

        client: Any = MlflowClient(tracking_uri=uri)
        store = self._open_store()
        windows = metrics = 0
        pages: dict[str, str] = {}
        try:
            periods = _periods(store)
            for period in periods:
                if period.key in self._settled:
                    continue
                done = self._sync_one(client, uri, store, period)
                pages[period.name] = _page(client, period.name)
                windows, metrics = windows + done[0], metrics + done[1]
        finally:
            store.close()
        return SyncReport(len(periods), windows, metrics, without_credentials(uri), tuple(pages.values()))

    def _sync_one(self, client: Any, uri: str, store: EventStore, period: _Period) -> tuple[int, int]:
        experiment_id = ensure_experiment(f"ab/{period.name}", self._root, uri)
        _note(client, experiment_id, period, self._window_s)
        now_s = self._clock()
        until_s = min(now_s - _GRACE_S, period.ended_s + self._window_s if period.ended_s else math.inf)
        closed = max(0, int((until_s - period.began_s) // self._window_s))
        runs = {arm: self._run(client, experiment_id, period, arm) for arm in ("control", "challenger")}
        marks = {arm: _watermark(client, run) for arm, run in runs.items()}
        first = min(marks.values()) + 1
        metrics = 0
        if first < closed:
            events = _traffic(store, period)
            for window in range(first, closed):
                for arm, run in runs.items():
                    if window > marks[arm]:
                        metrics += self._log_window(client, run, period, arm, window, events)
        settled = period.ended_s is not None and now_s > period.ended_s + 2 * self._window_s + _GRACE_S
        self._log_verdict(client, runs, period, ended=settled)
        if settled:
            self._settled.add(period.key)
        return max(0, closed - first), metrics

    def _run(self, client: Any, experiment_id: str, period: _Period, arm: str) -> str:
        """Return the run of an arm; made once, found again by its tags."""
        started = f"{period.began_s:.3f}"
        found = client.search_runs(
            [experiment_id], f"tags.`ab.arm` = '{arm}' and tags.`ab.started_s` = '{started}'", max_results=1
        )
        params = _params(period.definition, arm)
        if found:
            run_id = str(found[0].info.run_id)
            missing = {key: value for key, value in params.items() if key not in found[0].data.params}
        else:
            run_id, missing = self._make_run(client, experiment_id, period, arm, started), params
        for key, value in missing.items():  # also those that a killed pass did not write
            client.log_param(run_id, key, value)
        return run_id

    def _make_run(self, client: Any, experiment_id: str, period: _Period, arm: str, started: str) -> str:
        name = str(period.definition.get(arm, {}).get("name", arm))
        tags = {
            "ab.id": period.name,
            "ab.arm": arm,
            "ab.variant": name,
            "ab.started_s": started,
            "ab.verdict": "HOLD",
            "mlflow.runColor": _COLOURS[arm],
        }
        began_ms = int(period.began_s * 1000)
        run = client.create_run(experiment_id, start_time=began_ms, run_name=f"{name} ({arm})", tags=tags)
        return str(run.info.run_id)

    def _log_window(
        self,
        client: Any,
        run: str,
        period: _Period,
        arm: str,
        window: int,
        events: Sequence[OutcomeEvent | FeedbackEvent],
    ) -> int:
        from mlflow.entities import Metric, RunTag

        begin_s = period.began_s + window * self._window_s
        end_s = begin_s + self._window_s
        variant = period.definition.get(arm, {}).get("name", arm)
        mine = [e for e in events if isinstance(e, FeedbackEvent) or e.variant == variant]
        values = {
            **_values("ab", _AB, summarise(mine, period.began_s, end_s).total),
            **_values("win", _WIN, summarise(mine, begin_s, end_s).total),
        }
        if arm == "challenger":
            values |= _verdict_values(period.analyses, end_s)
        stamp = int(end_s * 1000)
        batch = [Metric(key, value, stamp, window) for key, value in values.items()]
        client.log_batch(run, metrics=batch)
        client.log_batch(run, tags=[RunTag(_WATERMARK, str(window))])
        return len(batch)

    def _log_verdict(self, client: Any, runs: Mapping[str, str], period: _Period, *, ended: bool) -> None:
        logged = f"{period.verdict}@{len(period.analyses)}"
        page = report_html(period.definition, period.analyses) if period.analyses else None
        for arm, run in runs.items():
            info = client.get_run(run)
            if info.data.tags.get(_LOGGED) != logged:
                client.set_tag(run, "ab.verdict", period.verdict)
                client.set_tag(run, "mlflow.note.content", period.line)
                if page is not None:
                    client.log_text(run, page, "report.html")
                if arm == "challenger":
                    self._log_pictures(client, run, period)
                client.set_tag(run, _LOGGED, logged)  # last: a kill before it only repeats what is the same
            if ended and info.info.status == "RUNNING":
                client.set_terminated(run, "FINISHED", int((period.ended_s or 0.0) * 1000))

    def _log_pictures(self, client: Any, run: str, period: _Period) -> None:
        """Log each difference with its band, in one picture a guardrail."""
        for metric in METRICS:
            picture = difference_svg(metric, period.analyses)
            if picture:
                client.log_text(run, picture, f"difference/{metric}.svg")


@dataclass(frozen=True, slots=True)
class _Period:
    """One period of an experiment, from its start to its end, read from the event store."""

    definition: Mapping[str, Any]
    began_s: float
    ended_s: float | None
    analyses: tuple[Analysis, ...]
    verdict: str
    line: str  # the current state in one line

    @property
    def name(self) -> str:
        return str(self.definition["id"])

    @property
    def key(self) -> str:
        return f"{self.name}@{self.began_s:.3f}"


def _periods(store: EventStore) -> list[_Period]:
    """Return the periods of all experiments in the store; a name may be used for several in turn."""
    by_name: dict[str, list[list[ExperimentEvent]]] = {}
    for _, event in store.read(EventFilter(("experiment",))):
        if not isinstance(event, ExperimentEvent):
            continue
        if event.change == "started" and "experiment" in event.detail:
            by_name.setdefault(event.experiment, []).append([event])
        elif event.experiment in by_name:
            by_name[event.experiment][-1].append(event)
    return [_period(events) for periods in by_name.values() for events in periods]


def _period(events: Sequence[ExperimentEvent]) -> _Period:
    definition = events[0].detail["experiment"]
    analyses = tuple(analyses_of(events))
    ended = next((e for e in events if e.change in _ENDINGS), None)
    verdict = str(analyses[-1].verdict["kind"]) if analyses else "HOLD"
    line = str(analyses[-1].verdict["summary"]) if analyses else "Runs; no analysis yet."
    if ended is not None and ended.change == "stopped":
        line = f"Stopped by a person. {line}"
    if ended is not None and ended.change == "failed":
        verdict, line = "ROLLBACK", str(ended.detail.get("reason", "the experiment could not be judged"))
    began_s = float(definition.get("started_s", events[0].at_s))
    return _Period(definition, began_s, ended.at_s if ended else None, analyses, verdict, line)


def _traffic(store: EventStore, period: _Period) -> list[OutcomeEvent | FeedbackEvent]:
    outcomes = [
        e
        for _, e in store.read(EventFilter(("outcome",), since_s=period.began_s, experiment=period.name))
        if isinstance(e, OutcomeEvent)
    ]
    known = {e.decision_id for e in outcomes}
    feedback = [
        e
        for _, e in store.read(EventFilter(("feedback",), since_s=period.began_s))
        if isinstance(e, FeedbackEvent) and e.decision_id in known
    ]
    return [*outcomes, *feedback]


def _watermark(client: Any, run: str) -> int:
    """Return the last window MLflow has; -1 before the first."""
    return max((metric.step for metric in client.get_metric_history(run, _STEP_METRIC)), default=-1)


def _values(section: str, names: Mapping[str, str], summary: Summary) -> dict[str, float]:
    found = {f"{section}/{name}": getattr(summary, attribute) for name, attribute in names.items()}
    return {key: float(value) for key, value in found.items() if value is not None and not _idle(key, value)}


def _idle(key: str, value: float) -> bool:
    """Return whether a chart would be a line at zero: the cost of self-hosted models."""
    return key.endswith("/cost_usd") and value == 0


def _verdict_values(analyses: Iterable[Analysis], until_s: float) -> dict[str, float]:
    """Return the newest change with its bounds before a time: failures as a share, latency relative to the control."""
    known = [analysis for analysis in analyses if analysis.at_s < until_s]
    if not known:
        return {}
    values: dict[str, float] = {}
    for metric, name in (("failure", "failure"), ("log_latency", "latency")):
        finding = known[-1].finding(metric)
        if finding is not None:
            scale = math.expm1 if finding["ratio"] else float
            parts = {"change": finding["difference"], "low": finding["low"], "high": finding["high"]}
            values |= {f"verdict/{name}_{part}": scale(v) for part, v in parts.items() if v is not None}
    return values


def _params(definition: Mapping[str, Any], arm: str) -> dict[str, str]:
    """Return the arm's configuration; what the arms share is the same in both, so that "show diff only" hides it."""
    variant = definition.get(arm, {})
    limits = definition.get("limits", {})
    shared = {name: definition.get(name) for name in ("mode", "unit", "unit_requests", "holdout")}
    shared |= {name: limits.get(name) for name in ("failure_margin", "latency_margin_ratio", "slo_s", "planned_units")}
    own = {name: variant.get(name) or "as today" for name in ("policy", "bundle", "model")}
    own["think"] = "as today" if variant.get("think") is None else think_text(variant["think"])
    return {key: str(value) for key, value in {**own, **shared}.items()}


def _page(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(f"ab/{name}")
    return f"#/experiments/{found.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"


def _note(client: Any, experiment_id: str, period: _Period, window_s: float) -> None:
    control, challenger = (period.definition.get(arm, {}).get("name", arm) for arm in ("control", "challenger"))
    text = (
        f"{period.line}\n\n"
        f"The question: is {challenger!r} better than {control!r}? {period.definition.get('hypothesis') or ''}\n\n"
        f"In the charts a step is {window_s / 60:g} minutes. `ab/` is everything up to then, `win/` that step alone. "
        "`verdict/` is the challenger minus the control: failures as a share of requests, latency as a share of the "
        "control's; the truth lies between low and high. The pictures in the challenger's `difference` folder "
        "show it with its band; `report.html`, an artifact of both runs, explains it."
    )
    known = client.get_experiment(experiment_id)
    if known.tags.get("mlflow.note.content") != text:
        client.set_experiment_tag(experiment_id, "mlflow.note.content", text)
