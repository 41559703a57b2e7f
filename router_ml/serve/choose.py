"""Which model a request goes to first, and the order of the others."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from cachetools import LRUCache

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.errors import DeadlineExceeded, InputError
from router_ml.experiments.assignment import Assignment
from router_ml.experiments.experiment import Variant
from router_ml.hosts.names import ModelNames
from router_ml.serve.answer import Answer
from router_ml.serve.order import pin, plain_decision, stick
from router_ml.serve.request_state import RequestState
from router_ml.serve.turn import Turns
from router_ml.types import Context, Decision, MachineState

log = logging.getLogger(__name__)

Assigner = Callable[[str, Context], Assignment | None]

_SESSIONS = 10_000  # sessions whose last model is remembered


class Decider(Protocol):
    """What chooses: a `Router`, or anything that decides as one does."""

    def decide(
        self,
        query: str,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Choose a model for one query."""


class Chooser:
    """Assigns and decides. Nothing that breaks in here costs an answer."""

    def __init__(
        self,
        decider: Decider,
        catalogue: Catalogue,
        names: ModelNames,
        *,
        assigner: Assigner | None,
        decider_of: Callable[[str], Decider] | None,
        stick_margin: float | None,
        clock: Callable[[], float],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._decider, self._decider_of, self._assigner = decider, decider_of, assigner
        self._catalogue, self._names = catalogue, names
        self._stick_margin = stick_margin
        self._clock = clock
        self._pool = pool
        self._sessions: LRUCache[str, str] = LRUCache(_SESSIONS)
        self._turns = Turns(clock)

    async def choose(self, job: RequestState, machine: MachineState) -> None:
        """Fills in the job's assignment and decision.

        Raises `InputError` for a request that cannot be decided on, and `DeadlineExceeded`."""
        began_s = self._clock()
        session = job.context.session_id
        turn = self._turns.find(job)
        job.assignment = self._assign(session or (turn and turn.unit) or uuid.uuid4().hex, job.context)
        work = functools.partial(self._decide, job, machine)
        deciding = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            async with asyncio.timeout(max(0.0, job.deadline_s - began_s)):
                decision = await deciding
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before a model was chosen") from None
        if turn is not None and job.model is None:
            decision = self._continued(decision, turn.model)
        elif session is not None and job.model is None:
            decision = stick(decision, self._sessions.get(session), self._stick_margin, self._names)
        job.decision = decision
        job.decide_s = self._clock() - began_s

    def answered(self, job: RequestState, answer: Answer) -> None:
        """Note which model a session spoke with last, and which one asked for a tool."""
        self._turns.answered(job, answer)
        if job.context.session_id is not None:
            self._sessions[job.context.session_id] = answer.model

    def _continued(self, decision: Decision, model: str) -> Decision:
        """Return the decision with the model that asked for the tool in front, where it may serve the request."""
        if not any(self._names.same(candidate.model, model) for candidate in decision.ranked):
            return decision
        return pin(decision, model, self._names, "asked for the tool whose result this is")

    def shadow(self, job: RequestState, machine: MachineState) -> Decision | None:
        """What the challenger of a shadow experiment would have chosen; None where there is none or it fails."""
        variant = job.assignment.shadow if job.assignment else None
        if variant is None:
            return None
        try:
            return self._by_variant(job, machine, variant)
        except Exception as error:
            log.warning("the shadow could not decide: %s", error)
            return None

    def _assign(self, unit: str, context: Context) -> Assignment | None:
        if self._assigner is None:
            return None
        try:
            return self._assigner(unit, context)
        except Exception as error:
            log.warning("no experiment for this request: %s", error)
            return None

    def _decide(self, job: RequestState, machine: MachineState) -> Decision:
        if job.assignment is not None:
            try:
                return self._named(job, self._by_variant(job, machine, job.assignment.variant))
            except InputError:
                raise
            except Exception as error:
                log.warning("the variant cannot be served, nobody is assigned: %s", error)
                job.assignment = None
        return self._named(job, self._by_default(job, machine))

    def _by_variant(self, job: RequestState, machine: MachineState, variant: Variant) -> Decision:
        decider = self._decider
        if variant.bundle and self._decider_of is not None:
            decider = self._decider_of(variant.bundle)
        policy = variant.policy or job.policy
        decision = decider.decide(job.request.text, job.context, policy, machine, variant=variant.name)
        return pin(decision, variant.model, self._names) if variant.model else decision

    def _by_default(self, job: RequestState, machine: MachineState) -> Decision:
        try:
            return self._decider.decide(job.request.text, job.context, job.policy, machine)
        except InputError:
            raise
        except Exception as error:  # whatever the decider is, the request goes on
            log.warning("the decider failed, routing plainly: %s", error)
            why = f"the decider failed ({type(error).__name__}); the catalogue's order stands in"
            return plain_decision(self._catalogue, job.policy_name, why)

    def _named(self, job: RequestState, decision: Decision) -> Decision:
        return pin(decision, job.model, self._names) if job.model else decision
