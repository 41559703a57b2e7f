"""What the serving router learns between two fits: each judged answer moves what is expected of its model at once.

A thread reads the event store on from where it was, and so counts what other processes answered and what was judged
elsewhere: by `router-ml feedback`, over HTTP, of a coordinator's decisions. No request waits for it. The place in the
store and what was learned up to there are kept in one file, so that nothing is counted twice after a restart.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from router_ml.arm import arm_key
from router_ml.decide.predictors.ability import Abilities
from router_ml.decide.reload import LiveRouter
from router_ml.decide.router import Judged, Router
from router_ml.errors import StoreError
from router_ml.events.event import DecisionEvent, Event, FeedbackEvent, OutcomeEvent, unserved_outcome
from router_ml.events.export import judged_outcome
from router_ml.events.judgement import RIGHT, Judgement, note_feedback, source_of
from router_ml.events.store import EventFilter, EventStore, Stored
from router_ml.files import atomic_write, read_regular, reason
from router_ml.periodic import Periodic
from router_ml.types import Outcome

log = logging.getLogger(__name__)

FILE = "abilities.json"
MAX_BYTES = 64 * 2**20
SAVE_S = 5.0  # between two writes of the file
_PAGE = 200  # events that are counted in one step
_KINDS = ("outcome", "feedback")


class Learned(NamedTuple):
    """What was learned, for which bundle, and up to which event of the store."""

    bundle: str = ""
    seq: int = 0
    abilities: Abilities | None = None


class OnlineLearner:
    """Counts judged answers for a router. Thread-safe.

    A new bundle that was fitted on outcomes begins with its own abilities and counts what was judged since; one
    without outcomes takes over what is known."""

    def __init__(
        self,
        router: LiveRouter | Router,
        read_store: Callable[[], EventStore],
        path: Path,
        every_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._live, self._read_store, self._path = router, read_store, path
        self._clock = clock
        self._known: Router | None = None  # the router that has what was learned
        self._learned = _read(path)
        self._saved, self._saved_s = self._learned, -math.inf
        self._store: EventStore | None = None
        self._renew()
        self._thread = Periodic(self._check_quietly, every_s, "router_ml-learner", forked=self._renew)
        self.adopt()

    def start(self) -> None:
        """Begin to look for judged answers every `every_s` seconds; 0 or less: never."""
        self._thread.start()

    def adopt(self) -> None:
        """Hand over what was learned to the router that serves now. Does nothing for the one that has it."""
        with self._lock:
            self._adopted()

    def check(self) -> int:
        """Count what was judged since the last look; return how many judgements were.

        Raises `StoreError` if the store cannot be read; the next look begins at the same place."""
        n = 0
        with self._lock:
            while (counted := self._step()) is not None:
                n += counted
            if self._clock() - self._saved_s >= SAVE_S:
                self._save()
        return n

    def close(self) -> None:
        """Count what is left, write the file and stop."""
        if self._thread.stopped:
            return
        self._thread.stop()
        self._check_quietly()
        with self._lock:
            self._save()
            self._drop_store()

    def _renew(self) -> None:
        self._lock = threading.Lock()  # a thread of the parent process may have held it

    def _check_quietly(self) -> None:
        try:
            self.check()
        except StoreError as error:  # there is none before the first event
            self._drop_store()
            log.debug("judged answers cannot be read: %s", error)
        except Exception:  # of whatever kind: requests are served on
            log.exception("judged answers are not counted")

    def _adopted(self) -> Router:
        router = self._live.router if isinstance(self._live, LiveRouter) else self._live
        if router is not self._known:
            learned = self._learned
            if learned.bundle != router.name and router.counted is not None:
                learned = Learned(seq=router.counted.seq)
            if learned.abilities is not None:
                router.abilities = learned.abilities
            self._learned = learned._replace(bundle=router.name)
            self._known = router
        return router

    def _step(self) -> int | None:
        """Count a few events; return how many judgements they held, None where there are no further events."""
        router = self._adopted()
        if self._store is None:
            self._store = self._read_store()
        seq, since_s = self._learned.seq, router.counted.until_s if router.counted else None
        if seq > self._store.last_seq():  # another store than before
            seq = 0
        rows = []
        place = seq
        for n, stored in enumerate(self._store.read(EventFilter(_KINDS, seq, since_s)), 1):
            place = stored.seq
            rows += _judged(self._store, stored)
            if n == _PAGE:
                break
        if place == seq:
            return None
        abilities = router.learn(rows) if rows else self._learned.abilities
        self._learned = Learned(router.name, place, abilities)
        return len(rows)

    def _save(self) -> None:
        learned = self._learned
        if learned.abilities is None or learned == self._saved:
            return
        self._saved_s = self._clock()
        row = {"format": 1, "bundle": learned.bundle, "seq": learned.seq, "abilities": learned.abilities.as_config()}
        try:
            atomic_write(self._path, json.dumps(row, allow_nan=False))
            self._saved = learned
        except (OSError, ValueError) as error:
            log.warning("what was learned of the models cannot be written to %s: %s", self._path, reason(error))

    def _drop_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _read(path: Path) -> Learned:
    """Return what the file holds, nothing where there is none or it cannot be read."""
    try:
        row: dict[str, Any] = json.loads(read_regular(path, MAX_BYTES))
        return Learned(str(row["bundle"]), int(row["seq"]), Abilities.from_config(row["abilities"]))
    except FileNotFoundError:
        return Learned()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read (%s); judged answers are counted anew", path, reason(error))
        return Learned()


def _judged(store: EventStore, stored: Stored) -> list[Judged]:
    """Return what an event adds to the judgement of its answer, and of one that a cascade did not serve.

    A later judgement that says the same counts with what it weighs more, one that says otherwise in full."""
    event = stored.event
    if not isinstance(event, FeedbackEvent) and not (isinstance(event, OutcomeEvent) and event.success is not None):
        return []
    history = [one for one in store.read(EventFilter(decision_id=event.decision_id)) if one.seq <= stored.seq]
    decision = next((one.event for one in history if isinstance(one.event, DecisionEvent)), None)
    if decision is None or decision.shadow or not decision.complexity_probabilities:
        return []
    before = _outcome(decision, (one.event for one in history if one.seq < stored.seq))
    after = _outcome(decision, (one.event for one in history))
    if after is None or after.success is None:
        return []
    same = before is not None and before.success is not None and (before.success < RIGHT) == (after.success < RIGHT)
    weight = after.weight - before.weight if before is not None and same else after.weight
    found = [Judged(decision, arm_key(after.model, after.think), after.success, weight)] if weight > 0 else []
    return found if before is not None and before.success is not None else [*found, *_unserved(decision, history)]


def _unserved(decision: DecisionEvent, history: Iterable[Stored]) -> list[Judged]:
    """Return the answer that was not served, with its probability of being right, once the served one is judged: else
    only the likeliest answers of a model would count."""
    outcomes = (unserved_outcome(one.event) for one in history if isinstance(one.event, OutcomeEvent))
    return [
        Judged(decision, arm_key(one.model, one.think), one.success)
        for one in outcomes
        if one is not None and one.success is not None
    ]


def _outcome(decision: DecisionEvent, events: Iterable[Event]) -> Outcome | None:
    """Return the judged outcome of a decision; None where no model answered, or nobody judged it.

    A one-sided sign judges nothing here: a model that is given no other would only ever be seen to fail, and sink until
    it was never asked again. The fits weigh such signs beside the model's other judgements."""
    judged: dict[str, Judgement] = {}
    found: OutcomeEvent | None = None
    for event in events:
        if isinstance(event, FeedbackEvent):
            note_feedback(judged, event)
        elif isinstance(event, OutcomeEvent):
            found = event
    if found is None:  # a coordinator decides, and calls the model itself
        think = decision.candidates[0].think if decision.candidates else None
        found = OutcomeEvent(decision.decision_id, decision.model, None, None, think=think,
                             clarified=decision.action == "clarify")  # fmt: skip
    if found.clarified or found.cache_hit or not found.ok:
        return None
    outcome = judged_outcome(found, judged)
    one_sided = outcome.judged_by is not None and not source_of(outcome.judged_by).two_sided
    return None if outcome.success is None or one_sided else outcome
