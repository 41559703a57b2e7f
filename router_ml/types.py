"""The frozen values that travel between rooms. No logic beyond what belongs to a value itself.

Units stand in the names: `_s` seconds, `_tokens` tokens, `_usd` US dollars. Probabilities are 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

Label: TypeAlias = Literal["simple", "moderate", "complex", "ambiguous"]
Action: TypeAlias = Literal["answer", "clarify"]
Role: TypeAlias = Literal["fast", "balanced", "accurate"]
Think: TypeAlias = bool | Literal["low", "medium", "high"]  # how a model that can think is asked
Source: TypeAlias = Literal["prior", "measured", "learned"]  # catalogue or library; this machine; own outcomes
TaskFamily: TypeAlias = Literal["knowledge", "maths", "code", "tools", "instructions"]

LABELS: tuple[Label, ...] = ("simple", "moderate", "complex", "ambiguous")
ROLES: tuple[Role, ...] = ("fast", "balanced", "accurate")
TASK_FAMILIES: tuple[TaskFamily, ...] = ("knowledge", "maths", "code", "tools", "instructions")


class Turn(NamedTuple):
    """One turn of the conversation before the query."""

    role: str  # "user", "assistant", "system" or "tool"
    content: str


class Parameter(NamedTuple):
    """A parameter of a tool, as its JSON schema declares it."""

    name: str
    type: str = ""  # as written: "string", "integer", "HashMap"; "" if none is
    description: str = ""
    required: bool = False
    depth: int = 1  # 2 for a field of an object, and so on
    has_default: bool = False
    has_choices: bool = False


class Tool(NamedTuple):
    """A tool offered with the query."""

    name: str
    description: str = ""
    n_parameters: int = 0
    n_required: int = 0
    schema_chars: int = 0  # length of its JSON schema in characters
    parameter_text: str = ""  # names and descriptions of its parameters
    parameters: tuple[Parameter, ...] = ()  # nested ones after the one they belong to


@dataclass(frozen=True, slots=True)
class Context:
    """What comes with a query. Every part is optional; `Context()` is the empty one."""

    tools: tuple[Tool, ...] = ()
    n_tools: int = 0
    history: tuple[Turn, ...] = ()  # oldest first
    attachment: str = ""  # a name or description; "" if there is none
    attachment_kind: str = ""  # "image", "audio", "document" or ""
    session_id: str | None = None
    latency_budget_s: float | None = None
    prompt_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)  # unknown keys, kept and ignored
    has_images: bool = False  # in the history: the model that answers must be able to see them
    unread_tokens: int = 0  # estimated size of tool calls, thinking and later messages, which are not in `history`
    think: Think | None = None  # the caller asks for it: only arms that are asked this way
    judged: bool = False  # set by a gateway that will judge the answer and may ask another arm, see `policy.cascade`


EMPTY_CONTEXT = Context()


@dataclass(frozen=True, slots=True)
class Query:
    """One labelled (or unlabelled) query."""

    id: str
    text: str
    context: Context = EMPTY_CONTEXT
    label: Label | None = None
    group: str | None = None  # rows of one group never straddle a split
    slice: str | None = None  # for reports only, never a feature
    raw_context: Mapping[str, Any] | None = field(default=None, hash=False)  # as written in the file
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one call of one model for one query really gave."""

    query_id: str
    model: str
    success: float | None  # 0..1
    latency_s: float | None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    load_s: float | None = None
    prompt_eval_s: float | None = None
    eval_s: float | None = None
    cost_usd: float | None = None
    resident: bool | None = None  # was the model in memory when the call began
    error: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    think: Think | None = None  # how it was asked; None: the model's own default, or no choice
    weight: float = 1.0  # of the judgement behind `success`, see `router_ml.events.judgement`
    judged_by: str | None = None  # kind of feedback behind `success`; None: measured
    logprob_mean: float | None = None  # mean log-probability of the answer's tokens; None: the host did not say


class Quantiles(NamedTuple):
    """Quantiles of a latency in seconds; never crossing."""

    p50: float
    p90: float
    p95: float


class Candidate(NamedTuple):
    """One arm, a model with the way it is asked, with its predictions for one query."""

    model: str
    p_success: float
    latency_s: Quantiles  # what this request should take, waiting and loading included
    cost_usd: float
    utility: float
    reasons: tuple[str, ...] = ()
    output_tokens: float | None = None  # expected
    admissible: bool = True  # within every limit of the policy; others stand last in the chain
    think: Think | None = None  # how it is asked; None where the model has no choice
    source: Source = "prior"  # where `p_success` comes from
    latency_source: Source = "prior"  # where `latency_s` comes from
    p_interval: tuple[float, float] | None = None  # of `p_success`, 90 %; None where it is not known
    load_s: float = 0.0  # of `latency_s`, the wait until the model is in memory

    @property
    def warm_p95_s(self) -> float:
        """Return the p95 of the latency once the model is in memory."""
        return self.latency_s.p95 - self.load_s


@dataclass(frozen=True, slots=True)
class Prior:
    """What is expected of a model for each complexity label before it has outcomes."""

    latency_s: Mapping[Label, float]  # mean seconds of one answer
    success: Mapping[Label, float]  # share of right answers
    output_tokens: Mapping[Label, float] | None = None
    latency_log_sd: float = 0.5  # standard deviation of the log of latency
    strength: float = 20.0  # weight of this prior, in outcomes
    latency_source: Source = "prior"  # "measured" where `latency_s` follows from rates measured on this machine


@dataclass(frozen=True, slots=True)
class Decision:
    """Which model serves a query, why, and what follows if it fails. `str()` is the model's name."""

    model: str
    complexity: Label
    complexity_probabilities: Mapping[Label, float] = field(hash=False)
    ranked: tuple[Candidate, ...]  # the chosen first, then the fallback order
    action: Action
    reason: str
    decision_id: str
    policy: str
    bundle: str  # its name and version, or "heuristic" if there is none
    propensity: float = 1.0  # probability of this choice under the logging policy, over the admissible candidates
    variant: str | None = None
    novelty: float = 0.0  # 0 like the training queries .. 1 unlike any of them
    excluded: Mapping[str, str] = field(default_factory=dict, hash=False)  # models that cannot serve it, and why
    degraded: bool = False  # True if a fallback (heuristics, priors) stood in for something learned
    difficulty: float | None = None  # log2 of the billions of parameters a typical model needs; None: not read
    rule: str | None = None  # the user's rule that spoke
    features: Any = field(default=None, compare=False, repr=False)  # what was read, where ROUTER_ML_KEEP=features
    if_warm: str | None = None  # the model that would be chosen if all were in memory; None: this one
    cascade: Any = field(default=None, compare=False, repr=False)  # judges the first answer, see `policy.cascade`

    def __str__(self) -> str:
        return self.model

    @property
    def candidate(self) -> Candidate:
        """Return the chosen candidate."""
        return self.ranked[0]

    @property
    def think(self) -> Think | None:
        """Return how the chosen arm is asked; None where the model has no choice."""
        return self.ranked[0].think if self.ranked else None

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "model": self.model,
            "complexity": self.complexity,
            "complexity_probabilities": dict(self.complexity_probabilities),
            "ranked": [_candidate_dict(candidate) for candidate in self.ranked],
            "action": self.action,
            "reason": self.reason,
            "decision_id": self.decision_id,
            "policy": self.policy,
            "bundle": self.bundle,
            "propensity": self.propensity,
            "variant": self.variant,
            "novelty": self.novelty,
            "excluded": dict(self.excluded),
            "degraded": self.degraded,
            "think": self.think,
            "difficulty": self.difficulty,
            "rule": self.rule,
            "if_warm": self.if_warm,
        }


def _candidate_dict(candidate: Candidate) -> dict[str, Any]:
    """Return a JSON-ready dictionary; unknown values (NaN) are null."""
    values = {k: None if v != v else v for k, v in candidate._asdict().items()}
    latency = {k: None if v != v else v for k, v in candidate.latency_s._asdict().items()}
    interval = None if candidate.p_interval is None else list(candidate.p_interval)
    return {**values, "latency_s": latency, "reasons": list(candidate.reasons), "p_interval": interval}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision with what spoke for its label, as log-odds against the runner-up, strongest first."""

    decision: Decision
    label: Label
    runner_up: Label
    contributions: tuple[tuple[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {
            "decision": self.decision.as_dict(),
            "label": self.label,
            "runner_up": self.runner_up,
            "contributions": [{"feature": name, "log_odds": weight} for name, weight in self.contributions],
        }


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the machine knows about one model right now. `None` means unknown."""

    available: bool = True  # there, and its circuit breaker lets a call through
    resident: bool | None = None  # loaded in memory
    queue_s: float = 0.0  # expected wait before the call begins
    load_s: float | None = None  # expected seconds to load when not resident
    prompt_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    recent_success: float | None = None  # live success rate in the recent window
    recent_calls: int = 0  # calls that rate rests on
    reason: str = ""  # why it is not available
    answer_s: float | None = None  # seconds of one answer, once enough were measured
    requests_per_load: float = 1.0  # that share one load: those expected before the model leaves memory again


@dataclass(frozen=True, slots=True)
class MachineState:
    """A snapshot of every model the backends know of, keyed by catalogue name."""

    models: Mapping[str, ModelState] = field(default_factory=dict, hash=False)
