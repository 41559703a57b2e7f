"""Events as frozen values, their JSON form, and the `Recorder` protocol that takes them.

An event is made on the request path, so making one only holds its values. Text is dropped or redacted, and units of
assignment become keyed hashes, when the event is written (see `privacy`).
"""

from __future__ import annotations

import collections.abc
import functools
import json
import math
import numbers
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Protocol, TypeAlias, Union, get_args, get_origin, get_type_hints, runtime_checkable

from router_ml.arm import is_think, split_key
from router_ml.context import context_row, parse_context
from router_ml.errors import InputError
from router_ml.events.features import KeptFeatures
from router_ml.numbers import short_repr
from router_ml.types import Candidate, Context, Decision, Label, Outcome, Quantiles, Think

VERSION = 1

ChangeKind: TypeAlias = Literal[
    "started", "ramped", "look", "invalid", "rolled_back", "shipped", "stopped", "cleared", "failed"
]
FeedbackKind: TypeAlias = str  # EXPLICIT_KINDS come from a person; every other kind was inferred
AlertState: TypeAlias = Literal["firing", "resolved"]

EXPLICIT_KINDS = frozenset(("thumb", "score"))
UNSERVED = "unserved"  # kind of the estimated success of an answer that a cascade did not serve
MAX_ID_CHARS = 200
MAX_COMMENT_CHARS = 10_000

_EMPTY: Mapping[str, Any] = MappingProxyType({})


def _empty() -> Mapping[Any, Any]:
    return _EMPTY


def new_id() -> str:
    """Return a random identifier of 32 hexadecimal characters."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class DecisionEvent:
    """One decision of the router: what could have been chosen, what was, and with which probability."""

    decision_id: str
    model: str
    complexity: str
    policy: str
    bundle: str
    propensity: float  # over the candidates left after filtering
    candidates: tuple[Candidate, ...] = ()  # the chosen first
    excluded: Mapping[str, str] = field(default_factory=_empty)
    action: str = "answer"
    novelty: float = 0.0
    degraded: bool = False
    experiment: str | None = None
    variant: str | None = None
    unit: str | None = None  # unit of assignment (a session or a request); written as a keyed hash
    shadow: bool = False  # decided by a challenger in shadow
    pinned: bool = False  # the caller named the model, so no experiment counts it
    prompt_tokens: int | None = None
    text: str | None = None  # the query; written only where that is enabled, then redacted
    context: Context | None = None  # its context; written with the text, and redacted like it
    features: KeptFeatures | None = field(default=None, compare=False)  # written apart, and only where that is enabled
    query_key: str | None = None  # keyed hash of the query, filled in when the event is written
    complexity_probabilities: Mapping[Label, float] = field(default_factory=_empty)  # by label
    difficulty: float | None = None  # doublings of parameters; None without a difficulty head
    policy_parameters: Mapping[str, Any] = field(default_factory=_empty)  # weights and limits behind the policy's name
    at_s: float = field(default_factory=time.time)  # Unix time
    event_id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """One call of one model within a request."""

    decision_id: str
    model: str
    index: int  # 0 is the first model of the chain
    ok: bool
    latency_s: float | None = None
    first_token_s: float | None = None
    error: str | None = None  # kind of error, never its payload
    host: str | None = None
    breaker: str = "closed"  # state of the circuit breaker after this attempt: closed, open, half_open
    variant: str | None = None
    think: Think | None = None  # how the model was asked
    logprob_mean: float | None = None  # mean log-probability of its tokens, where it was asked for
    unused: bool = False  # it answered, and a cascade served another answer
    at_s: float = field(default_factory=time.time)
    event_id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class OutcomeEvent:
    """Result of a whole request. One per decision that was served."""

    decision_id: str
    model: str  # the model that answered; where none did, the one that was chosen
    success: float | None  # 0..1; 0 if no model answered, None if the answer was not judged
    latency_s: float | None  # end to end
    ok: bool = True  # an answer came back
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    queue_s: float | None = None
    load_s: float | None = None
    prompt_eval_s: float | None = None
    eval_s: float | None = None
    first_token_s: float | None = None
    cost_usd: float | None = None
    resident: bool | None = None
    error: str | None = None
    cache_hit: bool = False  # answered from the response cache; no model was called
    invalid: str | None = None  # why the answer cannot be used: "tool_invalid" or "format_invalid"
    clarified: bool = False  # the user was asked a clarifying question; no model was called
    attempts: int = 1
    fallback: bool = False  # a fallback model answered, because an earlier one failed
    complexity: str | None = None
    policy: str | None = None
    bundle: str | None = None
    p_success: float | None = None  # as predicted for the model that answered
    predicted_latency_s: float | None = None  # p50 as predicted for the model that answered
    budget_s: float | None = None  # latency budget of the request
    accurate_latency_s: float | None = None  # expected of the accurate model, for the savings
    accurate_cost_usd: float | None = None
    experiment: str | None = None
    variant: str | None = None
    unit: str | None = None
    pinned: bool = False
    think: Think | None = None  # how the model that answered was asked
    logprob_mean: float | None = None  # mean log-probability of the answer's tokens, where it was asked for
    cascade: str | None = None  # what a cascade did and why; None under policies without one
    escalated_from: str | None = None  # key of the arm whose answer was not served
    p_right: float | None = None  # probability that the first answer was right, by its log-probabilities
    unused_s: float | None = None  # of `latency_s`, calls of a cascade whose answer was not served
    unused_usd: float | None = None  # of `cost_usd`, the same
    at_s: float = field(default_factory=time.time)
    event_id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class FeedbackEvent:
    """Judgement of an answer, by a person or inferred."""

    decision_id: str
    kind: FeedbackKind
    score: float  # 0 bad .. 1 good
    comment: str | None = None  # written only where text is enabled
    at_s: float = field(default_factory=time.time)
    event_id: str = field(default_factory=new_id)

    @property
    def explicit(self) -> bool:
        """Whether a person gave the feedback."""
        return self.kind in EXPLICIT_KINDS


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """An alert rule began or ceased to fire."""

    rule: str
    state: AlertState
    subject: str  # the subject: a model, "all", or an experiment
    value: float
    threshold: float
    summary: str
    advice: str  # what to do
    at_s: float = field(default_factory=time.time)
    event_id: str = field(default_factory=new_id)


@dataclass(frozen=True, slots=True)
class ExperimentEvent:
    """A change of an experiment's state, with the numbers behind it."""

    experiment: str
    change: ChangeKind
    detail: Mapping[str, Any] = field(default_factory=_empty)
    at_s: float = field(default_factory=time.time)
    event_id: str = field(default_factory=new_id)


Event: TypeAlias = DecisionEvent | AttemptEvent | OutcomeEvent | FeedbackEvent | AlertEvent | ExperimentEvent

KINDS: Mapping[str, type[Event]] = MappingProxyType(
    {
        "decision": DecisionEvent,
        "attempt": AttemptEvent,
        "outcome": OutcomeEvent,
        "feedback": FeedbackEvent,
        "alert": AlertEvent,
        "experiment": ExperimentEvent,
    }
)
_KIND_OF: Mapping[type[Event], str] = MappingProxyType({cls: kind for kind, cls in KINDS.items()})
_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {kind: tuple(f.name for f in fields(cls) if f.name != "features") for kind, cls in KINDS.items()}
)


@runtime_checkable
class Recorder(Protocol):
    """Take events on the request path, without blocking or raising; what cannot be stored is counted as dropped."""

    def record(self, event: Event) -> None:
        """Take one event."""


class NullRecorder:
    """Discard every event."""

    def record(self, event: Event) -> None:
        """Discard one event."""


@dataclass(frozen=True, slots=True)
class Recorders:
    """Pass each event on to several recorders; one that raises does not affect the others."""

    recorders: tuple[Recorder, ...]

    def record(self, event: Event) -> None:
        """Pass one event on."""
        for recorder in self.recorders:
            try:
                recorder.record(event)
            except Exception:  # the request continues even if a recorder fails
                continue


def feedback_event(
    decision_id: str, score: float, comment: str | None = None, kind: str | None = None
) -> FeedbackEvent:
    """Return the feedback on a decision, checked: `score` is 0 (bad) to 1 (good).

    `kind` defaults to "thumb" for 0 and 1 and to "score" otherwise. Raises `InputError`."""
    if not isinstance(decision_id, str) or not 0 < len(decision_id) <= MAX_ID_CHARS or not decision_id.isprintable():
        raise InputError(
            f"a decision id must be 1 to {MAX_ID_CHARS} printable characters, got {_shown(decision_id)}; "
            "use the decision_id of the answer"
        )
    if not isinstance(score, numbers.Real) or not 0 <= score <= 1:
        raise InputError(f"a score must be a number between 0 and 1, got {_shown(score)}")
    if comment is not None and (not isinstance(comment, str) or len(comment) > MAX_COMMENT_CHARS):
        raise InputError(f"a comment must be text of at most {MAX_COMMENT_CHARS:,} characters, got {_shown(comment)}")
    return FeedbackEvent(decision_id, kind or ("thumb" if score in (0, 1) else "score"), float(score), comment)


def _shown(value: object) -> str:
    return f"{type(value).__name__} {short_repr(value)}"


def without_text(event: Event) -> Event:
    """Return the event without the query and what came with it, which may be a long conversation."""
    if isinstance(event, DecisionEvent) and (event.text, event.context, event.features) != (None,) * 3:
        return replace(event, text=None, context=None, features=None)
    return event


def as_dict(event: Event) -> dict[str, Any]:
    """Return a JSON-ready dictionary; `event` names the kind and `v` the version.

    Absent values are left out, and so are numbers that are not finite, which JSON does not know."""
    kind = _KIND_OF[type(event)]
    row: dict[str, Any] = {"event": kind, "v": VERSION}
    for name in _FIELDS[kind]:
        value = getattr(event, name)
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            row[name] = _plain(value)
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Context):
        return context_row(value)
    if isinstance(value, tuple):
        return [_candidate_row(item) if isinstance(item, Candidate) else item for item in value]
    return value


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    return {
        **candidate._asdict(),
        "latency_s": list(candidate.latency_s),
        "reasons": list(candidate.reasons),
    }


def json_line(row: object) -> str:
    """Return a row as one line of ASCII JSON, which every database takes; odd values are written as their text."""
    return json.dumps(row, separators=(",", ":"), default=json_value)


def json_value(value: object) -> object:
    """Return what JSON writes for a value it does not know: numbers of other libraries as numbers, the rest as text."""
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


def from_dict(row: Mapping[str, Any]) -> Event:
    """Return the event of a dictionary; unknown keys (of another version) are ignored.

    Raises `InputError` if the kind is unknown, or a field is missing or of the wrong type."""
    kind = row.get("event")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise InputError(f"unknown kind of event {kind!r}; expected one of {', '.join(KINDS)}")
    values = {name: row[name] for name in _FIELDS[str(kind)] if name in row}
    if cls is OutcomeEvent:
        values = {"success": None, "latency_s": None} | values
    _check(str(kind), values)
    try:
        if "candidates" in values:
            values["candidates"] = tuple(_candidate(item) for item in values["candidates"])
        if "context" in values:
            values["context"] = parse_context(values["context"])
        return cls(**values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"an event of kind {kind!r} is incomplete: {error}") from error


def _check(kind: str, values: Mapping[str, Any]) -> None:
    expected = _expected_types(kind)
    for name, value in values.items():
        types = expected.get(name)
        if types is None:
            continue
        if not isinstance(value, types) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"field {name!r} of an event of kind {kind!r} has the wrong type, got {_shown(value)}")
    if (think := values.get("think")) is not None and not is_think(think):
        raise InputError(
            f"field 'think' of an event of kind {kind!r} must be true, false or an effort, got {think!r:.60}"
        )
    if kind == "feedback" and not 0 <= values.get("score", 0) <= 1:
        raise InputError(f"the score of a feedback event must be between 0 and 1, got {values['score']!r}")


@functools.cache
def _expected_types(kind: str) -> Mapping[str, tuple[type, ...]]:
    """Return the JSON types of each plain field of a kind of event."""
    found = {}
    for name, hint in get_type_hints(KINDS[kind]).items():
        parts = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        types = [_JSON_TYPES.get(get_origin(part) or part) for part in parts]
        if all(types):
            found[name] = tuple(t for group in types if group for t in group)
    return found


_JSON_TYPES: Mapping[Any, tuple[type, ...]] = {
    str: (str,), float: (int, float), int: (int,), bool: (bool,), NoneType: (NoneType,), Literal: (str,),
    collections.abc.Mapping: (dict,),
}  # fmt: skip


def _candidate(row: Mapping[str, Any]) -> Candidate:
    values = {name: row[name] for name in Candidate._fields if name in row}
    values["latency_s"] = Quantiles(*values["latency_s"])
    values["reasons"] = tuple(values.get("reasons", ()))
    return Candidate(**values)


def from_json(text: str | bytes) -> Event:
    """Return the event of one line of JSON. Raises `InputError` if it is not one."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"an event is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError("an event must be a JSON object")
    return from_dict(row)


def decision_event(
    decision: Decision,
    *,
    experiment: str | None = None,
    unit: str | None = None,
    shadow: bool = False,
    pinned: bool = False,
    prompt_tokens: int | None = None,
    policy_parameters: Mapping[str, Any] = _EMPTY,
    text: str | None = None,
    context: Context | None = None,
    at_s: float | None = None,
) -> DecisionEvent:
    """Return the event of a decision."""
    return DecisionEvent(
        decision_id=decision.decision_id,
        model=decision.model,
        complexity=decision.complexity,
        policy=decision.policy,
        bundle=decision.bundle,
        propensity=decision.propensity,
        complexity_probabilities=decision.complexity_probabilities,
        difficulty=decision.difficulty,
        policy_parameters=policy_parameters,
        candidates=decision.ranked,
        excluded=decision.excluded,
        action=decision.action,
        novelty=decision.novelty,
        degraded=decision.degraded,
        experiment=experiment,
        variant=decision.variant,
        unit=unit,
        shadow=shadow,
        pinned=pinned,
        prompt_tokens=prompt_tokens,
        text=text,
        context=context,
        features=decision.features,
        at_s=time.time() if at_s is None else at_s,
    )


def outcome_of(
    event: OutcomeEvent, success: float | None = None, weight: float = 1.0, judged_by: str | None = None
) -> Outcome:
    """Return the training row of an outcome event; `success` (from feedback, say) replaces the event's own."""
    return Outcome(
        query_id=event.decision_id,
        model=event.model,
        success=event.success if success is None else success,
        latency_s=_own(event.latency_s, event.unused_s),
        prompt_tokens=event.prompt_tokens,
        output_tokens=event.output_tokens,
        load_s=event.load_s,
        prompt_eval_s=event.prompt_eval_s,
        eval_s=event.eval_s,
        cost_usd=_own(event.cost_usd, event.unused_usd),
        resident=event.resident,
        error=event.error,
        weight=weight,
        judged_by=judged_by,
        think=event.think,
        logprob_mean=event.logprob_mean,
    )


def unserved_outcome(event: OutcomeEvent) -> Outcome | None:
    """Return the training row of the answer that a cascade did not serve, with the success to expect; None if there is
    none."""
    if event.escalated_from is None or event.p_right is None:
        return None
    model, think = split_key(event.escalated_from)
    return Outcome(event.decision_id, model, event.p_right, None, think=think, judged_by=UNSERVED)


def _own(total: float | None, unused: float | None) -> float | None:
    """Return what the call that answered took, of what the request took."""
    return total if total is None or unused is None else max(total - unused, 0.0)
