"""The figures in Prometheus' text format (version 0.0.4), with the names of OpenTelemetry's GenAI conventions.

`gen_ai.client.operation.duration` becomes `gen_ai_client_operation_duration_seconds`, as the OpenTelemetry
specification's mapping to Prometheus has it; what the conventions do not know is named `router_ml_...`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from router_ml.events.writer import WriterState
from router_ml.monitor.metrics import Histogram, Labels, LiveMetrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WINDOW_S = 300.0


def prometheus(
    metrics: LiveMetrics, *, writer: WriterState | None = None, firing: Iterable[tuple[str, str]] = ()
) -> str:
    """Everything as text for a scrape. `firing` holds the rule and subject of each alert that fires."""
    lines = [
        *_requests(metrics),
        *_histograms(
            "gen_ai_client_operation_duration_seconds", "Duration of a request, end to end.",
            {_chat(labels): h for labels, h in metrics.counters.duration_s.items()},
        ),
        *_histograms(
            "gen_ai_server_time_to_first_token_seconds", "Time until the first token.",
            {_chat(labels): h for labels, h in metrics.counters.first_token_s.items()},
        ),
        *_histograms(
            "gen_ai_client_token_usage", "Tokens of a request.",
            {
                _labels(_operation(model, variant) | {"gen_ai_token_type": kind}): h
                for (model, variant, kind), h in metrics.counters.tokens.items()
            },
        ),
        *_windowed(metrics),
        *_firing(firing),
    ]  # fmt: skip
    if writer is not None:
        lines += _writer(writer)
    return "\n".join(lines) + "\n"


def _requests(metrics: LiveMetrics) -> Iterator[str]:
    counters = metrics.counters
    yield from _head("router_ml_requests_total", "counter", "Requests served or failed.")
    for labels, count in sorted(counters.requests.items()):
        yield f"router_ml_requests_total{_chat(labels)} {count}"
    yield from _head("router_ml_decisions_total", "counter", "Decisions by chosen model and complexity.")
    for (model, complexity), count in sorted(counters.decisions.items()):
        yield f"router_ml_decisions_total{_labels({'model': model, 'complexity': complexity})} {count}"
    for name, text in (
        ("cache_hit", "Requests answered from the cache."),
        ("clarification", "Requests answered with a question to the user."),
        ("fallback", "Requests a later model of the chain answered."),
        ("escalation", "Requests a stronger model answered after a weak answer."),
    ):
        yield from _head(f"router_ml_{name}s_total", "counter", text)
        yield f"router_ml_{name}s_total {counters.events.get(name, 0)}"


def _windowed(metrics: LiveMetrics) -> Iterator[str]:
    snapshot = metrics.snapshot(_WINDOW_S)
    for name, attribute, text in (
        ("success_ratio", "success_rate", "Mean success of the last five minutes."),
        ("output_tokens_per_second", "output_tokens_per_s", "Output tokens a second of generation."),
        ("over_routing_ratio", "over_routing_rate", "Right answers a much faster model was as likely to give."),
        ("under_routing_ratio", "under_routing_rate", "Wrong answers where another model was likelier to be right."),
        ("saved_ratio", "saved_share", "Time saved against always using the accurate model."),
    ):
        yield from _head(f"router_ml_{name}", "gauge", text)
        for model, summary in snapshot.by_model.items():
            value = getattr(summary, attribute)
            if value is not None:
                yield f"router_ml_{name}{_labels({'model': model})} {value:.9g}"


def _firing(firing: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield from _head("router_ml_alert_firing", "gauge", "1 for each alert that fires.")
    for rule, subject in sorted(firing):
        yield f"router_ml_alert_firing{_labels({'rule': rule, 'subject': subject})} 1"


def _writer(state: WriterState) -> list[str]:
    return [
        *_head("router_ml_events_written_total", "counter", "Events in the store."),
        f"router_ml_events_written_total {state.written}",
        *_head("router_ml_events_dropped_total", "counter", "Events that were lost because the store was away."),
        f"router_ml_events_dropped_total {state.dropped}",
        *_head("router_ml_events_pending", "gauge", "Events that wait to be written."),
        f"router_ml_events_pending {state.pending}",
    ]


def _histograms(name: str, text: str, series: Mapping[str, Histogram]) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    for labels, histogram in sorted(series.items()):
        below = 0
        for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
            below += count
            yield f"{name}_bucket{_with(labels, 'le', f'{bound:g}')} {below}"
        every = sum(histogram.counts)
        yield f"{name}_bucket{_with(labels, 'le', '+Inf')} {every}"
        yield f"{name}_sum{labels} {histogram.total:.9g}"
        yield f"{name}_count{labels} {every}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _operation(model: str, variant: str) -> dict[str, str]:
    labels = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "ollama", "gen_ai_request_model": model}
    return labels | ({"router_ml_variant": variant} if variant else {})


def _chat(labels: Labels) -> str:
    model, variant, error = labels
    return _labels(_operation(model, variant) | ({"error_type": error} if error else {}))


def _labels(pairs: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in pairs.items()) + "}"


def _with(labels: str, name: str, value: str) -> str:
    return f'{labels[:-1]},{name}="{value}"}}'


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
