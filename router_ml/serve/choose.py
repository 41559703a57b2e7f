"""Which model a request goes to first, and the order of the others."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias

from cachetools import LRUCache

from router_ml.decide.selection.policy import Policy, resolve_policy
from router_ml.errors import DeadlineExceeded, InputError, PolicyError
from router_ml.experiments.assignment import Assignment
from router_ml.experiments.experiment import Variant
from router_ml.hosts.fleet import Fleet
from router_ml.serve.answer import Answer
from router_ml.serve.order import pin, plain_decision, restrict, stick, unexplored
from router_ml.serve.request import ChatRequest
from router_ml.serve.request_state import RequestState
from router_ml.serve.turn import ToolLoops
from router_ml.shared_state.local import LocalState
from router_ml.shared_state.state import SharedState
from router_ml.types import Context, Decision, MachineState, Think

log = logging.getLogger(__name__)

Arm: TypeAlias = tuple[str, Think | None]  # a model, and how it is asked
Assigner = Callable[[str, Context], Assignment | None]

_SESSIONS = 10_000  # sessions whose last draw is remembered


class Decider(Protocol):
    """A `Router`, or any object with the same `decide` method.

    One that caches the features of a query may also have `remembers(query, context) -> bool`: where that is true it
    decides in microseconds, and the gateway asks it without a hand-over to another thread."""

    def decide(
        self,
        query: str,
        context: Context | Mapping[str, Any] | None = None,
        policy: Policy | str = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        """Choose a model for one query."""


class DecisionStep:
    """Assigns a request to a variant and decides. Nothing that fails in here costs an answer."""

    def __init__(
        self,
        decider: Decider,
        fleet: Fleet,
        *,
        assigner: Assigner | None,
        decider_of: Callable[[str], Decider] | None,
        stick_margin: float | None,
        clock: Callable[[], float],
        pool: ThreadPoolExecutor,
        shared: SharedState | None = None,
    ) -> None:
        self._decider, self._decider_of, self._assigner = decider, decider_of, assigner
        self._fleet, self._names = fleet, fleet.names
        self._stick_margin = stick_margin
        self._clock = clock
        self._pool = pool
        self._shared = shared or LocalState()
        self._drawn: LRUCache[str, tuple[str, Arm | None]] = LRUCache(_SESSIONS)  # the turn last drawn for, and its arm
        self._tool_loops = ToolLoops(clock)

    def assign(self, state: RequestState) -> None:
        """Set which variant of a running experiment the request gets, if any."""
        if self._assigner is not None:
            turn = self._tool_loops.find(state)
            unit = state.context.session_id or (turn and turn.unit) or uuid.uuid4().hex
            try:
                state.assignment = self._assigner(unit, state.context)
            except Exception as error:
                log.warning("no experiment for this request: %s", error)

    async def decide(self, state: RequestState, machine: MachineState) -> None:
        """Set the decision of a request.

        Raises `InputError` for a request that cannot be decided on, and `DeadlineExceeded`."""
        began_s = self._clock()
        turn = self._tool_loops.find(state)
        if self._remembers(state):
            decision = self._decide(state, machine)
        else:
            decision = await self._decide_elsewhere(state, machine)
        session = state.context.session_id
        if turn is not None and state.model is None:
            decision = self._continued(decision, turn.model)
        elif session is not None and state.model is None:
            if decision.rule is None:
                held = await self._shared.model_of(session)
                decision = stick(decision, held, self._stick_margin, self._names)
            decision = self._once_a_turn(decision, session, state.request)
        if state.no_cascade:
            decision = dataclasses.replace(decision, reason=f"{decision.reason}; no cascade: {state.no_cascade}")
        state.decision = restrict(decision, state.allowed, self._names)
        state.decide_s = self._clock() - began_s

    def answered(self, state: RequestState, answer: Answer) -> None:
        """Note which model a session spoke with last, and which one asked for a tool."""
        self._tool_loops.asked(state, answer.model, answer.reply.tool_calls)
        if state.context.session_id is not None:
            # a session stays with what was chosen for it, not with what stepped in once
            held = state.chosen.model if answer.escalated_from is not None else answer.model
            self._shared.remember(state.context.session_id, held)

    def interrupted(self, state: RequestState) -> None:
        """Note which model asked for a tool in a stream that did not reach its end: the result goes to it."""
        self._tool_loops.asked(state, *state.asked)

    def _continued(self, decision: Decision, model: str) -> Decision:
        """Return the decision with the model that asked for the tool in front, where it may serve the request."""
        if not any(self._names.same(candidate.model, model) for candidate in decision.ranked):
            return unexplored(decision, None, self._names)
        return pin(decision, model, self._names, "asked for the tool whose result this is")

    def _once_a_turn(self, decision: Decision, session: str, request: ChatRequest) -> Decision:
        """Return the decision; where exploration drew before in the same turn of a session (a retry), what it drew."""
        if decision.propensity == 1.0:
            return decision
        turn = request.conversation.turn_key
        known, arm = self._drawn.get(session, ("", None))
        if known == turn:
            return unexplored(decision, arm, self._names)
        self._drawn[session] = (turn, (decision.model, decision.think))
        return decision

    def shadow(self, state: RequestState, machine: MachineState) -> Decision | None:
        """Return what the challenger of a shadow experiment would have chosen; None if there is none or it fails."""
        variant = state.assignment.shadow if state.assignment else None
        if variant is None:
            return None
        try:
            return self._by_variant(state, machine, variant)
        except Exception as error:
            log.warning("the shadow could not decide: %s", error)
            return None

    def _remembers(self, state: RequestState) -> bool:
        remembers = getattr(self._decider, "remembers", None)
        if remembers is None or (state.assignment is not None and state.assignment.variant.bundle):
            return False
        try:
            return bool(remembers(state.request.text, state.context))
        except Exception:
            return False

    async def _decide_elsewhere(self, state: RequestState, machine: MachineState) -> Decision:
        """Decide in another thread: reading a query takes milliseconds, and a decider may be third-party code."""
        work = functools.partial(self._decide, state, machine)
        try:
            deciding = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError:  # the interpreter is ending and starts no threads
            return work()
        try:
            async with asyncio.timeout(max(0.0, state.deadline_s - self._clock())):
                return await deciding
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before a model was chosen") from None

    def _decide(self, state: RequestState, machine: MachineState) -> Decision:
        if state.assignment is not None:
            try:
                decision = self._pinned(state, self._by_variant(state, machine, state.assignment.variant))
                if state.request.think is None:
                    state.request = dataclasses.replace(state.request, think=state.assignment.variant.think)
                return decision
            except InputError:
                raise
            except Exception as error:
                log.warning("the variant cannot be served, the request is assigned to none: %s", error)
                state.assignment = None
        return self._pinned(state, self._by_default(state, machine))

    def _by_variant(self, state: RequestState, machine: MachineState, variant: Variant) -> Decision:
        decider = self._decider
        if variant.bundle and self._decider_of is not None:
            decider = self._decider_of(variant.bundle)
        policy = variant.policy or state.policy
        state.allowed = self._allowed(policy)
        context = _judged(state, policy, named=state.model is not None or variant.model is not None)
        if variant.think is not None and context.think is None:
            context = dataclasses.replace(context, think=variant.think)
        decision = decider.decide(state.request.text, context, policy, machine, variant=variant.name)
        return pin(decision, variant.model, self._names) if variant.model else decision

    def _by_default(self, state: RequestState, machine: MachineState) -> Decision:
        state.allowed = self._allowed(state.policy)
        context = _judged(state, state.policy, named=state.model is not None)
        try:
            return self._decider.decide(state.request.text, context, state.policy, machine)
        except InputError:
            raise
        except Exception as error:  # the request continues after any error of the decider
            log.warning("the decider failed, the catalogue's order is used: %s", error)
            why = f"the decider failed ({type(error).__name__}); the catalogue's order is used"
            return plain_decision(self._fleet.catalogue, state.policy_name, why)

    def _allowed(self, policy: Policy | str) -> tuple[str, ...] | None:
        """Return the catalogue's names of the models a policy allows; None: all."""
        try:
            models = resolve_policy(policy).models
        except PolicyError:  # a name that only the decider knows, or one it refuses
            return None
        return None if models is None else tuple(map(self._names.canonical, models))

    def _pinned(self, state: RequestState, decision: Decision) -> Decision:
        """Return the decision with the model the caller named in front, where there is such a model.

        Raises `PolicyError` if the policy does not allow it."""
        if state.model is None:
            return decision
        if state.allowed is not None and self._names.canonical(state.model) not in state.allowed:
            allowed = ", ".join(state.allowed)
            raise PolicyError(f"policy {state.policy_name!r} allows only {allowed}, and not {state.model!r:.60}")
        return pin(decision, state.model, self._names, unknown=not self._fleet.knows(state.model))


def _judged(state: RequestState, policy: Policy | str, named: bool) -> Context:
    """Return the context to decide in, and note whether the first answer is judged.

    It is not where the model was `named`, nor in a stream whose parts pass on as they come."""
    state.cascade, state.no_cascade = None, ""
    try:
        values = resolve_policy(policy)
    except PolicyError:  # a name that only the decider knows, or one it refuses
        return state.context
    if not values.cascade:
        return state.context
    if named:
        state.no_cascade = "the model was named"
    elif state.streamed and not values.cascade_buffer:
        state.no_cascade = "a stream passes on as it comes (cascade_buffer = true holds it back)"
    else:
        state.cascade = values
        return dataclasses.replace(state.context, judged=True)
    return state.context
