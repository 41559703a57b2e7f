"""One model's answer to one query, with its timings: what an outcome is scored from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.arm import arm_key
from router_ml.types import Think
from training.measuring.tool_calls import MadeCall


@dataclass(frozen=True, slots=True)
class MeasuredAnswer:
    """One answered or failed query; timings and tokens are sums over the turns of the conversation."""

    query_id: str
    model: str
    content: str = ""  # the text of the last turn
    calls: tuple[MadeCall, ...] = ()  # of all turns
    turns: int = 0  # requests sent
    latency_s: float | None = None  # as a caller measures it
    load_s: float | None = None
    prompt_eval_s: float | None = None
    eval_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    resident: bool | None = None
    truncated: bool = False  # cut at the maximum length
    error: str | None = None
    think: Think | None = None  # how the model was asked; None: its own default, or no choice
    logprob_mean: float | None = None  # mean log-probability of its tokens; None: the host gave none

    @property
    def key(self) -> tuple[str, str]:
        """Query id and key of the arm."""
        return self.query_id, arm_key(self.model, self.think)


def answer_row(answer: MeasuredAnswer) -> dict[str, Any]:
    """Return the file form of an answer."""
    row = {name: getattr(answer, name) for name in MeasuredAnswer.__dataclass_fields__ if name != "calls"}
    return row | {"calls": [{"name": call.name, "arguments": dict(call.arguments)} for call in answer.calls]}


def answer_from(row: Mapping[str, Any]) -> MeasuredAnswer:
    """Return an answer from its file form; unknown keys are ignored."""
    calls: Sequence[Mapping[str, Any]] = row.get("calls") or ()
    values = {key: value for key, value in row.items() if key in MeasuredAnswer.__dataclass_fields__ and key != "calls"}
    return MeasuredAnswer(calls=tuple(MadeCall(call["name"], call["arguments"]) for call in calls), **values)
