"""What the server adds to a direct call of a host: python -m benchmarks.http_overhead --requests 500

The host is a test double; host, server and client are processes of their own. Direct, named and routed requests
alternate, so that all meet the same machine. `named` asks for a model by its name, which passes through unchanged;
`routed` asks for `auto`, with the decision in it (the same query each time, so a decision cache may answer). With
`--litellm PROGRAM` LiteLLM's proxy, of an environment of its own, takes its turn, too; all speak OpenAI's API then.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from tests.ollama_double import DoubleProcess, default_models

_MODEL = default_models()[1].name
_START_S = 30.0
_JSON = {"content-type": "application/json"}
_OPENAI = "/v1/chat/completions"


@contextmanager
def served(host: str) -> Iterator[str]:
    """Run a server in front of a host in a process of its own, and yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as state:
        command = [
            sys.executable,
            "-m",
            "router_ml",
            "serve",
            "--port",
            str(port),
            "--ollama",
            host,
            "--log-level",
            "WARNING",
        ]
        environment = {**os.environ, "ROUTER_ML_STATE_DIR": state}
        process = subprocess.Popen(command, env=environment)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def litellm_proxy(program: str, host: str) -> Iterator[str]:
    """Run LiteLLM's proxy with one model of a host, and yield its URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    model = {"model": f"ollama_chat/{_MODEL}", "api_base": host}
    config = {"model_list": [{"model_name": _MODEL, "litellm_params": model}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(config, file)  # JSON is YAML, too
        file.flush()
        command = [program, "--config", file.name, "--port", str(port), "--host", "127.0.0.1"]
        environment = {**os.environ, "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # loopback only
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, "/health/liveliness", 120.0)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _wait(url: str, path: str = "/healthz", patience_s: float = _START_S) -> None:
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        try:
            httpx.get(f"{url}{path}")
            return
        except httpx.TransportError:
            time.sleep(0.02)
    raise RuntimeError("the server did not start")


def _body(model: str, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "find a free hour with Dana and mail her the agenda"}]
    return json.dumps({"model": model, "messages": messages, "stream": stream}).encode()


def _whole_ms(client: httpx.Client, url: str, model: str, path: str = "/api/chat") -> float:
    began = time.perf_counter()
    client.post(f"{url}{path}", content=_body(model, False), headers=_JSON).raise_for_status()
    return 1000 * (time.perf_counter() - began)


def _first_ms(client: httpx.Client, url: str, model: str) -> float:
    began = time.perf_counter()
    with client.stream("POST", f"{url}/api/chat", content=_body(model, True)) as answer:
        parts = answer.iter_raw()
        next(parts)
        took_ms = 1000 * (time.perf_counter() - began)
        for _ in parts:
            pass
    return took_ms


def measure(requests: int) -> dict[str, list[float]]:
    """Return the milliseconds of each kind of request."""
    found: dict[str, list[float]] = {}
    with DoubleProcess() as double, served(double.url) as url, httpx.Client(timeout=30) as client:
        kinds = {"direct": (double.url, _MODEL), "named": (url, _MODEL), "routed": (url, "auto")}
        for turn in range(requests + 20):
            for kind, (where, model) in kinds.items():
                whole, first = _whole_ms(client, where, model), _first_ms(client, where, model)
                if turn >= 20:
                    found.setdefault(kind, []).append(whole)
                    found.setdefault(f"{kind} first byte", []).append(first)
    return found


def load(requests: int, clients: int) -> dict[str, float]:
    """Return the requests per second that concurrent clients get, for each kind of request."""
    found = {}
    with DoubleProcess() as double, served(double.url) as url:
        for kind, (where, model) in {
            "direct": (double.url, _MODEL),
            "named": (url, _MODEL),
            "routed": (url, "auto"),
        }.items():
            with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=clients)) as client:

                def one(_: int, client: httpx.Client = client, where: str = where, model: str = model) -> float:
                    return _whole_ms(client, where, model)

                with ThreadPoolExecutor(clients) as pool:
                    list(pool.map(one, range(clients)))
                    began = time.perf_counter()
                    list(pool.map(one, range(requests)))
                    found[kind] = requests / (time.perf_counter() - began)
    return found


def compare(program: str, requests: int, clients: Sequence[int]) -> None:
    """Print latencies and requests per second beside LiteLLM's proxy, all through OpenAI's API."""
    with DoubleProcess() as double, served(double.url) as url, litellm_proxy(program, double.url) as other:
        kinds = {
            "direct": (double.url, _MODEL),
            "named": (url, _MODEL),
            "routed": (url, "auto"),
            "litellm": (other, _MODEL),
        }
        found: dict[str, list[float]] = {kind: [] for kind in kinds}
        with httpx.Client(timeout=60) as client:
            for turn in range(requests + 20):
                for kind, (where, model) in kinds.items():
                    took_ms = _whole_ms(client, where, model, _OPENAI)
                    if turn >= 20:
                        found[kind].append(took_ms)
        _print_latencies(found)
        for number in clients:
            rates = {kind: _rate(where, model, requests, number) for kind, (where, model) in kinds.items()}
            print(f"{number} clients, requests a second: " + "  ".join(f"{k} {v:6.0f}" for k, v in rates.items()))


def _rate(where: str, model: str, requests: int, clients: int) -> float:
    with (
        httpx.Client(timeout=120, limits=httpx.Limits(max_connections=clients)) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        list(pool.map(lambda _: _whole_ms(client, where, model, _OPENAI), range(clients)))
        began = time.perf_counter()
        list(pool.map(lambda _: _whole_ms(client, where, model, _OPENAI), range(requests)))
        return requests / (time.perf_counter() - began)


def _print_latencies(found: Mapping[str, Sequence[float]]) -> None:
    for kind, values in found.items():
        base = found["direct first byte" if kind.endswith("byte") else "direct"]
        added = statistics.median(one - other for one, other in zip(values, base, strict=True))
        quantiles = "  ".join(f"p{100 * q:g} {_at(values, q):6.2f}" for q in (0.1, 0.5, 0.9, 0.99))
        print(f"{kind:<20}{quantiles} ms   adds {added:5.2f} ms (median of pairs)")


def _at(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http_overhead", description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="numbers of clients for requests a second")
    parser.add_argument("--litellm", metavar="PROGRAM", help="the litellm command, to measure its proxy beside ours")
    arguments = parser.parse_args()
    if arguments.litellm:
        compare(arguments.litellm, arguments.requests, arguments.clients)
        return
    _print_latencies(measure(arguments.requests))
    for clients in arguments.clients:
        rates = "  ".join(f"{kind} {rate:6.0f}" for kind, rate in load(arguments.requests, clients).items())
        print(f"{clients} clients, requests a second: {rates}")


if __name__ == "__main__":
    main()
