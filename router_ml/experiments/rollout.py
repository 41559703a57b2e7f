"""Who gets what, and since when: assigns units to the running experiment, watches it, and ends it when it does harm.

The only code that changes what an experiment serves. A rollback takes effect in memory first, then in the latch file
that all processes watch, then in the event store; each of the later ones may fail without undoing the earlier. Looks
are taken by a thread, and by the request path itself should that thread be dead.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
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
from router_ml.events.privacy import Privacy, load_key
from router_ml.events.store import EventFilter, EventStore
from router_ml.experiments.assignment import Assignment, assign
from router_ml.experiments.experiment import Experiment
from router_ml.experiments.state import ExperimentState, Halt, Signature
from router_ml.experiments.trial import Trial
from router_ml.experiments.unit import UnitRequest
from router_ml.experiments.verdict import Verdict
from router_ml.types import Context

_LOG = logging.getLogger("router_ml.experiments.rollout")

FOLDER = "experiments"
_REFRESH_S = 0.5  # how old the view of the board's files may be
_LOOK_S = 0.25  # between looks of the thread
_STALE_S = 1.0  # after so long without a look the request path takes one
_PATIENCE_S = 1.0  # how long an outcome may take through the store before memory's copy is used
_INBOX = 50_000
_FAILED_LOOKS = 5  # in a row: then the experiment cannot be judged, and must not go on
_PLOT_STEP = 1.05  # a look is written down whenever the units have grown by this factor


@dataclass(frozen=True, slots=True)
class RolloutState:
    """What is served right now."""

    experiment: Experiment | None
    latch: Halt | None
    verdict: Verdict | None
    coverage: float
    looks: int
    trouble: str | None  # why the last look failed


class Rollout:
    """Assigns, records and judges one experiment. Thread-safe; as a `Recorder` it neither blocks nor raises.

    `read_store` opens the event store for reading, so that outcomes of other processes count too and a restart
    forgets nothing; without it this process's outcomes are all there is. `unit_key` must be the store's keyed hash."""

    def __init__(
        self,
        board: ExperimentState,
        *,
        recorder: Recorder | None = None,
        read_store: Callable[[], EventStore] | None = None,
        unit_key: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self._recorder = recorder or NullRecorder()
        self._read_store = read_store
        self._unit_key = unit_key or (lambda unit: unit)
        self._clock, self._monotonic = clock, monotonic
        self._view = threading.Lock()  # guards what is served; held for two `stat` calls at most
        self._lock = threading.RLock()  # guards the looks; may be held while a restart reads the store
        self._inbox: deque[tuple[float, Event]] = deque(maxlen=_INBOX)
        self._signature: Signature | None = None
        self._checked_s = float("-inf")
        self._looked_s = monotonic()
        self._experiment: Experiment | None = None
        self._latch: Halt | None = None
        self._latch_filed = False
        self._trial: Trial | None = None
        self._verdict: Verdict | None = None
        self._store: EventStore | None = None
        self._seq = 0
        self._looks = self._failures = 0
        self._trouble: str | None = None
        self._told: tuple[str, int, float] = ("", 0, -1.0)  # verdict, units and coverage last written down
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._refresh()

    def assign(self, unit: str, context: Context | None = None) -> Assignment | None:
        """What a unit (a session, or a request) gets, or None for what runs today. Takes some ten microseconds."""
        if self._monotonic() - self._checked_s > _REFRESH_S:
            self._refresh()
        experiment = self._experiment
        if experiment is None or self._latch is not None:
            return None
        # Where requests are the units, those of one session must not stick together.
        return assign(experiment, new_id() if experiment.unit == "request" else unit, self._clock())

    def record(self, event: Event) -> None:
        """Take an outcome or feedback of the running experiment; everything else is let go."""
        experiment = self._experiment
        if experiment is None or self._latch is not None:
            return
        if isinstance(event, OutcomeEvent):
            if event.experiment != experiment.id or event.pinned or event.cache_hit:
                return
        elif not isinstance(event, FeedbackEvent):
            return
        now = self._monotonic()
        self._inbox.append((now, event))
        if now - self._looked_s > _STALE_S:
            self._look_from_request()

    def start(self) -> None:
        """Take looks from a thread from now on."""
        if self._thread is None or not self._thread.is_alive():
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, name="router-ml-rollout", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop the thread and give back the store."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(5.0)
        with self._lock:
            self._drop_store()

    def state(self) -> RolloutState:
        """What is served right now, and what is known of it."""
        experiment, latch = self._experiment, self._latch
        coverage = 0.0 if experiment is None or latch else experiment.coverage(self._clock())
        return RolloutState(experiment, latch, self._verdict, coverage, self._looks, self._trouble)

    def look(self, *, act: bool = True) -> Verdict | None:
        """Judge the running experiment and, with `act`, end it where the verdict says so; None where none runs."""
        with self._lock:
            self._refresh()
            self._looked_s = self._monotonic()
            trial = self._trial_of(self._experiment)
            if trial is None or (self._latch is not None and act):
                return self._verdict
            try:
                self._gather(trial)
                verdict = trial.look(self._clock())
            except Exception as error:  # whatever it is, an experiment nobody can judge must not go on for long
                self._failed(error, act)
                return self._verdict
            self._failures, self._trouble = 0, None
            self._looks += 1
            self._verdict = verdict
            if act:
                self._act(trial, verdict)
            return verdict

    def record_text(self) -> str | None:
        """The record of the verdict as of now (see `verdict_record`), or None where nothing runs."""
        with self._lock:
            trial = self._trial_of(self._experiment)
            return None if trial is None else trial.record(self._clock())

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                self.look()
            except Exception:
                _LOG.exception("a look failed")

    def _look_from_request(self) -> None:
        if not self._lock.acquire(blocking=False):
            return  # somebody else is looking
        try:
            self.look()
        except Exception:
            _LOG.exception("a look failed")
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        """See what the board says; a file that cannot be understood ends the experiment here."""
        with self._view:
            self._checked_s = self._monotonic()
            signature = self.board.signature()
            if signature == self._signature:
                return
            self._signature = signature
            latch = self.board.latch()
            try:
                experiment = self.board.active()
            except ExperimentError as error:
                _LOG.error("no experiment is served: %s", error)
                experiment = None
            same = experiment is not None and experiment == self._experiment
            if same and latch is None and self._latch is not None and not self._latch_filed:
                return  # we ended it, and the file of the latch could not be written; memory keeps it
            self._experiment, self._latch, self._latch_filed = experiment, latch, latch is not None

    def _trial_of(self, experiment: Experiment | None) -> Trial | None:
        """The trial of what runs, begun anew where that has changed."""
        known = self._trial.experiment if self._trial else None
        if experiment != known:
            self._trial = None if experiment is None else Trial(experiment)
            self._verdict, self._seq, self._looks, self._failures = None, 0, 0, 0
            self._told = ("", 0, -1.0)
        return self._trial

    def _gather(self, trial: Trial) -> None:
        """New outcomes: from the store where it answers, else from memory. Known ones are not counted again."""
        reached = self._gather_from_store(trial)
        patience_s = _PATIENCE_S if reached else 0.0
        now = self._monotonic()
        while self._inbox and now - self._inbox[0][0] >= patience_s:
            _, event = self._inbox.popleft()
            self._take(trial, event, hashed=False)

    def _gather_from_store(self, trial: Trial) -> bool:
        if self._read_store is None:
            return False
        try:
            if self._store is None:
                self._store = self._read_store()
            selection = EventFilter(
                ("outcome", "feedback"), after_seq=self._seq, since_s=None if self._seq else trial.experiment.started_s
            )
            for seq, event in self._store.read(selection):
                self._take(trial, event, hashed=True)
                self._seq = seq
        except StoreError as error:
            self._trouble = str(error)
            self._drop_store()
            return False
        return True

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _take(self, trial: Trial, event: Event, *, hashed: bool) -> None:
        if isinstance(event, FeedbackEvent):
            trial.judge_request(event.decision_id, 1.0 - event.score)
        elif isinstance(event, OutcomeEvent) and event.experiment == trial.experiment.id:
            request = request_of(event, trial.experiment, self._unit_key if not hashed else None)
            if request is not None and event.at_s >= trial.experiment.started_s:
                trial.add(request)

    def _act(self, trial: Trial, verdict: Verdict) -> None:
        told, units, coverage = self._told
        n, now_coverage = trial.evidence.n, trial.experiment.coverage(self._clock())
        if verdict.ends:
            self._end(trial, verdict)
        elif verdict.kind == "SHIP" and told != "SHIP":
            self._tell("shipped", verdict, trial, self._keep(trial, verdict))
        elif n >= max(units * _PLOT_STEP, units + 10):
            self._tell("look", verdict, trial)
        elif now_coverage != coverage:
            self._tell("ramped", verdict, trial)
        else:
            return
        # A recommendation is given once: evidence that wavers around it does not make it news again.
        self._told = ("SHIP" if told == "SHIP" else verdict.kind, n, now_coverage)

    def _end(self, trial: Trial, verdict: Verdict) -> None:
        at_s, reason = self._clock(), verdict.summary
        if not self._latched(trial.experiment, verdict.kind, at_s, reason):
            return
        _LOG.error("%s Everybody gets what ran before, until 'router-ml experiment clear'.", reason)
        record = self._keep(trial, verdict)
        self._file(Halt(trial.experiment.id, verdict.kind, at_s, reason, record))
        self._tell("invalid" if verdict.kind == "INVALID" else "rolled_back", verdict, trial, record)

    def _latched(self, experiment: Experiment, kind: str, at_s: float, reason: str) -> bool:
        """Stop serving the experiment, in memory; False where another one runs by now."""
        with self._view:
            if self._experiment != experiment:
                return False
            self._latch, self._latch_filed = Halt(experiment.id, kind, at_s, reason), False
            return True

    def _file(self, latch: Halt) -> None:
        try:
            self.board.end(latch)
        except OSError as error:
            self._trouble = f"the latch could not be written ({error}); it holds in this process only"
            _LOG.error("%s", self._trouble)

    def _keep(self, trial: Trial, verdict: Verdict) -> str:
        now_s = self._clock()
        try:
            return self.board.keep_record(
                f"{trial.experiment.id}-{verdict.kind.lower()}-{int(now_s)}", trial.record(now_s)
            )
        except OSError as error:
            _LOG.error("the record of the verdict could not be kept: %s", error)
            return ""

    def _tell(self, change: ChangeKind, verdict: Verdict, trial: Trial, record: str = "") -> None:
        detail = {
            "verdict": verdict.as_dict(),
            "coverage": trial.experiment.coverage(self._clock()),
            "record": record,
        }
        self._recorder.record(ExperimentEvent(trial.experiment.id, change, detail, at_s=self._clock()))

    def _failed(self, error: Exception, act: bool) -> None:
        self._failures += 1
        self._trouble = f"a look failed: {error}"
        _LOG.exception("a look failed (%d in a row)", self._failures)
        experiment = self._experiment
        if not act or experiment is None or self._failures < _FAILED_LOOKS:
            return
        reason = f"ROLLBACK: the experiment could not be judged {self._failures} times in a row: {error}"
        if not self._latched(experiment, "ROLLBACK", self._clock(), reason):
            return
        self._file(Halt(experiment.id, "ROLLBACK", self._clock(), reason))
        self._recorder.record(ExperimentEvent(experiment.id, "failed", {"reason": reason}, at_s=self._clock()))


def request_of(
    event: OutcomeEvent, experiment: Experiment, unit_key: Callable[[str], str] | None
) -> UnitRequest | None:
    """The request an outcome stands for in an experiment; None where it does not count.

    Where nobody knows whether the answer was right, it failed if none came or if another model had to step in: then
    the choice of the variant did not work."""
    arm = experiment.arm_of(event.variant)
    if arm is None or event.unit is None or event.pinned or event.cache_hit:
        return None
    known = event.success if event.success is not None else float(event.ok and not event.fallback)
    service_s = event.eval_s / event.output_tokens if event.eval_s and event.output_tokens else None
    return UnitRequest(
        decision_id=event.decision_id,
        unit=unit_key(event.unit) if unit_key else event.unit,
        arm=arm,
        at_s=event.at_s,
        failure=1.0 - known,
        latency_s=event.latency_s,
        service_s=service_s,
        cost_usd=event.cost_usd,
    )


def open_rollout(
    state_dir: Path,
    *,
    recorder: Recorder | None = None,
    read_store: Callable[[], EventStore] | None = None,
) -> Rollout:
    """The rollout of a state folder; start its thread with `start()`.

    `recorder` takes its own events (verdicts); give it the same writer as the gateway. Where the key of keyed hashes
    cannot be read, only this process's outcomes count."""
    try:
        privacy = Privacy(load_key(state_dir))
    except StoreError as error:
        _LOG.warning("experiments see this process's outcomes only: %s", error)
        return Rollout(ExperimentState(state_dir / FOLDER), recorder=recorder)
    return Rollout(
        ExperimentState(state_dir / FOLDER), recorder=recorder, read_store=read_store, unit_key=privacy.digest
    )
