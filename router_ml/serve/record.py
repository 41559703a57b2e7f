"""What is remembered of each request."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ollama

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import policy_parameters
from router_ml.events.event import (
    AttemptEvent,
    OutcomeEvent,
    Recorder,
    decision_event,
    feedback_event,
)
from router_ml.serve.answer import Answer, Timings
from router_ml.serve.request_state import RequestState
from router_ml.types import Decision

_REMEMBERED = 10_000  # decisions on which feedback is known to be meant for this gateway


class EventRecorder:
    """Writes one decision, its attempts and one outcome per request that was decided on."""

    def __init__(self, recorder: Recorder, catalogue: Catalogue, clock: Callable[[], float]) -> None:
        self._recorder = recorder
        self._catalogue = catalogue
        self._clock = clock
        self._lock = threading.Lock()
        self._decided: dict[str, None] = {}  # the latest decisions, the oldest first

    def judged(self, decision_id: str, score: float, comment: str | None) -> bool:
        """Somebody said what an answer was worth, 0 bad .. 1 good; whether it was one of the latest given here.

        Raises `InputError` for an id, score or comment that cannot be recorded."""
        self._recorder.record(feedback_event(decision_id, score, comment))
        with self._lock:
            return decision_id in self._decided

    def answered(self, job: RequestState, answer: Answer) -> None:
        """An answer came back."""
        self._write(job, self._outcome(job, answer, None))

    def failed(self, job: RequestState, error: str) -> None:
        """None did; a request nothing was decided about leaves no trace."""
        if job.decision is not None:
            self._write(job, self._outcome(job, None, error))

    def served_from_cache(self, job: RequestState, answer: Answer) -> None:
        """A kept answer was given; no model was chosen or called."""
        self._remember(job.chosen.decision_id)
        self._recorder.record(self._outcome(job, answer, None))

    def shadow(self, job: RequestState, decision: Decision) -> None:
        """What a challenger that serves nobody would have chosen."""
        assert job.assignment is not None
        self._recorder.record(
            decision_event(decision, experiment=job.assignment.experiment, unit=job.assignment.unit, shadow=True)
        )

    def _write(self, job: RequestState, outcome: OutcomeEvent) -> None:
        decision = job.chosen
        self._remember(decision.decision_id)
        self._recorder.record(
            decision_event(
                decision,
                experiment=outcome.experiment,
                unit=outcome.unit,
                pinned=outcome.pinned,
                prompt_tokens=job.context.prompt_tokens,
                policy_parameters=policy_parameters(
                    (job.assignment is not None and job.assignment.variant.policy) or job.policy
                ),
                text=job.request.text,
                context=job.context,
            )
        )
        for index, attempt in enumerate(job.attempts):
            self._recorder.record(
                AttemptEvent(
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
                )
            )
        self._recorder.record(outcome)

    def _remember(self, decision_id: str) -> None:
        with self._lock:
            self._decided[decision_id] = None
            if len(self._decided) > _REMEMBERED:
                del self._decided[next(iter(self._decided))]

    def _outcome(self, job: RequestState, answer: Answer | None, error: str | None) -> OutcomeEvent:
        decision = job.chosen
        response = answer.response if answer else None
        cached = answer is not None and answer.cached
        model = answer.model if answer and answer.model else decision.model
        candidate = job.candidate(model)
        accurate = self._catalogue.by_role("accurate")
        best = job.candidate(accurate.name) if accurate else None
        timings = answer.timings if answer else Timings(total_s=self._clock() - job.began_s)
        return OutcomeEvent(
            decision_id=decision.decision_id,
            model=model,
            success=None if answer else 0.0,
            latency_s=timings.total_s,
            ok=answer is not None,
            prompt_tokens=response.prompt_eval_count if response else None,
            output_tokens=response.eval_count if response else None,
            queue_s=timings.queue_s,
            load_s=timings.load_s,
            prompt_eval_s=timings.prompt_eval_s,
            eval_s=timings.eval_s,
            first_token_s=timings.first_token_s,
            cost_usd=self._cost_usd(model, response) if response and not cached else None,
            resident=job.resident,
            error=error,
            cache_hit=cached,
            clarified=answer is not None and answer.clarify,
            attempts=sum(1 for a in job.attempts if a.failure is None or a.failure.called),
            fallback=bool(answer and answer.fallback),
            complexity=decision.complexity,
            policy=decision.policy,
            bundle=decision.bundle,
            p_success=candidate.p_success if candidate else None,
            predicted_latency_s=candidate.latency_s.p50 if candidate else None,
            budget_s=job.context.latency_budget_s,
            accurate_latency_s=best.latency_s.p50 if best else None,
            accurate_cost_usd=best.cost_usd if best else None,
            experiment=job.assignment.experiment if job.assignment else None,
            variant=decision.variant,
            unit=job.assignment.unit if job.assignment else job.context.session_id,
            pinned=job.model is not None,
        )

    def _cost_usd(self, model: str, response: ollama.ChatResponse) -> float:
        entry = self._catalogue.find(model)
        if entry is None:
            return 0.0
        input_usd = (response.prompt_eval_count or 0) * entry.price_input_usd_per_mtok
        return (input_usd + (response.eval_count or 0) * entry.price_output_usd_per_mtok) / 1e6
