"""Module paths and names of earlier releases that still work, with one DeprecationWarning each.

An old module is an empty stand-in: reading a name from it reads that name from the modules that hold it now.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

PACKAGES = frozenset(
    f"router_ml.{name}" for name in ("backends", "cache", "features", "gateway", "predictors", "selection", "telemetry")
)

MODULES: dict[str, tuple[str, ...]] = {
    "router_ml.backends.answer": ("router_ml.serve.answer",),
    "router_ml.backends.background": ("router_ml.serve.background",),
    "router_ml.backends.breaker": ("router_ml.hosts.breaker",),
    "router_ml.backends.failure": ("router_ml.hosts.failure",),
    "router_ml.backends.fallback": ("router_ml.serve.order",),
    "router_ml.backends.fleet": ("router_ml.hosts.fleet", "router_ml.hosts.backend"),
    "router_ml.backends.fresh": ("router_ml.hosts.refresh",),
    "router_ml.backends.gate": ("router_ml.hosts.gate",),
    "router_ml.backends.names": ("router_ml.hosts.names",),
    "router_ml.backends.ollama": ("router_ml.hosts.ollama",),
    "router_ml.backends.options": ("router_ml.hosts.options",),
    "router_ml.backends.preload": ("router_ml.serve.demand",),
    "router_ml.backends.rates": ("router_ml.hosts.rates",),
    "router_ml.backends.request": ("router_ml.serve.request", "router_ml.serve.wire"),
    "router_ml.backends.stream": ("router_ml.serve.stream",),
    "router_ml.cache.decisions": ("router_ml.decide.decision_cache",),
    "router_ml.cache.exact": ("router_ml.serve.answer_cache.exact",),
    "router_ml.cache.guard": ("router_ml.serve.answer_cache.guard",),
    "router_ml.cache.key": ("router_ml.serve.answer_cache.key",),
    "router_ml.cache.semantic": ("router_ml.serve.answer_cache.semantic",),
    "router_ml.config": ("router_ml.settings",),
    "router_ml.coordinator": ("router_ml.serve.node",),
    "router_ml.decide.features.embedder": ("router_ml.decide.embedder",),
    "router_ml.default": ("router_ml.decide.api",),
    "router_ml.experiments.board": ("router_ml.experiments.state",),
    "router_ml.experiments.guardrail": ("router_ml.experiments.guardrails",),
    "router_ml.features.composition": ("router_ml.decide.features.composition",),
    "router_ml.features.cues": ("router_ml.decide.features.cues",),
    "router_ml.features.embedder": ("router_ml.decide.embedder",),
    "router_ml.features.extractor": ("router_ml.decide.features.extractor",),
    "router_ml.features.onnx": ("router_ml.decide.features.onnx",),
    "router_ml.features.sentence_transformer": ("router_ml.decide.features.sentence_transformer",),
    "router_ml.features.surface": ("router_ml.decide.features.surface",),
    "router_ml.features.toolbox": ("router_ml.decide.features.toolbox",),
    "router_ml.features.tools": ("router_ml.decide.features.tools",),
    "router_ml.features.wordpiece": ("router_ml.decide.features.onnx",),
    "router_ml.gateway": ("router_ml.serve",),
    "router_ml.gateway.call": ("router_ml.serve.call",),
    "router_ml.gateway.chooser": ("router_ml.serve.choose",),
    "router_ml.gateway.clarification": ("router_ml.serve.clarify",),
    "router_ml.gateway.gateway": ("router_ml.serve.gateway",),
    "router_ml.gateway.job": ("router_ml.serve.request_state",),
    "router_ml.gateway.journal": ("router_ml.serve.record",),
    "router_ml.gateway.kept": ("router_ml.serve.answer_cache.answers",),
    "router_ml.gateway.preloader": ("router_ml.serve.preload",),
    "router_ml.gateway.walker": ("router_ml.serve.fallback",),
    "router_ml.microbatch": ("router_ml.decide.batching",),
    "router_ml.predictors.bundle": ("router_ml.bundles.format",),
    "router_ml.predictors.complexity": ("router_ml.decide.predictors.complexity",),
    "router_ml.predictors.forest": ("router_ml.decide.predictors.forest",),
    "router_ml.predictors.heads": ("router_ml.decide.predictors.heads",),
    "router_ml.predictors.heuristic": ("router_ml.decide.predictors.heuristic",),
    "router_ml.predictors.neighbours": ("router_ml.decide.predictors.neighbours",),
    "router_ml.predictors.outcomes": ("router_ml.decide.predictors.outcomes",),
    "router_ml.rollout": ("router_ml.experiments.rollout",),
    "router_ml.router": ("router_ml.decide.router",),
    "router_ml.rows": ("router_ml.jsonl",),
    "router_ml.schema": ("router_ml.types",),
    "router_ml.selection.constraints": ("router_ml.decide.selection.limits",),
    "router_ml.selection.policy": ("router_ml.decide.selection.policy",),
    "router_ml.selection.selector": ("router_ml.decide.selection.selector",),
    "router_ml.selection.utility": ("router_ml.decide.selection.utility",),
    "router_ml.shelf": ("router_ml.bundles.registry",),
    "router_ml.spelling": ("router_ml.suggestions",),
    "router_ml.table": ("router_ml.terminal",),
    "router_ml.telemetry.alerts": ("router_ml.monitor.alerts",),
    "router_ml.telemetry.event": ("router_ml.events.event",),
    "router_ml.telemetry.expectation": ("router_ml.monitor.expectation",),
    "router_ml.telemetry.export": ("router_ml.events.export",),
    "router_ml.telemetry.exposition": ("router_ml.monitor.prometheus",),
    "router_ml.telemetry.lock": ("router_ml.files",),
    "router_ml.telemetry.metrics": ("router_ml.monitor.metrics",),
    "router_ml.telemetry.migration": ("router_ml.events.migrations",),
    "router_ml.telemetry.mlflow_sink": ("router_ml.experiments.mlflow",),
    "router_ml.telemetry.mlflow_store": ("router_ml.experiments.mlflow_store",),
    "router_ml.telemetry.postgres_store": ("router_ml.events.postgres",),
    "router_ml.telemetry.privacy": ("router_ml.events.privacy",),
    "router_ml.telemetry.reading": ("router_ml.events.sql",),
    "router_ml.telemetry.report": ("router_ml.experiments.report",),
    "router_ml.telemetry.retention": ("router_ml.events.retention",),
    "router_ml.telemetry.rules": (
        "router_ml.monitor.rules",
        "router_ml.monitor.failure_rate",
        "router_ml.monitor.latency_drift",
    ),
    "router_ml.telemetry.shadow": ("router_ml.experiments.shadow",),
    "router_ml.telemetry.sqlite_store": ("router_ml.events.sqlite",),
    "router_ml.telemetry.store": (
        "router_ml.events.store",
        "router_ml.events.connect",
    ),
    "router_ml.telemetry.summary": (
        "router_ml.monitor.summary",
        "router_ml.events.judgement",
    ),
    "router_ml.telemetry.writer": ("router_ml.events.writer",),
    "router_ml.watch": ("router_ml.monitor.watch",),
    "router_ml.wiring": ("router_ml.serve.build",),
    "training.alert_replay": ("benchmarks.alert_replay",),
    "training.baselines": ("training.measuring.baselines",),
    "training.bert_graph": ("training.complexity.bert_graph",),
    "training.complexity_fit": ("training.complexity.complexity_fit",),
    "training.complexity_report": ("benchmarks.complexity_report",),
    "training.encoders": ("training.complexity.encoder_trainer",),
    "training.evaluation_plots": ("training.measuring.plots",),
    "training.export": ("training.complexity.encoder_export",),
    "training.fidelity": ("benchmarks.fidelity",),
    "training.finetune": ("training.complexity.finetune",),
    "training.labelling": ("benchmarks.labelling",),
    "training.limits": ("benchmarks.limits",),
    "training.metrics": ("training.measuring.metrics",),
    "training.mlflow_model": ("training.tracking.mlflow_model",),
    "training.plots": ("training.measuring.plots",),
    "training.scores": ("training.measuring.classification",),
    "training.simulate": ("benchmarks.simulate",),
    "training.speed": ("benchmarks.speed",),
    "training.stopwatch": ("benchmarks.stopwatch",),
    "training.study": ("benchmarks.study",),
}

NAMES = {
    "Board": "ExperimentState",
    "Journal": "EventRecorder",
    "KeptAnswers": "CachedAnswers",
    "KeptText": "StoredText",
    "Latch": "Halt",
    "Look": "Analysis",
    "NameBook": "ModelNames",
    "PULL": "SHRINKAGE",
    "Pointer": "ActiveBundle",
    "Request": "UnitRequest",
    "SAMPLES": "SAMPLE_QUERIES",
    "REMIND_S": "REPEAT_S",
    "Rule": "AlertRule",
    "Selection": "EventFilter",
    "UNHEARD_S": "STALE_AFTER_S",
    "Walker": "FallbackRunner",
    "Worlds": "SimulatedUnits",
    "asked_back": "clarifying_answer",
    "asks_back": "asks_clarifying_question",
    "forget_pointer": "clear_active",
    "looks_of": "analyses_of",
    "read_pointer": "read_active",
    "warn_of_slips": "warn_of_typos",
    "write_pointer": "write_active",
}


def renamed(old: str, new: str) -> Callable[..., Any]:
    """Return a method that calls method `new`, for its name in earlier versions; warns that `old` is deprecated."""

    def method(self: Any, *args: Any, **values: Any) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is now {new}", DeprecationWarning, stacklevel=2)
        found = getattr(self, new)
        return found(*args, **values) if callable(found) else found

    return method


class _MovedModule(ModuleType):
    """Stands for a module that moved; names are looked up, and set, where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for target in map(importlib.import_module, MODULES.get(self.__name__, ())):
            for known in (name, NAMES.get(name, name)):
                if hasattr(target, known):
                    return getattr(target, known)
        raise AttributeError(f"module {self.__name__!r} has moved to {MODULES.get(self.__name__)} and has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if not name.startswith("__") and self.__name__ in MODULES and not isinstance(value, _MovedModule):
            setattr(importlib.import_module(MODULES[self.__name__][0]), name, value)


class _MovedLoader:
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES.get(module.__name__)
        if new:
            warnings.warn(f"{module.__name__} has moved to {', '.join(new)}", DeprecationWarning, stacklevel=6)

    def get_code(self, name: str) -> CodeType | None:
        """Return the code of the new module, so that `python -m OLD` runs it."""
        from importlib.util import find_spec

        spec = find_spec(MODULES[name][0])
        if spec is None or spec.origin is None:
            raise ImportError(f"{name} has moved to {MODULES[name][0]}, which is not installed")
        with open(spec.origin, encoding="utf-8") as source:
            return compile(source.read(), spec.origin, "exec")


class _MovedFinder:
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if name not in MODULES and name not in PACKAGES:
            return None
        return ModuleSpec(name, _MovedLoader(), is_package=name in PACKAGES)  # type: ignore[arg-type]


def install() -> None:
    """Let imports of old module paths succeed. Found modules are never affected: this finder comes last."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(_MovedFinder())
