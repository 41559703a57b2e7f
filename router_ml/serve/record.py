"""What is recorded of each request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cachetools import LRUCache

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import policy_parameters
from router_ml.events.event import (
    AttemptEvent,
    Event,
    OutcomeEvent,
    Recorder,
    decision_event,
    feedback_event,
)
from router_ml.hosts.reply import Reply
from router_ml.serve.answer import Answer, Attempt, Timings, may_be_empty
from router_ml.serve.judge import BlindJudge
from router_ml.serve.request_state import RequestState
from router_ml.serve.signals import Signals, invalid, left
from router_ml.types import Candidate, Decision

log = logging.getLogger(__name__)

CANCELLED = "cancelled"  # the error of a request that its user left
_DECISIONS = 10_000  # the latest decisions, on which feedback is known to be meant for this gateway


class EventRecorder:
    """Records one decision, its attempts and one outcome per request that was decided on.

    A recorder that raises costs an event, never an answer."""

    def __init__(
        self,
        recorder: Recorder,
        catalogue: Catalogue,
        clock: Callable[[], float],
        judge: BlindJudge | None = None,
    ) -> None:
        self._judge = judge
        self._recorder = recorder
        self.catalogue = catalogue
        self._clock = clock
        self._lock = threading.Lock()
        self._decided: LRUCache[str, None] = LRUCache(_DECISIONS)
        self._signals = Signals(clock)

    def forked(self) -> None:
        """Renew the lock in a forked process: a thread of the parent may have held it."""
        self._lock = threading.Lock()
        self._signals = Signals(self._clock)

    def judged(self, decision_id: str, score: float, comment: str | None) -> bool:
        """Record feedback, 0 bad .. 1 good; return whether it was one of the latest given here.

        Raises `InputError` for an id, score or comment that cannot be recorded."""
        self._record(feedback_event(decision_id, score, comment))
        with self._lock:
            return decision_id in self._decided

    def answered(self, state: RequestState, answer: Answer) -> None:
        """Record a request that was answered."""
        self._request(state, self._outcome(state, answer, None))
        self._signals.answered(state, answer)
        if self._judge is not None and not answer.clarify:
            self._judge.consider(state.chosen.decision_id, state.request.conversation.messages, answer.content)

    def failed(self, state: RequestState, error: str) -> None:
        """Record a request that was not; one that nothing was decided about leaves no event."""
        if state.decision is not None:
            self._request(state, self._outcome(state, None, error))
            if error == CANCELLED and (sign := left(state)) is not None:
                self._record(sign)

    def served_from_cache(self, state: RequestState, answer: Answer) -> None:
        """Record a cached answer; no model was chosen or called."""
        self._remember(state.chosen.decision_id)
        self._record(self._outcome(state, answer, None))

    def shadow(self, state: RequestState, decision: Decision) -> None:
        """Record what a challenger in shadow would have chosen."""
        assert state.assignment is not None
        self._record(
            decision_event(decision, experiment=state.assignment.experiment, unit=state.assignment.unit, shadow=True)
        )

    def _request(self, state: RequestState, outcome: OutcomeEvent) -> None:
        decision = state.chosen
        self._remember(decision.decision_id)
        if (sign := self._signals.of_earlier(state)) is not None:
            self._record(sign)
        self._record(
            decision_event(
                decision,
                experiment=outcome.experiment,
                unit=outcome.unit,
                pinned=outcome.pinned,
                prompt_tokens=state.context.prompt_tokens,
                policy_parameters=policy_parameters(
                    (state.assignment is not None and state.assignment.variant.policy) or state.policy
                ),
                text=state.request.text,
                context=state.context,
            )
        )
        for index, attempt in enumerate(state.attempts):
            self._record(_attempt_event(decision, index, attempt))
        self._record(outcome)

    def _record(self, event: Event) -> None:
        try:
            self._recorder.record(event)
        except Exception as error:
            log.warning("the recorder failed (%s); an event is lost", type(error).__name__)

    def _remember(self, decision_id: str) -> None:
        with self._lock:
            self._decided[decision_id] = None

    def _outcome(self, state: RequestState, answer: Answer | None, error: str | None) -> OutcomeEvent:
        decision = state.chosen
        reply = answer.reply if answer else None
        cached = answer is not None and answer.cached
        model = answer.model if answer and answer.model else decision.model
        think = answer.think if answer else decision.think
        candidate = state.candidate(model, think)
        accurate = self.catalogue.by_role("accurate")
        best = state.candidate(accurate.name, accurate.default_arm.think) if accurate else None
        unusable = invalid(state, answer) if answer else None
        timings = answer.timings if answer else Timings(total_s=self._clock() - state.began_s)
        served = answer.served_attempt if answer else None
        unused_usd = None if state.unused is None else self._cost_usd(*state.unused)
        return OutcomeEvent(
            decision_id=decision.decision_id,
            model=model,
            success=_success(state, answer, error, unusable),
            invalid=unusable,
            latency_s=timings.total_s,
            ok=answer is not None,
            prompt_tokens=reply.prompt_tokens if reply else None,
            output_tokens=reply.output_tokens if reply else None,
            queue_s=timings.queue_s,
            load_s=timings.load_s,
            prompt_eval_s=timings.prompt_eval_s,
            eval_s=timings.eval_s,
            first_token_s=timings.first_token_s,
            cost_usd=self._cost_usd(model, reply) + (unused_usd or 0.0) if reply and not cached else None,
            resident=state.resident,
            error=error,
            cache_hit=cached,
            clarified=answer is not None and answer.clarify,
            attempts=sum(1 for a in state.attempts if a.failure is None or a.failure.called),
            fallback=bool(answer and answer.fallback),
            complexity=decision.complexity,
            policy=decision.policy,
            bundle=decision.bundle,
            p_success=_p_success(state, answer, candidate),
            predicted_latency_s=candidate.latency_s.p50 if candidate else None,
            budget_s=state.context.latency_budget_s,
            accurate_latency_s=best.latency_s.p50 if best else None,
            accurate_cost_usd=best.cost_usd if best else None,
            experiment=state.assignment.experiment if state.assignment else None,
            variant=decision.variant,
            unit=state.assignment.unit if state.assignment else state.context.session_id,
            pinned=state.model is not None,
            think=think,
            logprob_mean=served.logprob_mean if served else None,
            cascade=(answer.cascade or None) if answer and not cached else None,
            escalated_from=answer.escalated_from if answer and not cached else None,
            p_right=answer.p_right if answer and not cached else None,
            unused_s=_unused_s(state, served),
            unused_usd=unused_usd,
        )

    def _cost_usd(self, model: str, reply: Reply) -> float:
        entry = self.catalogue.find(model)
        if entry is None:
            return 0.0
        input_usd = (reply.prompt_tokens or 0) * entry.price_input_usd_per_mtok
        return (input_usd + (reply.output_tokens or 0) * entry.price_output_usd_per_mtok) / 1e6


def _p_success(state: RequestState, answer: Answer | None, candidate: Candidate | None) -> float | None:
    """Return the success to expect of what was served: as predicted, but as judged where a cascade judged."""
    if answer is not None and not answer.cached and state.p_served is not None:
        return state.p_served
    return candidate.p_success if candidate else None


def _unused_s(state: RequestState, served: Attempt | None) -> float | None:
    """Return the seconds of a cascade's calls whose answer was not served; None where it asked no second arm."""
    if served is None or not state.escalated:
        return None
    return sum(attempt.latency_s for attempt in state.attempts[state.escalated - 1 :] if attempt is not served)


def _success(state: RequestState, answer: Answer | None, error: str | None, unusable: str | None) -> float | None:
    """Return 0 if no model answered, each with nothing, or with what cannot be used; None if it was not judged.

    A user who leaves has judged nothing."""
    if error == CANCELLED:
        return None
    if answer is None or unusable or (answer.empty and not may_be_empty(state.request.options)):
        return 0.0
    return None


def _attempt_event(decision: Decision, index: int, attempt: Attempt) -> AttemptEvent:
    return AttemptEvent(
        decision_id=decision.decision_id,
        model=attempt.model,
        index=index,
        ok=attempt.ok,
        latency_s=attempt.latency_s,
        first_token_s=attempt.first_token_s,
        error=attempt.failure.kind if attempt.failure else None,
        host=attempt.host,
        breaker=attempt.breaker,
        variant=decision.variant,
        think=attempt.think,
        logprob_mean=attempt.logprob_mean,
        unused=attempt.unused,
    )
