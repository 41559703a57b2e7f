"""Judges the first answer by its log-probabilities and asks another arm where that pays (`policy.cascade`).

At most one other arm is asked, within the same deadline, and never once a part of an answer was passed on. Where it
fails, or does not answer in time, the first answer is served.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from router_ml.arm import arm_key, arm_phrase
from router_ml.decide.selection.cascade import Cascade, Ruling, Second
from router_ml.decide.selection.policy import Policy
from router_ml.serve.answer import Answer
from router_ml.serve.fallback import FallbackRunner
from router_ml.serve.request_state import RequestState
from router_ml.serve.stream import Sink
from router_ml.types import Candidate

log = logging.getLogger(__name__)


class CascadeStep:
    """Answers a request with the fallback runner, once or twice. Lives in one event loop."""

    def __init__(self, fallback: FallbackRunner, patience: float, clock: Callable[[], float]) -> None:
        """`patience`: the second arm may take so many times its p95."""
        self._fallback, self._patience, self._clock = fallback, patience, clock

    async def run(self, state: RequestState, sink: Sink | None) -> Answer:
        """Return the answer of the chosen arm, or that of another. Raises as `FallbackRunner.run` does."""
        policy = state.cascade
        if policy is None:
            answer = await self._fallback.run(state, sink)
            why_not = state.no_cascade
            return dataclasses.replace(answer, cascade=f"no cascade: {why_not}") if why_not else answer
        answer = await self._fallback.run(state, None)
        try:
            if why_not := _not_judged(state, answer):
                return self._told(state, answer, f"no cascade: {why_not}")
            return await self._judged(state, answer, policy)
        except Exception as error:  # there is an answer, and nothing of the second call may cost it
            log.warning("an answer could not be judged (%s), it is served", type(error).__name__)
            return self._told(state, answer, "no cascade: the answer could not be judged")

    async def _judged(self, state: RequestState, answer: Answer, policy: Policy) -> Answer:
        p_right, ruling = self._ruling(state, answer, policy)
        answer, state.p_served = dataclasses.replace(answer, p_right=p_right), p_right
        judged = f"P(right) {p_right:.2f} by the log-probabilities of {arm_phrase(answer.model, answer.think)}"
        if ruling.second is None:
            return self._told(state, answer, f"{judged}: kept, {ruling.reason}")
        phrase = arm_phrase(ruling.second.candidate.model, ruling.second.candidate.think)
        second = await self._second(state, answer, ruling.second)
        if second is None:
            return self._told(state, answer, f"{judged}: kept, {phrase} was asked and gave no answer")
        expected = f"{phrase} ({ruling.second.p_success:.2f})"
        return self._told(state, second, f"{judged}: escalated to {expected}, {ruling.reason}")

    def _ruling(self, state: RequestState, answer: Answer, policy: Policy) -> tuple[float, Ruling]:
        first = _candidate(state, answer)
        cascade, signal = state.chosen.cascade, state.attempts[-1].logprob_mean
        assert isinstance(cascade, Cascade)
        assert signal is not None
        others = [c for c in state.chosen.ranked if c.admissible and c is not first and self._fallback.able(state, c)]
        now_s = self._clock()
        warm_s = now_s - state.began_s - (answer.reply.load_s or 0.0)
        return cascade.rule(first, signal, others, policy, state.context, warm_s, state.deadline_s - now_s)

    async def _second(self, state: RequestState, first: Answer, wanted: Second) -> Answer | None:
        """Return the other arm's answer; the attempt of the first one is then marked as unused."""
        state.escalated, resident, waited_s = len(state.attempts), state.resident, state.waited_s
        place = state.escalated - 1
        limit_s = self._patience * wanted.candidate.latency_s.p95
        second = await self._fallback.escalate(state, wanted.candidate, limit_s)
        if second is None:
            state.resident, state.waited_s = resident, waited_s
            return None
        state.attempts[place] = dataclasses.replace(state.attempts[place], unused=True)
        state.unused, state.p_served = (first.model, first.reply), wanted.p_success
        unserved = arm_key(first.model, state.attempts[place].think)
        return dataclasses.replace(second, p_right=first.p_right, escalated_from=unserved)

    def _told(self, state: RequestState, answer: Answer, what: str) -> Answer:
        """Return the answer with what the cascade did, its attempts and seconds up to now."""
        state.decision = dataclasses.replace(state.chosen, reason=f"{state.chosen.reason}; {what}")
        timings = dataclasses.replace(answer.timings, total_s=self._clock() - state.began_s)
        attempts = tuple(state.attempts)
        return dataclasses.replace(answer, decision=state.decision, cascade=what, attempts=attempts, timings=timings)


def _not_judged(state: RequestState, answer: Answer) -> str:
    """Return why an answer is served as it is, or ""."""
    cascade = state.chosen.cascade
    if answer.empty:
        return "the answer is empty"
    if answer.fallback:
        return "a fallback answered"
    if not isinstance(cascade, Cascade):
        return "the router does not judge answers"
    if why := cascade.why_not(_candidate(state, answer)):
        return why
    return "the host gave no log-probabilities" if state.attempts[-1].logprob_mean is None else ""


def _candidate(state: RequestState, answer: Answer) -> Candidate:
    """Return what was predicted of the arm that answered."""
    found = state.candidate(answer.model, state.chosen.think)
    assert found is not None, "the chosen model is among the candidates"
    return found
