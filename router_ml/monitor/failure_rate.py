"""Alert rule: more calls fail than the baseline explains."""

from __future__ import annotations

import math
from collections.abc import Iterator

from router_ml.events.event import AttemptEvent, Event, OutcomeEvent
from router_ml.events.judgement import RIGHT
from router_ml.monitor.cusum import Cusum
from router_ml.monitor.expectation import CalibratedFailures, ErrorShare
from router_ml.monitor.rule import ALL, Shares, Signal

_OPEN = 10_000  # decisions under way
_PRIOR = 0.1  # failures where nothing was predicted
# Not a fault of a model or its host: cancelled requests, calls that were never made, requests no model could take.
_BLAMELESS = frozenset({"cancelled", "shed", "open", "absent", "invalid", "empty"})


class _Surge:
    """Detects more failures of one kind than the baseline explains."""

    def __init__(self, threshold: float, on_top: float) -> None:
        self.shares, self.expected = Shares(40, 150), Shares(40, 150)
        self._cusum, self._on_top = Cusum(threshold), on_top

    @property
    def firing(self) -> bool:
        return self._cusum.firing

    def take(self, bad: bool, baseline: float, counts: bool) -> None:
        """Take one event; it is evidence only where the baseline is known well enough (`counts`)."""
        self.shares.add(bad)
        self.expected.add(baseline)
        if not counts:
            return
        raised = 1 - (1 - baseline) * (1 - self._on_top)
        gain = math.log(raised / baseline) if bad else math.log(1 - self._on_top)
        self._cusum.add(gain, allowed=self._excess(0) >= 0.08 and self._excess(1) >= 0.02)

    def _excess(self, window: int) -> float:
        return self.shares.share(window) - self.expected.share(window)


class _Failures:
    """One subject's failures: calls without an answer, and answers that were wrong."""

    def __init__(self, threshold: float, on_top: float) -> None:
        self.errors, self.wrong = _Surge(threshold, on_top), _Surge(threshold, on_top)

    @property
    def firing(self) -> bool:
        return self.errors.firing or self.wrong.firing


class FailureRate:
    """More failures than the baseline for such requests: one CUSUM for errors, one for wrong answers.

    The log likelihood ratio compares "a share `on_top` of the requests fails in addition" with "as the baseline says",
    so a failure where none was expected is the strongest evidence. The baseline of errors (no answer) is a slow mean,
    for prompts do not explain them; that of wrong answers is the calibrated prediction. Firing takes the sum and an
    excess in a short and a long window. Errors hidden by a fallback count for their model by its attempts; answers
    without a judgement count as answers only. Cancelled requests, calls that were never made and requests that no model
    can take are not failures."""

    name = "failure_rate"
    advice = (
        "List the errors with 'router-ml events export'. If one model fails, check its host with 'ollama ps' and "
        "remove it from the catalogue until it works again. Roll back the last change."
    )

    def __init__(
        self, *, threshold: float = 10.5, on_top: float = 0.2, minimum: int = 100, minimum_calls: int = 20
    ) -> None:
        self._threshold, self._on_top = threshold, on_top
        self._minimum, self._minimum_calls = minimum, minimum_calls
        self._errors: dict[str, ErrorShare] = {}
        self._wrong: dict[tuple[str, str | None], CalibratedFailures] = {}  # another bundle predicts otherwise
        self._states: dict[str, _Failures] = {}
        self._attempted: dict[str, None] = {}  # decisions whose attempts were counted, the oldest first

    def observe(self, event: Event) -> Iterator[Signal]:
        """Take an attempt or an outcome."""
        if isinstance(event, AttemptEvent):
            yield from self._attempt(event)
        elif isinstance(event, OutcomeEvent) and not event.cache_hit and event.error not in _BLAMELESS:
            yield from self._outcome(event)

    def _attempt(self, event: AttemptEvent) -> Iterator[Signal]:
        if event.error in _BLAMELESS:
            return
        self._attempted[event.decision_id] = None
        if len(self._attempted) > _OPEN:
            del self._attempted[next(iter(self._attempted))]
        self._call(event.model, not event.ok)
        yield self._signal(event.model)

    def _outcome(self, event: OutcomeEvent) -> Iterator[Signal]:
        self._call(ALL, not event.ok)
        if event.decision_id in self._attempted:
            del self._attempted[event.decision_id]
        else:
            self._call(event.model, not event.ok)
        if event.ok and event.success is not None:
            self._judged(event, event.success < RIGHT)
        for subject in (ALL, event.model):
            yield self._signal(subject)

    def _call(self, subject: str, error: bool) -> None:
        share = self._errors.setdefault(subject, ErrorShare())
        surge = self._state(subject).errors
        known = share.seen >= self._minimum_calls
        surge.take(error, share.usual(), known)
        if not surge.firing:
            share.learn(error)

    def _judged(self, event: OutcomeEvent, wrong: bool) -> None:
        predicted = _PRIOR if event.p_success is None else 1 - event.p_success
        calibration = self._wrong.setdefault((event.model, event.bundle), CalibratedFailures())
        usual, known = calibration.usual(predicted), calibration.seen >= self._minimum
        surges = [self._state(subject).wrong for subject in (ALL, event.model)]
        for surge in surges:
            surge.take(wrong, usual, known)
        if not any(surge.firing for surge in surges):
            calibration.learn(predicted, wrong)

    def _state(self, subject: str) -> _Failures:
        if subject not in self._states:
            self._states[subject] = _Failures(self._threshold, self._on_top)
        return self._states[subject]

    def _signal(self, subject: str) -> Signal:
        state = self._state(subject)
        errors = state.errors.firing or not state.wrong.firing
        surge = state.errors if errors else state.wrong
        now, usual, seen = surge.shares.share(0), surge.expected.share(0), surge.shares.seen(0)
        if errors:
            summary = f"{now:.0%} of the last {seen} calls returned no answer (baseline {usual:.0%})"
        else:
            summary = f"{now:.0%} of the last {seen} judged answers were wrong (baseline for such requests {usual:.0%})"
        return Signal(subject, state.firing, now, usual, summary)
