"""A policy: what success, time and money are worth, and the limits nothing may cross."""

from __future__ import annotations

import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from router_ml.errors import PolicyError

OnAmbiguous = Literal["answer", "clarify"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights and limits of a choice. The utility of a model is

        success_weight * p_success - latency_weight_per_s * latency_p50 - cost_weight_per_usd * cost_usd

    Among the models within every limit the one of highest utility is chosen."""

    name: str
    success_weight: float = 1.0
    latency_weight_per_s: float = 0.02  # success one second is worth
    cost_weight_per_usd: float = 10.0  # success one dollar is worth
    latency_budget_s: float | None = 5.0  # limit on p95; a shorter budget in the context wins
    min_p_success: float = 0.0
    max_cost_usd: float | None = None  # per answer
    on_ambiguous: OnAmbiguous = "answer"  # "clarify": ask back instead of guessing
    clarify_at: float = 0.5  # probability of "ambiguous" from which to ask back
    default_margin: float = 0.05  # utility by which a query unlike the training data must favour leaving the default
    exploration: float = 0.0  # share of requests sent to a random admissible model, so that outcomes teach us
    models: tuple[str, ...] | None = None  # only these, by name or alias; None: the whole catalogue

    def __post_init__(self) -> None:
        for limit in ("success_weight", "latency_weight_per_s", "cost_weight_per_usd", "default_margin"):
            _check(self.name, limit, getattr(self, limit), 0.0, math.inf)
        for share in ("min_p_success", "clarify_at", "exploration"):
            _check(self.name, share, getattr(self, share), 0.0, 1.0)
        for optional in ("latency_budget_s", "max_cost_usd"):
            if (value := getattr(self, optional)) is not None:
                _check(self.name, optional, value, 0.0, math.inf)
        if self.on_ambiguous not in ("answer", "clarify"):
            raise PolicyError(f"policy {self.name!r}: on_ambiguous must be 'answer' or 'clarify'")
        if not isinstance(self.name, str):
            raise PolicyError(f"policy {self.name!r}: name must be a string")
        if self.models is not None and not _are_names(self.models):
            raise PolicyError(f"policy {self.name!r}: models must be a list of model names, found {self.models!r:.60}")


def _are_names(models: Any) -> bool:
    return isinstance(models, tuple) and bool(models) and all(isinstance(name, str) for name in models)


def _check(name: str, field: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isnan(value):
        bound = f"{low:g} or more" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise PolicyError(f"policy {name!r}: {field} must be a number, {bound}, found {value!r}")


PRESETS: Mapping[str, Policy] = {
    "fast": Policy("fast", latency_weight_per_s=0.1, latency_budget_s=5.0),
    "balanced": Policy("balanced"),
    "accurate": Policy("accurate", latency_weight_per_s=0.001, cost_weight_per_usd=1.0, latency_budget_s=None),
}


def resolve_policy(policy: Policy | str | Path) -> Policy:
    """A policy from itself, a preset's name, or the path of a policy file (TOML).

    Raises `PolicyError` for an unknown name or a bad file."""
    if isinstance(policy, Policy):
        return policy
    if isinstance(policy, str) and policy in PRESETS:
        return PRESETS[policy]
    if isinstance(policy, Path) or (isinstance(policy, str) and policy.endswith(".toml")):
        path = Path(policy)
        return _load(path, _modified(path))
    raise PolicyError(f"unknown policy {policy!r}; use {', '.join(PRESETS)}, a Policy, or the path of a .toml file")


def policy_parameters(policy: Policy | str | Path) -> Mapping[str, Any]:
    """Return the weights and limits of a policy for its record; empty where it cannot be resolved any more."""
    try:
        return _parameters(resolve_policy(policy))
    except PolicyError:
        return MappingProxyType({})


@functools.lru_cache(maxsize=32)
def _parameters(policy: Policy) -> Mapping[str, Any]:
    values = {field.name: getattr(policy, field.name) for field in fields(policy) if field.name != "name"}
    return MappingProxyType({name: value for name, value in values.items() if value is not None})


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise PolicyError(f"cannot read the policy file {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=32)
def _load(path: Path, modified: int) -> Policy:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"cannot read the policy file {path}: {error}") from error
    return policy_from(data, path.stem)


def policy_from(data: Mapping[str, Any], name: str) -> Policy:
    """A policy from a table: `preset` names what it starts from, the other keys change it. `none` lifts a limit.

    Raises `PolicyError` for an unknown key or value."""
    values = dict(data)
    preset = values.pop("preset", "balanced")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise PolicyError(f"policy {name!r}: unknown preset {preset!r}; use {', '.join(PRESETS)}")
    known = {field.name for field in fields(Policy)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise PolicyError(f"policy {name!r}: unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    for limit in ("latency_budget_s", "max_cost_usd", "models"):
        if values.get(limit) == "none":
            values[limit] = None
    if isinstance(values.get("models"), list):
        values["models"] = tuple(values["models"])
    return replace(PRESETS[preset], **{"name": name, **values})
