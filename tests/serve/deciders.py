"""Deciders for tests: they choose what they are told."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from router_ml.catalogue import Catalogue, Model, Prior
from router_ml.types import LABELS, Candidate, Context, Decision, MachineState, Quantiles


def catalogue_of(*names: str, hosts: Mapping[str, Sequence[str]] | None = None, latency_s: float = 0.05) -> Catalogue:
    """A catalogue of quick models."""
    prior = Prior(dict.fromkeys(LABELS, latency_s), dict.fromkeys(LABELS, 0.9), latency_log_sd=0.2)
    return Catalogue(tuple(Model(name, prior, hosts=tuple((hosts or {}).get(name, ()))) for name in names))


class FixedDecider:
    """Ranks the given models in the given order, whatever is asked."""

    def __init__(self, *models: str, p95_s: float = 0.1, utilities: Sequence[float] | None = None) -> None:
        self.models = models
        self.p95_s = p95_s
        self.utilities = utilities or [1.0 - 0.1 * i for i in range(len(models))]
        self.seen: list[tuple[str, Context, Any, MachineState | None, str | None]] = []
        self._ids = itertools.count()

    def decide(
        self,
        query: str,
        context: Any = None,
        policy: Any = "balanced",
        machine: MachineState | None = None,
        variant: str | None = None,
    ) -> Decision:
        self.seen.append((query, context, policy, machine, variant))
        latency = Quantiles(self.p95_s / 2, self.p95_s * 0.8, self.p95_s)
        ranked = tuple(
            Candidate(model, 0.9, latency, 0.0, utility)
            for model, utility in zip(self.models, self.utilities, strict=True)
        )
        return Decision(
            model=self.models[0],
            complexity="simple",
            complexity_probabilities={"simple": 1.0, "moderate": 0.0, "complex": 0.0, "ambiguous": 0.0},
            ranked=ranked,
            action="answer",
            reason="fixed",
            decision_id=f"d{next(self._ids)}",
            policy=policy if isinstance(policy, str) else policy.name,
            bundle="test",
            variant=variant,
        )


class Unsure(FixedDecider):
    """Finds everything ambiguous, under a policy that asks a clarifying question."""

    def decide(self, *arguments: Any, **more: Any) -> Decision:
        return dataclasses.replace(super().decide(*arguments, **more), complexity="ambiguous", action="clarify")


class BrokenDecider:
    """Fails as foreign code may."""

    def decide(self, *_: Any, **__: Any) -> Decision:
        raise RuntimeError("broken")


class Recording:
    """Keeps the events it gets."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def record(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
