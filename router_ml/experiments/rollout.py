"""Assigns units to the running experiment, watches it, and halts it when it does harm.

The only code that changes what an experiment serves. A rollback takes effect in memory first, then in the file that all
processes watch, then in the event store; each of the later ones may fail without undoing the earlier. Interim analyses
are made by a thread, and by the request path itself should that thread be dead.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from router_ml.errors import ExperimentError, StoreError
from router_ml.events.event import (
    ChangeKind,
    Event,
    ExperimentEvent,
    FeedbackEvent,
    NullRecorder,
    OutcomeEvent,
    Recorder,
    new_id,
)
from router_ml.events.judgement import source_of
from router_ml.events.privacy import Privacy, load_key
from router_ml.events.store import EventFilter, EventStore
from router_ml.experiments.assignment import Assignment, assign
from router_ml.experiments.experiment import Experiment
from router_ml.experiments.state import ExperimentState, Halt, Signature
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import UnitRequest
from router_ml.experiments.verdict import Verdict
from router_ml.moved import renamed
from router_ml.types import Context

_LOG = logging.getLogger("router_ml.experiments.rollout")

FOLDER = "experiments"
_REFRESH_S = 0.5  # how old the view of the state files may be
_ANALYSIS_S = 0.25  # between analyses of the thread
_STALE_S = 1.0  # after so long without an analysis the request path makes one
_PATIENCE_S = 1.0  # how long an outcome may take through the store before memory's copy is used
_INBOX = 50_000
_FAILED_ANALYSES = 5  # in a row: then the experiment cannot be judged and is halted
_AHEAD_S = 60.0  # how far clocks may disagree
_PLOT_STEP = 1.05  # an analysis is written down whenever the units have grown by this factor


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What is served right now."""

    experiment: Experiment | None
    halt: Halt | None
    verdict: Verdict | None
    coverage: float
    analyses: int
    trouble: str | None  # why the last analysis failed, or what it could not use

    latch = property(renamed("latch", "halt"))
    looks = property(renamed("looks", "analyses"))


class Rollout:
    """Assigns, records and judges one experiment. Thread-safe; as a `Recorder` it neither blocks nor raises.

    `read_store` opens the event store for reading, so that outcomes of other processes count too and a restart
    forgets nothing; without it this process's outcomes are all there is. `unit_key` must be the store's keyed hash.
    `new_unit` names the unit of each request where requests are the units."""

    def __init__(
        self,
        state: ExperimentState,
        *,
        recorder: Recorder | None = None,
        read_store: Callable[[], EventStore] | None = None,
        unit_key: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        new_unit: Callable[[], str] = new_id,
    ) -> None:
        self.files = state
        self._recorder = recorder or NullRecorder()
        self._read_store = read_store
        self._unit_key = unit_key or (lambda unit: unit)
        self._clock, self._monotonic, self._new_unit = clock, monotonic, new_unit
        self._checked_s = float("-inf")
        self._experiment: Experiment | None = None
        self._halt: Halt | None = None
        self._halt_filed = False
        self._started = False
        self._reset()
        self._refresh()
        _ROLLOUTS.add(self)

    def _reset(self) -> None:
        """Begin without evidence and thread, as a forked child must: the parent may be within an analysis."""
        self._view = threading.Lock()  # guards what is served; held for two `stat` calls at most
        self._lock = threading.RLock()  # guards the analyses; may be held while a restart reads the store
        self._inbox: deque[tuple[float, Event]] = deque(maxlen=_INBOX)
        self._signature: Signature | None = None
        self._analysed_s = self._monotonic()
        self._trial: Trial | None = None
        self._verdict: Verdict | None = None
        self._store: EventStore | None = None
        self._seq = 0
        self._analyses = self._failures = self._skipped = 0
        self._trouble: str | None = None
        self._reported: tuple[str, int, float] = ("", 0, -1.0)  # verdict, units and coverage last written down
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def assign(self, unit: str, context: Context | None = None) -> Assignment | None:
        """Return the assignment of a unit (a session or a request), or None if it does not take part.

        Takes some ten microseconds."""
        if self._monotonic() - self._checked_s > _REFRESH_S:
            self._refresh()
        experiment = self._experiment
        if experiment is None or self._halt is not None:
            return None
        # Where requests are the units, those of one session must not stick together.
        return assign(experiment, self._new_unit() if experiment.unit == "request" else unit, self._clock())

    def record(self, event: Event) -> None:
        """Take an outcome or feedback of the running experiment; everything else is ignored."""
        experiment = self._experiment
        if experiment is None or self._halt is not None:
            return
        if isinstance(event, OutcomeEvent):
            if event.experiment != experiment.id or event.pinned or event.cache_hit:
                return
        elif not isinstance(event, FeedbackEvent):
            return
        now = self._monotonic()
        self._inbox.append((now, _timely(event, self._clock())))
        if self._started and self._thread is None:
            self.start()  # in a forked child
        if now - self._analysed_s > _STALE_S:
            self._analyse_from_request()

    def start(self) -> None:
        """Make analyses in a thread from now on."""
        if self._thread is None or not self._thread.is_alive():
            self._started, self._stop = True, threading.Event()
            work = (weakref.ref(self), self._stop)
            self._thread = threading.Thread(target=_run, args=work, name="router-ml-rollout", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and close the store."""
        self._started = False
        self._stop.set()
        if self._thread is not None and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(5.0)
        with self._lock:
            self._drop_store()

    def state(self) -> RolloutState:
        """Return what is served right now, and what is known of it."""
        experiment, halt = self._experiment, self._halt
        coverage = 0.0 if experiment is None or halt else experiment.coverage(self._clock())
        return RolloutState(experiment, halt, self._verdict, coverage, self._analyses, self._trouble)

    def analyse(self, *, act: bool = True) -> Verdict | None:
        """Judge the running experiment and, with `act`, halt it where the verdict says so; None if none runs."""
        with self._lock:
            self._refresh()
            self._analysed_s = self._monotonic()
            trial = self._trial_of(self._experiment)
            if trial is None or (self._halt is not None and act):
                return self._verdict
            now_s = self._clock()
            try:
                self._trouble = self._gather(trial)
                verdict = trial.analyse(now_s)
            except Exception as error:  # whatever the error, an experiment that cannot be judged must not run for long
                self._failed(error, act)
                return self._verdict
            self._failures = 0
            self._analyses += 1
            self._verdict = verdict
            if act:
                self._act(trial, verdict, now_s)
            return verdict

    look = renamed("look", "analyse")
    board = property(renamed("board", "files"))

    def record_text(self) -> str | None:
        """Return the record of the verdict as of now (see `verdict_record`), or None if nothing runs."""
        with self._lock:
            trial = self._trial_of(self._experiment)
            return None if trial is None else trial.record(self._clock())

    def _analyse_from_request(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # another thread is doing it
        try:
            self.analyse()
        except Exception:
            _LOG.exception("an interim analysis failed")
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        """Read the state files; while they cannot be understood, no experiment is served here."""
        with self._view:
            self._checked_s = self._monotonic()
            signature = self.files.signature()
            if signature == self._signature:
                return
            self._signature = signature
            halt = self.files.halt()
            try:
                experiment = self.files.active()
            except ExperimentError as error:
                _LOG.error("no experiment is served: %s", error)
                experiment = None
            same = experiment is not None and experiment == self._experiment
            if same and halt is None and self._halt is not None and not self._halt_filed:
                return  # this process halted it and could not write the file; memory remembers
            self._experiment, self._halt, self._halt_filed = experiment, halt, halt is not None

    def _trial_of(self, experiment: Experiment | None) -> Trial | None:
        """Return the trial of what runs, begun anew where that has changed."""
        known = self._trial.experiment if self._trial else None
        if experiment != known:
            self._trial = None if experiment is None else Trial(experiment)
            self._verdict, self._seq, self._analyses, self._failures, self._skipped = None, 0, 0, 0, 0
            self._reported = ("", 0, -1.0)
        return self._trial

    def _gather(self, trial: Trial) -> str | None:
        """Take new events, from the store where it answers, else from memory; return what was wrong, if anything.

        Known events do not count again. Nothing the store does ends an experiment: memory holds this process's own."""
        trouble = self._gather_from_store(trial)
        patience_s = 0.0 if self._read_store is None or self._store is None else _PATIENCE_S
        now = self._monotonic()
        while self._inbox and now - self._inbox[0][0] >= patience_s:
            _, event = self._inbox.popleft()
            self._take(trial, event, hashed=False)
        if self._skipped and not trouble:
            trouble = f"{self._skipped} events could not be understood and do not count"
        return trouble

    def _gather_from_store(self, trial: Trial) -> str | None:
        if self._read_store is None:
            return None
        try:
            if self._store is None:
                self._store = self._read_store()
            since_s = None if self._seq else trial.experiment.started_s
            selection = EventFilter(("outcome", "feedback"), after_seq=self._seq, since_s=since_s)
            for seq, event in self._store.read(selection):
                self._take(trial, event, hashed=True)
                self._seq = seq
            return None
        except Exception as error:  # a damaged database raises anything
            self._drop_store()
            return f"the event store cannot be read, so only this process's events count: {error}"

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _take(self, trial: Trial, event: Event, *, hashed: bool) -> None:
        """Take one event; one whose values make no sense is counted and left out."""
        try:
            event = _timely(event, self._clock())
            if isinstance(event, FeedbackEvent):
                if not source_of(event.kind).two_sided:
                    return  # its absence says nothing, so its share is no rate of wrong answers
                trial.judge_request(
                    str(event.decision_id), 1.0 - _share(event.score), at_s=_number(event.at_s),
                    explicit=event.explicit, event_id=str(event.event_id),
                )  # fmt: skip
            elif isinstance(event, OutcomeEvent) and event.experiment == trial.experiment.id:
                request = request_of(event, trial.experiment, None if hashed else self._unit_key)
                if request is not None and request.at_s >= trial.experiment.started_s:
                    trial.add(request)
        except (TypeError, ValueError):
            self._skipped += 1

    def _act(self, trial: Trial, verdict: Verdict, now_s: float) -> None:
        reported, units, coverage = self._reported
        n, now_coverage = trial.evidence.n, trial.experiment.coverage(now_s)
        if verdict.ends:
            self._end(trial, verdict, now_s)
        elif verdict.kind == "SHIP" and reported != "SHIP":
            self._report("shipped", verdict, trial, now_s, self._keep(trial, verdict, now_s))
        elif n >= max(units * _PLOT_STEP, units + 10):
            self._report("look", verdict, trial, now_s)
        elif now_coverage != coverage:
            self._report("ramped", verdict, trial, now_s)
        else:
            return
        # A recommendation is given once: evidence that wavers around it does not make it news again.
        self._reported = ("SHIP" if reported == "SHIP" else verdict.kind, n, now_coverage)

    def _end(self, trial: Trial, verdict: Verdict, now_s: float) -> None:
        halt = Halt(trial.experiment.id, verdict.kind, now_s, verdict.summary)
        if not self._halted(trial.experiment, halt):
            return
        _LOG.error(
            "%s All requests are served as before the experiment until 'router-ml experiment clear'.", halt.reason
        )
        record = self._keep(trial, verdict, now_s)
        self._file(Halt(halt.experiment, halt.kind, now_s, halt.reason, record))
        self._report("invalid" if verdict.kind == "INVALID" else "rolled_back", verdict, trial, now_s, record)

    def _halted(self, experiment: Experiment, halt: Halt) -> bool:
        """Stop serving the experiment, in memory; False if another one runs by now."""
        with self._view:
            if self._experiment != experiment:
                return False
            self._halt, self._halt_filed = halt, False
            return True

    def _file(self, halt: Halt) -> None:
        try:
            self.files.end(halt)
        except OSError as error:
            self._trouble = f"the halt could not be written ({error}); it holds in this process only"
            _LOG.error("%s", self._trouble)

    def _keep(self, trial: Trial, verdict: Verdict, now_s: float) -> str:
        name = f"{trial.experiment.id}-{verdict.kind.lower()}-{int(now_s)}"
        try:
            return self.files.keep_record(name, trial.record(now_s))
        except OSError as error:
            _LOG.error("the record of the verdict could not be stored: %s", error)
            return ""

    def _report(self, change: ChangeKind, verdict: Verdict, trial: Trial, now_s: float, record: str = "") -> None:
        coverage = trial.experiment.coverage(now_s)
        detail = {"verdict": verdict.as_dict(), "coverage": coverage, "record": record}
        self._recorder.record(ExperimentEvent(trial.experiment.id, change, detail, at_s=now_s))

    def _failed(self, error: Exception, act: bool) -> None:
        self._failures += 1
        self._trouble = f"an interim analysis failed: {error}"
        _LOG.exception("an interim analysis failed (%d in a row)", self._failures)
        experiment = self._experiment
        if not act or experiment is None or self._failures < _FAILED_ANALYSES:
            return
        reason = f"ROLLBACK: the experiment could not be judged {self._failures} times in a row: {error}"
        halt = Halt(experiment.id, "ROLLBACK", self._clock(), reason)
        if self._halted(experiment, halt):
            self._file(halt)
            self._recorder.record(ExperimentEvent(experiment.id, "failed", {"reason": reason}, at_s=halt.at_s))


_ROLLOUTS: weakref.WeakSet[Rollout] = weakref.WeakSet()


def _run(rollout: weakref.ref[Rollout], stop: threading.Event) -> None:
    """Make analyses until asked to stop, or until the rollout is garbage-collected."""
    while not stop.wait(_ANALYSIS_S):
        living = rollout()
        if living is None:
            return
        try:
            living.analyse()
        except Exception:
            _LOG.exception("an interim analysis failed")
        del living


def _after_fork_in_child() -> None:
    for rollout in list(_ROLLOUTS):
        rollout._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def request_of(
    event: OutcomeEvent, experiment: Experiment, unit_key: Callable[[str], str] | None
) -> UnitRequest | None:
    """Return the request an outcome stands for in an experiment; None if it does not count.

    Where no answer came, none that can be used, or another model had to step in, the choice did not work. Raises
    `TypeError` or `ValueError` where a value is not a number."""
    arm = experiment.arm_of(event.variant)
    if arm is None or event.unit is None or event.pinned or event.cache_hit:
        return None
    eval_s, latency_s = _optional(event.eval_s), _optional(event.latency_s)
    tokens = _optional(event.output_tokens)
    return UnitRequest(
        decision_id=str(event.decision_id),
        unit=unit_key(event.unit) if unit_key else str(event.unit),
        arm=arm,
        at_s=_number(event.at_s),
        failure=None if event.success is None or not event.ok or event.invalid else 1.0 - _share(event.success),
        latency_s=latency_s,
        service_s=eval_s / tokens if eval_s and tokens else None,
        cost_usd=_optional(event.cost_usd),
        no_answer=not event.ok or event.fallback or event.invalid is not None,
        clarified=event.clarified,
    )


def _timely(event: Event, now_s: float) -> Event:
    """Return the event; one that a clock ahead of this one dated far in the future counts from its arrival."""
    ahead = isinstance(event.at_s, int | float) and event.at_s > now_s + _AHEAD_S
    return replace(event, at_s=now_s) if ahead else event


def _number(value: float) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return float(value)


def _optional(value: float | None) -> float | None:
    return None if value is None else _number(value)


def _share(value: float) -> float:
    return min(max(_number(value), 0.0), 1.0)


def open_rollout(
    state_dir: Path,
    *,
    recorder: Recorder | None = None,
    read_store: Callable[[], EventStore] | None = None,
) -> Rollout:
    """Return the rollout of a state folder; start its thread with `start()`.

    `recorder` takes its own events (verdicts); give it the same writer as the gateway. Where the key of keyed hashes
    cannot be read, only this process's outcomes count."""
    files = ExperimentState(state_dir / FOLDER)
    try:
        privacy = Privacy(load_key(state_dir))
    except StoreError as error:
        _LOG.warning("experiments see this process's outcomes only: %s", error)
        return Rollout(files, recorder=recorder)
    return Rollout(files, recorder=recorder, read_store=read_store, unit_key=privacy.digest)
