"""What the gateway adds to a bare ollama client, against the same double in a process of its own.

    python -m benchmarks.gateway_overhead --requests 1000

Bare and routed requests alternate, so that both meet the same machine. The decision itself is subtracted. With
`--wired` the gateway is the whole one of `build_gateway`: real router, event store, experiments.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ollama

from router_ml.serve import Gateway
from router_ml.serve.build import build_gateway
from router_ml.settings import Settings
from tests.ollama_double import DoubleProcess, default_models
from tests.serve.deciders import FixedDecider, catalogue_of

HELLO = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class Overhead:
    """Milliseconds of each request, in pairs."""

    bare_ms: tuple[float, ...]
    routed_ms: tuple[float, ...]  # without the decision
    bare_first_ms: tuple[float, ...]
    routed_first_ms: tuple[float, ...]
    bare_cpu_ms: tuple[float, ...]  # processor time of this process, all threads
    routed_cpu_ms: tuple[float, ...]

    @property
    def added_ms(self) -> float:
        """Median difference in milliseconds between paired calls."""
        return statistics.median(r - b for b, r in zip(self.bare_ms, self.routed_ms, strict=True))

    @property
    def added_cpu_ms(self) -> float:
        """Median difference in CPU milliseconds, decision included; little affected by other load on the machine."""
        return statistics.median(r - b for b, r in zip(self.bare_cpu_ms, self.routed_cpu_ms, strict=True))

    @property
    def slowness(self) -> float:
        """How slow the machine is now, at least 1: CPU milliseconds of a bare call, 1 ms where limits are stated."""
        return max(1.0, statistics.median(self.bare_cpu_ms))

    @property
    def added_at_best_ms(self) -> float:
        """Difference of the 10th percentiles in milliseconds; mostly unaffected by other load."""
        return _at(self.routed_ms, 0.1) - _at(self.bare_ms, 0.1)

    @property
    def added_first_at_best_ms(self) -> float:
        """The same for the first part of a stream."""
        return _at(self.routed_first_ms, 0.1) - _at(self.bare_first_ms, 0.1)

    @property
    def added_first_ms(self) -> float:
        """The same for the first part of a stream."""
        return statistics.median(r - b for b, r in zip(self.bare_first_ms, self.routed_first_ms, strict=True))


def measure(requests: int, wired: bool = False) -> Overhead:
    """Alternate bare and routed requests, whole and streamed."""
    names = [model.name for model in default_models()]
    with DoubleProcess() as double, tempfile.TemporaryDirectory() as folder:
        client = ollama.Client(host=double.url)
        if wired:
            gateway = build_gateway(Settings(ollama_host=double.url, state_dir=Path(folder)))
        else:
            gateway = Gateway(FixedDecider(*names), catalogue_of(*names), default_host=double.url)
        with gateway:
            for _ in range(20):
                client.chat(names[0], HELLO)
                model = gateway.chat(HELLO).model
            rows = [
                (*_whole(client, gateway, model), *_first(client, gateway, model), *_cpu(client, gateway, model))
                for _ in range(requests)
            ]
    return Overhead(*(tuple(column) for column in zip(*rows, strict=True)))


def _whole(client: ollama.Client, gateway: Gateway, model: str) -> tuple[float, float]:
    began = time.perf_counter()
    client.chat(model, HELLO)
    bare_s = time.perf_counter() - began
    began = time.perf_counter()
    answer = gateway.chat(HELLO)
    routed_s = time.perf_counter() - began - answer.timings.decide_s
    return 1000 * bare_s, 1000 * routed_s


def _first(client: ollama.Client, gateway: Gateway, model: str) -> tuple[float, float]:
    began = time.perf_counter()
    parts = client.chat(model, HELLO, stream=True)
    next(iter(parts))
    bare_s = time.perf_counter() - began
    list(parts)
    began = time.perf_counter()
    stream = gateway.chat(HELLO, stream=True)
    next(stream)
    routed_s = time.perf_counter() - began
    list(stream)
    return 1000 * bare_s, 1000 * (routed_s - stream.answer.timings.decide_s)


def _cpu(client: ollama.Client, gateway: Gateway, model: str) -> tuple[float, float]:
    began = time.process_time()
    client.chat(model, HELLO)
    bare_s = time.process_time() - began
    began = time.process_time()
    gateway.chat(HELLO)
    return 1000 * bare_s, 1000 * (time.process_time() - began)


def _at(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


def _quantiles(values: Sequence[float]) -> str:
    return "  ".join(f"p{int(100 * q)} {_at(values, q):6.2f} ms" for q in (0.1, 0.5, 0.9, 0.95))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_overhead", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--wired", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.requests, arguments.wired)
    print(f"bare client        {_quantiles(result.bare_ms)}")
    print(f"gateway            {_quantiles(result.routed_ms)}   adds {result.added_ms:.2f} ms (median of pairs)")
    print(f"bare first part    {_quantiles(result.bare_first_ms)}")
    print(f"gateway first part {_quantiles(result.routed_first_ms)}   adds {result.added_first_ms:.2f} ms")
    print(f"processor time     adds {result.added_cpu_ms:.2f} ms, the decision included")


if __name__ == "__main__":
    main()
