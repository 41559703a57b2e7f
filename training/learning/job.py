"""The steps of `training.learn`, each written down once it is done: collect, fit, gate, register, try.

A run that was killed goes on after its last step: the bundle is published whole or not at all, a registered version and
an experiment are found again by their names, and the watermark moves last.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from router_ml.bundles.format import Bundle, load_bundle
from router_ml.bundles.registry import active_bundle, promote, registry_folder
from router_ml.decide.router import Router
from router_ml.engines.engine import Engine
from router_ml.errors import BundleError, StoreError
from router_ml.events.connect import settings_store
from router_ml.events.event import AlertEvent, ExperimentEvent
from router_ml.events.store import DATABASE, EventFilter, EventStore
from router_ml.experiments.experiment import Experiment, RampStep, Variant, experiment_row
from router_ml.experiments.rollout import FOLDER, Rollout
from router_ml.experiments.state import ExperimentState
from router_ml.files import file_lock, reason
from router_ml.settings import Settings
from training.fit import FitJob, fit
from training.learning.gate import Gate, GateVerdict, offpolicy_gate
from training.learning.policy import LearnPolicy, Then
from training.learning.rows import LearningRows, collect, encoder_note
from training.learning.state import LearnJob, LearnState, Running, read_state, write_state
from training.outcomes.table import MIN_QUERIES
from training.tracking.tracker import FITS, DataFile, Tracker, registered_version, set_champion, tracked

LEARN_FOLDER, STATE_FILE = "learn", "state.json"
DONE, NOTHING_TO_LEARN, A_PERSON_MUST_ACT = 0, 3, 4  # exit codes
TUNED_ROWS = 1_000  # from so many judged answers the fit tries several settings
HOW_TO_JUDGE = (
    "Judge answers with gateway.feedback(decision_id, score), 'router-ml feedback ID up', or POST /feedback; "
    "ROUTER_ML_JUDGE=MODEL has a local model judge a sample"
)


def firing(store: EventStore) -> list[AlertEvent]:
    """Return the alerts that fire now, each with its advice, which says whether a fit would help."""
    events = (stored.event for stored in store.read(EventFilter(kinds=("alert",))))
    latest = {(event.rule, event.subject): event for event in events if isinstance(event, AlertEvent)}
    return [alert for alert in latest.values() if alert.state == "firing"]


@dataclass
class Learning:
    """One run of the job. `gate`, `clock` and `say` can be replaced; nothing is written where `dry` is set."""

    settings: Settings
    policy: LearnPolicy
    dry: bool = False
    quiet: bool = False
    engine: Engine | None = None  # computes vectors; None: threads of this process
    gate: Gate = offpolicy_gate
    clock: Callable[[], float] = time.time
    say: Callable[[str], None] = print

    def run(self) -> int:
        """Go on where the last run stood; return the exit code. Raises `RouterError`."""
        if self.dry:
            return self._run()
        lock = self._folder / ".lock"
        with ExitStack() as held:
            try:
                held.enter_context(file_lock(lock, wait=False))
            except BlockingIOError as error:
                raise StoreError(f"{lock} is held: another run of training.learn is under way") from error
            except OSError as error:
                raise StoreError(f"cannot write {self._folder}: {reason(error)}; check its permissions") from error
            return self._run()

    def _run(self) -> int:
        self._state = read_state(self._folder / STATE_FILE)
        self.say(f"bundles: {self._registry}; serving: {self._active.name}")
        if self._state.running is not None and (code := self._try_on(self._state.running)) is not None:
            return code
        if self._state.job is None and (code := self._begin()) is not None:
            return code
        return DONE if self.dry else self._challenge()

    @property
    def _folder(self) -> Path:
        return self.settings.state_dir / LEARN_FOLDER

    @functools.cached_property
    def _registry(self) -> Path:
        return registry_folder(self.settings)

    @functools.cached_property
    def _active(self) -> Bundle:
        return load_bundle(active_bundle(self.settings))

    @functools.cached_property
    def _store(self) -> EventStore:
        return settings_store(self.settings, read_only=self.dry)

    @functools.cached_property
    def _rows(self) -> LearningRows:
        return collect(self._store, self._active, self.policy, self._state.watermark, self.engine)

    @property
    def _experiments(self) -> ExperimentState:
        return ExperimentState(self.settings.state_dir / FOLDER)

    def _save(self, state: LearnState) -> None:
        self._state = state
        write_state(self._folder / STATE_FILE, state)

    # -- collect --------------------------------------------------------------------------------------------------

    def _begin(self) -> int | None:
        """Begin a job where enough was judged; return an exit code where not."""
        if self.settings.events is None and not (self.settings.state_dir / DATABASE).exists():
            self.say(
                f"nothing to learn yet: nothing was recorded in {self.settings.state_dir}; a gateway, a node "
                "or router-ml serve records there, with ROUTER_ML_KEEP=features what can be learned from"
            )
            return NOTHING_TO_LEARN
        for alert in firing(self._store):
            self.say(f"alert {alert.rule} ({alert.subject}): {alert.summary}. {alert.advice}")
        rows = self._rows
        if note := encoder_note(self._active.path, rows):
            self.say(note)
        if missing := self._missing(rows):
            self.say(f"nothing to learn yet: {missing}. {HOW_TO_JUDGE}.")
            return NOTHING_TO_LEARN
        job = LearnJob(f"learned-{rows.until_seq}-{rows.sha256[:6]}", rows.until_seq, rows.train.judged, rows.sha256)
        self.say(
            f"{'would learn' if self.dry else 'learning'} {job.bundle} from {rows.train.judged} judged answers "
            f"({rows.new_judged} new) of {_day(rows.from_s)} to {_day(rows.until_s)}; "
            f"{rows.held_out.judged} more are kept out for the gate"
        )
        if self.dry:
            self.say(
                "would judge it on them and register it in MLflow; then, if it is better or not worse: "
                f"{self.policy.then}; if the gate cannot tell: {self.policy.on_cannot_tell}; if it is worse: nothing"
            )
        else:
            self._save(replace(self._state, job=job))
        return None

    def _missing(self, rows: LearningRows) -> str:
        """Return what is missing before a challenger can be learned, or ""."""
        if rows.new_judged < self.policy.min_judged:
            new, least = rows.new_judged, self.policy.min_judged
            return f"{least - new} judged answers are missing ({new} of {least} since the last time)"
        if rows.train.judged < MIN_QUERIES:
            return f"{MIN_QUERIES - rows.train.judged} judged answers are missing beside those kept out for the gate"
        return ""

    # -- fit, gate, register --------------------------------------------------------------------------------------

    def _challenge(self) -> int:
        job = self._job()
        if not job.registered:
            name = f"{job.judged} judged answers up to event {job.until_seq}"
            with tracked(FITS, name, f"{name}: not finished") as tracker:
                self._link(tracker, job)
                folder = self._fitted(job, tracker)
                verdict = self._gated(folder)
                self._register(folder, verdict, tracker)
        return self._try()

    def _job(self) -> LearnJob:
        assert self._state.job is not None, "no job was begun"
        return self._state.job

    def _link(self, tracker: Tracker, job: LearnJob) -> None:
        rows = self._rows
        window = {
            "learn.after_event": str(self._state.watermark), "learn.until_event": str(job.until_seq),
            "learn.from": _day(rows.from_s), "learn.until": _day(rows.until_s), "learn.data_sha256": job.sha256,
            "learn.judged": str(job.judged), "learn.serving": self._active.name, "bundle": job.bundle,
        }  # fmt: skip
        tracker.tags(window)
        place = (
            Path(self.settings.events or self.settings.state_dir) if "://" not in (self.settings.events or "") else None
        )
        if place is not None:
            tracker.data([DataFile("events", place, job.sha256, len(rows.train.outcomes))])

    def _fitted(self, job: LearnJob, tracker: Tracker) -> Path:
        folder = self._registry / job.bundle
        try:
            load_bundle(folder)
            return folder
        except BundleError:  # not there yet, or not whole
            pass
        rows = self._rows.train
        fitting = FitJob(
            queries=rows.queries,
            outcomes=rows.outcomes,
            catalogue=Router.load(self._active.path, settings=self.settings).catalogue,
            models_dir=self._registry,
            name=job.bundle,
            data_sha256=job.sha256,
            seed=self.policy.seed,
            tune=job.judged >= TUNED_ROWS,
            progress=not self.quiet,
            given={"outcomes": len(rows.outcomes), "judged": rows.judged, "events": job.until_seq},
            features=rows.features,
            base=self._active.path,
            register=False,
            show=False,
        )
        return fit(fitting, tracker)[0]

    def _gated(self, folder: Path) -> GateVerdict:
        rows = self._rows
        found = self.gate(folder, rows.logged, rows.held_out.features, seed=self.policy.seed)
        self._save(replace(self._state, job=replace(self._job(), verdict=found.word, why=found.why)))
        return found

    def _register(self, folder: Path, verdict: GateVerdict, tracker: Tracker) -> None:
        job = self._job()
        tracker.metrics({f"gate/{name}": value for name, value in verdict.numbers.items()})
        tracker.tags({"gate.verdict": verdict.word, "gate.why": verdict.why[:5000]})
        if registered_version(job.bundle) is None:
            metrics = load_bundle(folder).manifest.get("metrics", {})
            note = f"learned from {job.judged} judged answers; offline gate: {verdict.word}"
            tracker.describe(f"traffic, {job.judged} judged answers, gate: {verdict.word}", f"{note}\n\n{verdict.why}")
            tracker.register(folder, note, metrics, challenger=verdict.word != "worse")
        self._save(replace(self._state, job=replace(job, registered=True)))

    # -- try ------------------------------------------------------------------------------------------------------

    def _try(self) -> int:
        """Start the experiment that the policy wants after the gate's verdict, and end the job."""
        job = self._job()
        self.say(f"{job.bundle}: {job.verdict}. {job.why}")
        wanted: Then = self.policy.on_cannot_tell if job.verdict == "cannot tell" else self.policy.then
        if job.verdict == "worse" or wanted == "nothing":
            self._finish(None)
            if job.verdict != "worse":
                self.say(f"to serve it: router-ml promote {job.bundle}")
            return DONE
        shadow = wanted == "shadow" or self.policy.shadow_hours > 0
        running = self._start(job.bundle, "shadow" if shadow else "live")
        if running is None:
            return A_PERSON_MUST_ACT
        self._finish(running)
        return DONE

    def _finish(self, running: Running | None) -> None:
        job, now = self._job(), _stamp(self.clock())
        note = {"bundle": job.bundle, "at": now, "judged": job.judged, "verdict": job.verdict}
        state = self._state.noted(**note, tried=running.mode if running else "nothing")
        self._save(replace(state, watermark=job.until_seq, job=None, running=running))

    def _start(self, bundle: str, mode: str) -> Running | None:
        """Start an experiment, or find it running; None where another one is in the way."""
        name, files = f"{bundle}-{mode}", self._experiments
        running, halt = files.active(), files.halt()
        if halt is not None or (running is not None and running.id != name):
            what = f"{halt.experiment} was halted ({halt.kind})" if halt else f"{running.id if running else ''} runs"
            self.say(f"{bundle} waits: experiment {what}; see 'router-ml experiment status'")
            return None
        if running is None:
            experiment = self._experiment(name, bundle, mode)
            files.start(experiment)
            self._note_event(experiment)
        self.say(f"{bundle} runs {'in shadow' if mode == 'shadow' else 'against what serves'} as {name}; "
                 "see 'router-ml experiment status'")  # fmt: skip
        return Running(bundle, name, mode, running.started_s if running else self.clock())

    def _experiment(self, name: str, bundle: str, mode: str) -> Experiment:
        return Experiment(
            id=name,
            control=Variant("control"),
            challenger=Variant("challenger", bundle=str(self._registry / bundle)),
            started_s=self.clock(),
            ramp=(RampStep(0.0, self.policy.coverage),),
            mode="shadow" if mode == "shadow" else "live",
            unit=self.policy.unit,
            limits=self.policy.limits,
            hypothesis=f"{bundle}, learned from traffic, is no worse than {self._active.name}",
            owner="training.learn",
        )

    def _note_event(self, experiment: Experiment) -> None:
        try:
            detail = {"experiment": experiment_row(experiment)}
            self._store.append([ExperimentEvent(experiment.id, "started", detail, at_s=self.clock())])
        except StoreError as error:  # the state files count
            self.say(f"the start is not in the event store: {error}")

    # -- after the start ------------------------------------------------------------------------------------------

    def _try_on(self, running: Running) -> int | None:
        """Go on with the challenger that is being tried; None where it came to an end and the next may be learned."""
        files = self._experiments
        active, halt = files.active(), files.halt()
        if halt is not None and halt.experiment == running.experiment:
            self.say(f"{halt.reason} Acknowledge it with 'router-ml experiment clear'; then the next one is learned.")
            return A_PERSON_MUST_ACT
        if active is None or active.id != running.experiment:
            self.say(f"{running.experiment} was ended")
            if not self.dry:
                self._save(replace(self._state.noted(bundle=running.bundle, ended="by a person"), running=None))
            return None
        hours = (self.clock() - running.started_s) / 3600
        if running.mode == "shadow":
            return self._shadowed(running, hours)
        watch = Rollout(files, read_store=functools.partial(settings_store, self.settings), clock=self.clock)
        verdict = watch.analyse(act=False)
        watch.close()
        if verdict is None or verdict.kind != "SHIP":
            self.say(f"{running.experiment}: {verdict.summary if verdict else 'no interim analysis yet'}")
            return DONE
        return self._ship(running, verdict.summary)

    def _shadowed(self, running: Running, hours: float) -> int | None:
        if self.policy.then != "ab" or hours < self.policy.shadow_hours:
            self.say(f"{running.bundle} has been in shadow for {hours:.1f} hours; compare with 'router-ml experiment "
                     "status', then 'router-ml experiment stop', and promote it or not")  # fmt: skip
            return DONE
        self.say(f"{running.bundle} was in shadow for {hours:.1f} hours; the A/B begins")
        if self.dry:
            return DONE
        self._experiments.stop()
        begun = self._start(running.bundle, "live")
        self._save(replace(self._state, running=begun))
        return DONE

    def _ship(self, running: Running, summary: str) -> int:
        self.say(summary)
        if not self.policy.auto_promote:
            self.say(f"to serve it: router-ml experiment stop; router-ml promote {running.bundle}")
            return A_PERSON_MUST_ACT
        if self.dry:
            self.say(f"would promote {running.bundle}")
            return DONE
        promote(self._registry, running.bundle, Router.load)
        set_champion(running.bundle)
        self._experiments.stop()
        self._save(replace(self._state.noted(bundle=running.bundle, ended="promoted"), running=None))
        self.say(f"active: {running.bundle} in {self._registry}; 'router-ml rollback' undoes it")
        return DONE


def _stamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def _day(at_s: float) -> str:
    return _stamp(at_s)[:16] if at_s else "-"
