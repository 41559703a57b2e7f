"""Metrics in Prometheus' text format (version 0.0.4), with the names of OpenTelemetry's GenAI conventions.

`gen_ai.client.operation.duration` becomes `gen_ai_client_operation_duration_seconds`, as the OpenTelemetry
specification's mapping to Prometheus has it; what the conventions do not know is named `router_ml_...`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from router_ml.arm import split_key, think_text
from router_ml.events.writer import WriterState
from router_ml.monitor.metrics import Counters, Histogram, LabelSet, LiveMetrics
from router_ml.monitor.summary import Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WINDOW_S = 300.0

Samples = Iterable[tuple[Mapping[str, str], float]]


def prometheus(
    metrics: LiveMetrics,
    *,
    writer: WriterState | None = None,
    firing: Iterable[tuple[str, str]] = (),
    backends: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return everything as text for a scrape. `firing` holds the rule and subject of each alert that fires, `backends`
    the gateway's row for each model on each host."""
    from prometheus_client import generate_latest  # takes 70 ms to import, and only a scrape needs it

    counters = metrics.counters
    families = [*_counted(counters), *_histograms(counters), *_windowed(metrics.snapshot(_WINDOW_S)), _firing(firing)]
    families += _queues(backends) if backends else []
    if writer is not None:
        families += _writer(writer)
    return generate_latest(_Families(families)).decode()


class _Families:
    """What `generate_latest` takes for a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _family(name: str, kind: str, text: str, samples: Samples) -> Metric:
    from prometheus_client import Metric

    family = Metric(name, text, kind)
    for labels, value in samples:
        family.add_sample(f"{name}_total" if kind == "counter" else name, _clean(labels), value)
    return family


def _counted(counters: Counters) -> Iterator[Metric]:
    yield _family(
        "router_ml_requests", "counter", "Requests served or failed.",
        [(_chat(labels), count) for labels, count in sorted(counters.requests.items())],
    )  # fmt: skip
    yield _family(
        "router_ml_decisions", "counter", "Decisions by chosen model and complexity.",
        [({"model": m, "complexity": c}, count) for (m, c), count in sorted(counters.decisions.items())],
    )  # fmt: skip
    if counters.arms:
        yield _family(
            "router_ml_arm_requests", "counter", "Requests by how the model was asked, of models that have a choice.",
            [({"model": m, "think": think}, count) for (m, think), count in sorted(counters.arms.items())],
        )  # fmt: skip
    for name, text in (
        ("cache_hit", "Requests answered from the cache."),
        ("clarification", "Requests answered with a clarifying question."),
        ("fallback", "Requests a later model of the chain answered."),
        ("escalation", "Requests whose first answer a cascade replaced."),
    ):
        yield _family(f"router_ml_{name}s", "counter", text, [({}, counters.events.get(name, 0))])


def _histograms(counters: Counters) -> Iterator[Metric]:
    tokens = {
        (("gen_ai_token_type", kind), *_operation(model, variant).items()): h
        for (model, variant, kind), h in counters.tokens.items()
    }
    for name, text, table in (
        (
            "gen_ai_client_operation_duration_seconds",
            "Duration of a request, end to end.",
            _series(counters.duration_s),
        ),
        ("gen_ai_server_time_to_first_token_seconds", "Time until the first token.", _series(counters.first_token_s)),
        ("gen_ai_client_token_usage", "Tokens of a request.", tokens),
    ):
        family = _family(name, "histogram", text, ())
        for labels, histogram in sorted(table.items()):
            _add_histogram(family, _clean(dict(labels)), histogram)
        yield family


def _series(table: Mapping[LabelSet, Histogram]) -> dict[tuple[tuple[str, str], ...], Histogram]:
    return {tuple(_chat(labels).items()): histogram for labels, histogram in table.items()}


def _add_histogram(family: Metric, labels: dict[str, str], histogram: Histogram) -> None:
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    below = list(accumulate(histogram.counts))
    for bound, count in zip(bounds, below, strict=True):
        family.add_sample(f"{family.name}_bucket", labels | {"le": bound}, count)
    family.add_sample(f"{family.name}_sum", labels, histogram.total)
    family.add_sample(f"{family.name}_count", labels, below[-1])


def _windowed(snapshot: Snapshot) -> Iterator[Metric]:
    for name, attribute, text in (
        ("success_ratio", "success_rate", "Mean success of the last five minutes."),
        ("output_tokens_per_second", "output_tokens_per_s", "Output tokens a second of generation."),
        ("over_routing_ratio", "over_routing_rate", "Right answers a much faster model was as likely to give."),
        ("under_routing_ratio", "under_routing_rate", "Wrong answers where another model was likelier to be right."),
        ("saved_ratio", "saved_share", "Time saved against always using the accurate model."),
    ):
        values = [(model, getattr(summary, attribute)) for model, summary in snapshot.by_model.items()]
        samples: Samples = [({"model": model}, value) for model, value in values if value is not None]
        yield _family(f"router_ml_{name}", "gauge", text, samples)
    for name, attribute, text in (
        ("arm_success_ratio", "success_rate", "Mean success of the last five minutes, by how the model was asked."),
        ("arm_latency_p50_seconds", "latency_p50_s", "Median latency of the last five minutes, by the same."),
    ):
        arms = [(split_key(key), getattr(summary, attribute)) for key, summary in snapshot.by_arm.items()]
        samples = [({"model": m, "think": think_text(t)}, value) for (m, t), value in arms if value is not None]
        if samples:
            yield _family(f"router_ml_{name}", "gauge", text, samples)


def _firing(firing: Iterable[tuple[str, str]]) -> Metric:
    samples: Samples = [({"rule": rule, "subject": subject}, 1) for rule, subject in sorted(firing)]
    return _family("router_ml_alert_firing", "gauge", "1 for each alert that fires.", samples)


def _queues(backends: Sequence[Mapping[str, Any]]) -> list[Metric]:
    return [
        _family(
            f"router_ml_requests_{state}",
            "gauge",
            text,
            [({"model": row["model"], "host": row["host"]}, row[state]) for row in backends],
        )
        for state, text in (("running", "Requests at a model host."), ("waiting", "Requests that wait for a place."))
    ]


def _writer(state: WriterState) -> list[Metric]:
    return [
        _family("router_ml_events_written", "counter", "Events in the store.", [({}, state.written)]),
        _family("router_ml_events_dropped", "counter", "Events that were never stored.", [({}, state.dropped)]),
        _family("router_ml_events_pending", "gauge", "Events that wait to be written.", [({}, state.pending)]),
    ]


def _operation(model: str, variant: str) -> dict[str, str]:
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "ollama", "gen_ai_request_model": model}
    return labels | ({"router_ml_variant": variant} if variant else {})


def _chat(labels: LabelSet) -> dict[str, str]:
    model, variant, error = labels
    return _operation(model, variant) | ({"error_type": error} if error else {})


def _clean(labels: Mapping[str, str]) -> dict[str, str]:
    """Make a label value that any scraper reads: UTF-8 without control characters (the newline is escaped)."""
    return {
        name: "".join("?" if (ord(c) < 32 and c != "\n") or 0xD800 <= ord(c) < 0xE000 else c for c in value)
        for name, value in labels.items()
    }
