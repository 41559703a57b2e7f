"""A policy: the weights of success, time and cost, and the limits of a choice."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from router_ml.catalogue import Model
from router_ml.decide.selection.limits import LIMITS, flag, number
from router_ml.errors import PolicyError
from router_ml.numbers import short_repr
from router_ml.rule import Rule, rules_from

OnAmbiguous = Literal["answer", "clarify"]


class _WithHash:
    __slots__ = ("_hash",)
    _hash: int  # a cached decision takes 5 us at most, and the hash of all fields most of one


@dataclass(frozen=True, slots=True)
class Policy(_WithHash):
    """Weights and limits of a choice. The utility of a model is

        success_weight * p_success - latency_weight_per_s * latency_p50 - cost_weight_per_usd * cost_usd

    Among the models within every limit the one of highest utility is chosen. Raises `PolicyError` for a value of the
    wrong kind."""

    name: str
    success_weight: float = 1.0
    latency_weight_per_s: float = 0.02  # value of one second, in units of success
    cost_weight_per_usd: float = 10.0  # value of one dollar, in units of success
    latency_budget_s: float | None = 5.0  # limit on p95 once the model is in memory; a shorter one of the context wins
    min_p_success: float = 0.0
    max_cost_usd: float | None = None  # per answer
    on_ambiguous: OnAmbiguous = "answer"  # "clarify": ask a clarifying question instead of guessing
    clarify_at: float = 0.5  # probability of "ambiguous" from which to ask a clarifying question
    default_margin: float = 0.05  # utility by which a query unlike the training data must favour leaving the default
    exploration: float = 0.0  # share of requests sent to another admissible model, so that outcomes teach us
    exploration_gap: float | None = 0.05  # loss of utility that halves a model's part of it; None: equal parts
    exploration_half_life_outcomes: float | None = None  # outcomes learned from that halve the share; None: constant
    exploration_floor: float = 0.02  # the share does not fall below this
    models: tuple[str, ...] | None = None  # only these, by name or alias; None: the whole catalogue
    rules: tuple[Rule, ...] = ()  # what the user decrees for some queries; those of the catalogue come after them
    limits: Mapping[str, Any] = field(default_factory=dict, hash=False)  # registered limits that are not fields
    load_wait_s: float | None = 60.0  # limit on the wait of this request until the model is in memory; likewise
    max_loss: float | None = None  # success that the cheapest choice may lose on average beside the best model
    confidence: float = 0.95  # with which `max_loss` holds
    cascade: bool = False  # ask another arm where the first answer is probably wrong, by its log-probabilities
    cascade_buffer: bool = False  # with `cascade`: hold streamed answers back until they are judged

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise PolicyError(f"policy {short_repr(self.name)}: name must be a string")
        for name, parse in _WEIGHTS.items():
            object.__setattr__(self, name, self._parsed(name, getattr(self, name), parse))
        for name, parse in _OPTIONAL.items():
            object.__setattr__(self, name, self._parsed(name, getattr(self, name), parse))
        for limit in LIMITS.values():
            if limit.name in self.__dataclass_fields__:
                value = self._parsed(limit.name, getattr(self, limit.name), limit.parse, limit.lifted)
                object.__setattr__(self, limit.name, value)
        if not isinstance(self.limits, Mapping):
            raise PolicyError(f"policy {self.name!r}: limits must be a mapping, found {short_repr(self.limits)}")
        _refuse_unknown(self.name, self.limits, LIMITS)
        own = {key: self._parsed(key, value, LIMITS[key].parse) for key, value in self.limits.items()}
        object.__setattr__(self, "limits", own)
        if self.on_ambiguous not in ("answer", "clarify"):
            raise PolicyError(f"policy {self.name!r}: on_ambiguous must be 'answer' or 'clarify'")
        if not isinstance(self.rules, tuple) or not all(isinstance(rule, Rule) for rule in self.rules):
            raise PolicyError(f"policy {self.name!r}: rules must be a tuple of Rule, found {short_repr(self.rules)}")
        if self.models is not None and not _are_names(self.models):
            found = short_repr(self.models)
            raise PolicyError(f"policy {self.name!r}: models must be a list of model names, found {found}")

    def __getattr__(self, name: str) -> Any:
        """Return what the policy sets for a registered limit that is not a field, or None."""
        if name in LIMITS:
            return self.limits.get(name)
        raise AttributeError(f"a Policy has no {name!r}")

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            values = tuple(getattr(self, field.name) for field in fields(self) if field.hash is not False)
            object.__setattr__(self, "_hash", hash(values))
            return self._hash

    def allows(self, model: Model) -> bool:
        """Return whether a model is among those the policy names."""
        return self.models is None or any(name in self.models for name in (model.name, *model.aliases))

    def _parsed(self, name: str, value: Any, parse: Callable[[Any], Any], lifted: Any = None) -> Any:
        if value is None and name not in _WEIGHTS:
            return lifted
        try:
            return parse(value)
        except ValueError as error:
            raise PolicyError(f"policy {self.name!r}: {name} {error}") from error


_WEIGHTS = {
    **dict.fromkeys(
        ("success_weight", "latency_weight_per_s", "cost_weight_per_usd", "default_margin"), number(high=1e12)
    ),
    **dict.fromkeys(("clarify_at", "exploration", "exploration_floor"), number(0.0, 1.0)),
    "confidence": number(0.5, 0.9999),
    **dict.fromkeys(("cascade", "cascade_buffer"), flag),
}
_OPTIONAL = {  # may be "none"
    "exploration_gap": number(1e-6),
    "exploration_half_life_outcomes": number(1.0),
    "max_loss": number(0.0, 1.0),
}


def _are_names(models: Any) -> bool:
    return isinstance(models, tuple) and bool(models) and all(isinstance(name, str) for name in models)


def _refuse_unknown(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    unknown = sorted(set(given) - set(known), key=str)
    if unknown:
        raise PolicyError(f"policy {name!r}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")


PRESETS: Mapping[str, Policy] = {
    "fast": Policy("fast", latency_weight_per_s=0.1, latency_budget_s=5.0),
    "balanced": Policy("balanced"),
    "accurate": Policy(
        "accurate", latency_weight_per_s=0.001, cost_weight_per_usd=1.0, latency_budget_s=None, load_wait_s=None
    ),
}


def resolve_policy(policy: Policy | str | Path) -> Policy:
    """Return a policy from itself, a preset's name, or the path of a policy file (TOML).

    Raises `PolicyError` for an unknown name or a bad file."""
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str) and policy in PRESETS:
        return PRESETS[policy]
    if isinstance(policy, Path) or (isinstance(policy, str) and policy.endswith(".toml")):
        path = Path(policy)
        return _load(path, _modified(path))
    raise PolicyError(
        f"unknown policy {short_repr(policy)}; use {', '.join(PRESETS)}, a Policy, or the path of a .toml file"
    )


def policy_parameters(policy: Policy | str | Path) -> Mapping[str, Any]:
    """Return the weights and limits of a policy for its record; empty where it cannot be resolved any more."""
    try:
        return _parameters(resolve_policy(policy))
    except PolicyError:
        return MappingProxyType({})


@functools.lru_cache(maxsize=32)
def _parameters(policy: Policy) -> Mapping[str, Any]:
    values = {field.name: getattr(policy, field.name) for field in fields(policy) if field.name != "name"}
    values["rules"] = [rule.name for rule in policy.rules] or None
    return MappingProxyType({name: value for name, value in values.items() if value is not None})


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise PolicyError(f"cannot read the policy file {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=32)
def _load(path: Path, modified: int) -> Policy:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"cannot read the policy file {path}: {error}") from error
    rules = _rules(data.pop("rule", []), text, str(path))
    return replace(policy_from(data, path.stem), rules=rules)


def _rules(entries: Any, text: str, source: str) -> tuple[Rule, ...]:
    try:
        return rules_from(entries, text, source)
    except ValueError as error:
        raise PolicyError(str(error)) from None


def policy_from(data: Mapping[str, Any], name: str) -> Policy:
    """Return a policy from a table: `preset` names what it starts from, the other keys change it. "none" lifts a limit.

    Raises `PolicyError` for an unknown key or value."""
    values = dict(data)
    if "rule" in values:
        values["rules"] = _rules(values.pop("rule"), "", f"policy {name!r}")
    values.pop("learn", None)  # what `training.learn` may do, see docs/teach.md
    preset = values.pop("preset", "balanced")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise PolicyError(f"policy {name!r}: unknown preset {short_repr(preset)}; use {', '.join(PRESETS)}")
    own = {field.name for field in fields(Policy)} - {"limits"}
    _refuse_unknown(name, values, own | LIMITS.keys())
    for key in ("models", *_OPTIONAL, *LIMITS):
        if values.get(key) == "none":
            values[key] = None
    if isinstance(values.get("models"), list):
        values["models"] = tuple(values["models"])
    registered = {key: values.pop(key) for key in list(values) if key not in own}
    limits = {key: value for key, value in registered.items() if value is not None}
    return replace(PRESETS[preset], **{"name": name, **values}, limits=limits)
