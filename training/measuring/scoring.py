"""Turn an answer into an outcome by what the query's row expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from router_ml.catalogue import Model
from router_ml.types import Outcome
from training.measuring.expected_answer import ExpectedAnswer
from training.measuring.judge import JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer
from training.measuring.text_checks import score_text
from training.measuring.tool_calls import CallScore, score_calls

_MAX_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Score:
    """The part of a score that needs no judge."""

    calls: CallScore | None
    problems: tuple[str, ...]


def score(answer: MeasuredAnswer, expected: ExpectedAnswer) -> Score:
    """Compare calls and text with what is expected."""
    calls = None if expected.calls is None else score_calls(expected.calls, answer.calls, expected.allowed)
    problems = list(calls.problems) if calls is not None else []
    if expected.text is not None:
        problems += [f"text {problem}" for problem in score_text(expected.text, answer.content)]
    return Score(calls, tuple(problems))


def needs_judge(answer: MeasuredAnswer, expected: ExpectedAnswer) -> bool:
    """Return whether a judge has to decide: nothing else failed."""
    return expected.judged is not None and answer.error is None and not score(answer, expected).problems


def outcome(
    answer: MeasuredAnswer, expected: ExpectedAnswer, model: Model | None, decision: JudgeDecision | None = None
) -> Outcome:
    """Return the outcome of an answer; `model` is its catalogue entry, for the price."""
    scored = score(answer, expected)
    extra: dict[str, Any] = {"turns": answer.turns}
    if scored.calls is not None and answer.error is None:
        extra["call_names"] = round(scored.calls.names, 4)
        if scored.calls.arguments is not None:
            extra["call_arguments"] = round(scored.calls.arguments, 4)
    if scored.problems and answer.error is None:
        extra["problems"] = list(scored.problems[:_MAX_PROBLEMS])
    if answer.truncated:
        extra["truncated"] = True
    if decision is not None:
        extra["judge"] = decision.reason
    return Outcome(
        query_id=answer.query_id,
        model=answer.model,
        success=_success(answer, expected, scored, decision),
        latency_s=answer.latency_s,
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        load_s=answer.load_s,
        prompt_eval_s=answer.prompt_eval_s,
        logprob_mean=answer.logprob_mean,
        eval_s=answer.eval_s,
        cost_usd=_cost_usd(answer, model),
        resident=answer.resident,
        error=answer.error,
        extra=extra,
        think=answer.think,
    )


def _success(
    answer: MeasuredAnswer, expected: ExpectedAnswer, scored: Score, decision: JudgeDecision | None
) -> float | None:
    if answer.error is not None:
        return 0.0
    if not expected.scored:
        return None
    if scored.problems:
        return 0.0
    if expected.judged is None:
        return 1.0
    return None if decision is None or decision.passed is None else float(decision.passed)


def _cost_usd(answer: MeasuredAnswer, model: Model | None) -> float | None:
    if model is None or answer.prompt_tokens is None or answer.output_tokens is None:
        return None
    cost = (
        answer.prompt_tokens * model.price_input_usd_per_mtok + answer.output_tokens * model.price_output_usd_per_mtok
    )
    return cost / 1e6 or None  # a model without a price has no cost to learn from
