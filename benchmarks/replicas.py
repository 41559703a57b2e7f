"""Replicas that behave as one, under kills: python -m benchmarks.replicas [--requests 3000 --kills 20]

Starts real PostgreSQL and Redis servers, hosts (test doubles) and replicas of `router-ml serve` on the loopback
interface, sends requests to the replicas, kills (and freezes, and starts again) one part after the other at random, and
checks what must hold: never more calls at once per model and host than ROUTER_ML_PARALLEL, no request served twice,
none lost but those in flight at a killed replica, an experiment that one replica halts served by nobody after two
seconds. With `--kills 0` it measures what shared state costs; `--places` lets four processes take and give back places
and nothing else, which is fast. Exit status 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import router_ml
from benchmarks import places
from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, OutcomeEvent
from router_ml.events.store import EventFilter
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import FOLDER
from router_ml.experiments.state import ExperimentState, Halt
from router_ml.shared_state import patience
from router_ml.shared_state.redis import RedisState
from tests.ollama_double import OllamaDouble, default_models
from tests.servers import PostgresServer, RedisServer, free_port

CATALOGUE = Path(router_ml.__file__).with_name("catalogue.toml")
_EXPERIMENT = "campaign"
_HALT_WITHIN_S = 2.0
_START_S = 90.0
_DOWN_S = (0.2, 2.0)  # how long a killed part stays away


# -- a host that counts ---------------------------------------------------------------------------------------------


class CountingHost(OllamaDouble):
    """A double that writes each call's begin and end to a file, so that a kill takes nothing away."""

    log_fd = -1

    async def _run_generation(self, model: Any, body: Any, fault: Any, response: Any, seen: Any, *more: Any) -> None:
        text = str((body.get("messages") or [{}])[-1].get("content", ""))
        number = text.rpartition(" ")[2] or "-"
        self._note("begin", time.monotonic(), model.name, number)
        try:
            await super()._run_generation(model, body, fault, response, seen, *more)
        finally:
            whole = seen.first_byte_s is not None
            self._note("end" if whole else "cut", seen.first_byte_s or time.monotonic(), model.name, number)

    def _note(self, what: str, at_s: float, model: str, number: str) -> None:
        os.write(self.log_fd, f"{what} {at_s:.6f} {model} {number}\n".encode())


def run_host(port: int, log: Path, call_s: float) -> None:
    """Serve as a host until killed."""
    models = [dataclasses.replace(m, decode_tokens_per_s=6 / call_s, parallel=64) for m in default_models()]
    host = CountingHost(models, port=port, jitter_s=call_s)
    host.log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with host:
        signal.pause()


# -- the parts that are killed --------------------------------------------------------------------------------------


@dataclass
class Process:
    """A process that is started again as it was."""

    command: list[str]
    url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None  # of a host that counts
    errors: Path | None = None
    killed_s: list[float] = field(default_factory=list)
    _running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with open(self.errors or os.devnull, "ab") as log:
            self._running = subprocess.Popen(self.command, env={**os.environ, **self.environment}, stderr=log)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if self._running is not None:
            self._running.kill()
            self._running.wait(10)
            self.killed_s.append(time.monotonic())
            if self.log is not None:
                with open(self.log, "ab") as log:
                    log.write(f"killed {time.monotonic():.6f} - -\n".encode())


@dataclass
class Setup:
    """Every part of a campaign."""

    folder: Path
    postgres: PostgresServer
    redis: RedisServer
    hosts: list[Process]
    replicas: list[Process]


@contextlib.contextmanager
def running(options: argparse.Namespace) -> Iterator[Setup]:
    """Start every part, and end them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="replicas")))
        postgres, redis = PostgresServer(), RedisServer()
        stack.callback(postgres.close)
        postgres.start()
        redis.start()
        stack.callback(redis.kill)
        hosts = [_host(folder, number, options) for number in range(options.hosts)]
        shared = {} if options.alone else {"ROUTER_ML_REDIS": redis.url}
        common = {
            "ROUTER_ML_CATALOGUE": str(CATALOGUE),
            "ROUTER_ML_EVENTS": postgres.url,
            "ROUTER_ML_PARALLEL": str(options.parallel),
            **shared,
        }
        replicas = [_replica(folder, number, [h.url for h in hosts], common) for number in range(options.replicas)]
        for part in (*hosts, *replicas):
            stack.callback(part.kill)
            part.start()
        for part in (*hosts, *replicas):
            _wait(part.url)
        yield Setup(folder, postgres, redis, hosts, replicas)


def _host(folder: Path, number: int, options: argparse.Namespace) -> Process:
    port, log = free_port(), folder / f"host{number}.log"
    command = [sys.executable, "-m", "benchmarks.replicas", "--as-host", str(port), str(log)]
    return Process([*command, "--call-s", str(options.call_s)], f"http://127.0.0.1:{port}", log=log)


def _replica(folder: Path, number: int, hosts: Sequence[str], common: Mapping[str, str]) -> Process:
    port, state = free_port(), folder / f"replica{number}"
    command = [sys.executable, "-m", "router_ml", "serve", "--port", str(port), "--ollama", *hosts]
    environment = {**common, "ROUTER_ML_STATE_DIR": str(state)}
    errors = folder / f"replica{number}.log"
    return Process([*command, "--log-level", "WARNING"], f"http://127.0.0.1:{port}", environment, errors=errors)


def _wait(url: str) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/api/version", timeout=5.0).status_code == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url}")


breaks: list[tuple[float, str]] = []  # when which kind of part was killed


# -- load and kills -------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """One request: when, to which replica, and what came back."""

    number: int
    replica: int
    began_s: float
    took_s: float = 0.0
    status: int = 0  # 0: the connection broke
    decision_id: str = ""


async def load(setup: Setup, options: argparse.Namespace, sent: list[Sent]) -> None:
    """Send every request once; one that a replica did not take, as it was down, goes to another."""
    numbers = iter(range(options.requests))
    draw = random.Random(options.seed)
    limits = httpx.Limits(max_connections=options.clients, max_keepalive_connections=options.clients)
    async with httpx.AsyncClient(timeout=60.0, limits=limits) as client:

        async def one(number: int) -> None:
            text = f"{draw.choice(('check email', 'book a flight', 'turn off the lights'))} {number}"
            body = {"model": "auto:fast", "messages": [{"role": "user", "content": text}], "stream": False}
            while True:
                at = draw.randrange(len(setup.replicas))
                request = Sent(number, at, time.monotonic())
                try:
                    answer = await client.post(f"{setup.replicas[at].url}/api/chat", json=body)
                except httpx.ConnectError:
                    await asyncio.sleep(0.05)
                    continue
                except httpx.TransportError:
                    sent.append(request)
                    return
                request.took_s = time.monotonic() - request.began_s
                request.status = answer.status_code
                request.decision_id = answer.headers.get("x-router-ml-decision-id", "")
                sent.append(request)
                return

        async def worker() -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*(worker() for _ in range(options.clients)))


async def kills(
    setup: Setup, options: argparse.Namespace, sent: list[Sent], killed: Counter[str], whole: asyncio.Lock
) -> None:
    """Kill one part after the other, spread over the requests; nobody holds `whole` while a part is away."""
    draw = random.Random(options.seed + 1)
    for number in range(options.kills):
        while len(sent) < (number + 1) * options.requests / (options.kills + 1):
            await asyncio.sleep(0.02)
        kind = draw.choice(("replica", "replica", "host", "redis", "frozen redis", "postgres"))
        async with whole:
            await _break(setup, kind, draw)
        killed[kind] += 1


async def _break(setup: Setup, kind: str, draw: random.Random) -> None:
    breaks.append((time.monotonic(), kind))
    away_s = draw.uniform(*_DOWN_S)
    if kind == "frozen redis":
        setup.redis.freeze()
        await asyncio.sleep(away_s)
        setup.redis.thaw()
        return
    part: Any = {"redis": setup.redis, "postgres": setup.postgres}.get(kind)
    part = part or draw.choice(setup.replicas if kind == "replica" else setup.hosts)
    await asyncio.to_thread(part.kill)
    await asyncio.sleep(away_s)
    await asyncio.to_thread(part.start)
    if isinstance(part, Process):
        await asyncio.to_thread(_wait, part.url)


async def halt(setup: Setup, options: argparse.Namespace, sent: list[Sent], whole: asyncio.Lock) -> float:
    """Start an experiment at one replica, halt it at another after half the requests; return the Unix time.

    No part is away just then: a halt that cannot leave its replica reaches the others later."""
    folders = [Path(replica.environment["ROUTER_ML_STATE_DIR"]) / FOLDER for replica in setup.replicas]
    old, new = Variant("old"), Variant("new", policy="fast")
    ExperimentState(folders[0]).start(Experiment(_EXPERIMENT, old, new, time.time(), unit="request"))
    while len(sent) < options.requests / 2 or ExperimentState(folders[-1]).active() is None:
        if len(sent) >= options.requests:
            return 0.0
        await asyncio.sleep(0.05)
    async with whole:
        await asyncio.sleep(1.0)
        at_s = time.time()
        ExperimentState(folders[-1]).end(Halt(_EXPERIMENT, "ROLLBACK", at_s, "the campaign halts it"))
        await asyncio.sleep(_HALT_WITHIN_S)
    return at_s


# -- what must hold -------------------------------------------------------------------------------------------------


@dataclass
class Calls:
    """What the hosts counted."""

    most: int = 0  # calls at once of one model on one host
    over: list[float] = field(default_factory=list)  # when a call began beyond the limit
    answered: Counter[str] = field(default_factory=Counter)  # whole answers by request


def count(log: Path, limit: int, calls: Calls) -> None:
    """Add one host's file. An end counts from the moment its answer was sent."""
    lines = [parts for line in log.read_text().splitlines() if len(parts := line.split()) == 4]
    rows = [(float(at), what == "begin", what, model, number) for what, at, model, number in lines]
    inside: Counter[str] = Counter()
    for at_s, _, what, model, number in sorted(rows):
        if what == "killed":
            inside.clear()
        elif what == "begin":
            inside[model] += 1
            calls.most = max(calls.most, inside[model])
            if inside[model] > limit:
                calls.over.append(at_s)
        else:
            inside[model] = max(0, inside[model] - 1)
            calls.answered[number] += what == "end"


def stored(setup: Setup) -> tuple[set[str], set[str]]:
    """Return the decisions whose outcome is stored, and those of the experiment."""
    store = open_store(setup.postgres.url, key_dir=setup.folder)
    outcomes, served = set(), set()
    for _, event in store.read(EventFilter(("decision", "outcome"))):
        if isinstance(event, OutcomeEvent):
            outcomes.add(event.decision_id)
        elif isinstance(event, DecisionEvent) and event.experiment == _EXPERIMENT and not event.shadow:
            served.add(event.decision_id)
    store.close()
    return outcomes, served


def near(moments: Sequence[float], began_s: float, ended_s: float) -> bool:
    """Return whether one of the moments lies between two others."""
    return any(began_s <= moment <= ended_s for moment in moments)


def report(setup: Setup, options: argparse.Namespace, sent: list[Sent], halted_s: float, took_s: float) -> bool:
    """Print what was found; return whether everything held."""
    calls = Calls()
    for host in setup.hosts:
        if host.log is not None and host.log.exists():
            count(host.log, options.parallel, calls)
    outcomes, served = stored(setup)
    good = [request for request in sent if request.status == 200]
    kills_of = [replica.killed_s for replica in setup.replicas]
    lost = [r for r in sent if r.status != 200 and not near(kills_of[r.replica], r.began_s, r.began_s + 60)]
    busy = [r for r in lost if r.status in (429, 503)]
    excused = len(sent) - len(good) - len(lost)
    twice = sum(n > 1 for n in calls.answered.values())
    unstored = [r for r in good if r.decision_id not in outcomes]
    gone = [r for r in unstored if near(kills_of[r.replica], r.began_s, r.began_s + r.took_s + 10)]
    clock_s = time.time() - time.monotonic()  # a decision is written down with its answer: the request's begin counts
    late = sum(r.decision_id in served and r.began_s + clock_s > halted_s + _HALT_WITHIN_S for r in good)
    without_redis = [at for at, kind in breaks if "redis" in kind]
    after_loss = sum(near(without_redis, at - 5.0, at) for at in calls.over)
    took = sorted(request.took_s for request in good) or [0.0]
    print("| what | found | bound |\n|---|---|---|")
    print(f"| requests answered of {len(sent):,} ({len(sent) / took_s:.0f} a second) | {len(good):,} | |")
    print(f"| lost, in flight at a killed replica | {excused} | |")
    print(f"| lost otherwise (of these refused as busy) | {len(lost)} ({len(busy)}) | 0 |")
    print(f"| served twice | {twice} | 0 |")
    print(f"| most calls at once of a model on a host | {calls.most} | <= {options.parallel} |")
    print(f"| calls begun beyond that (within 5 s of Redis killed or frozen) | {len(calls.over)} ({after_loss}) | 0 |")
    print(f"| decisions of the experiment; later than 2 s after its halt | {len(served):,}; {late} | 0 |")
    print(f"| answers without a stored outcome (no kill near) | {len(unstored)} ({len(unstored) - len(gone)}) | |")
    print(f"| seconds of an answer, p50 (p99) | {took[len(took) // 2]:.3f} ({took[int(len(took) * 0.99)]:.3f}) | |")
    places.print_breaks_before(calls.over, breaks)
    for request in lost[:5]:
        print(f"lost: {request}", file=sys.stderr)
    return not (lost or twice or late or calls.over)


async def cost(requests: int) -> tuple[float, float, float]:
    """Return the p50 and p99 of what shared state adds to a request (its session's model and a place), and what it
    adds once to the first request after Redis was frozen; seconds."""
    server = RedisServer()
    server.start()
    state = RedisState(server.url, settle_s=0.0)
    state.start()

    async def one(number: int) -> float:
        patience.begin()
        began_s = time.perf_counter()
        await state.model_of(f"session {number}")
        entry = await state.enter("model@host", 4)
        spent_s = time.perf_counter() - began_s
        state.leave("model@host", entry.place, 4)
        return spent_s

    try:
        while state.problem:
            await asyncio.sleep(0.05)
        spent = []
        for number in range(requests):
            spent.append(await asyncio.create_task(one(number)))
            await asyncio.sleep(0.002)
        server.freeze()
        frozen_s = await asyncio.create_task(one(requests))
        server.thaw()
    finally:
        state.close()
        server.kill()
    spent.sort()
    return spent[len(spent) // 2], spent[int(len(spent) * 0.99)], frozen_s


async def campaign(setup: Setup, options: argparse.Namespace) -> bool:
    """Run the load with the kills, and check."""
    sent: list[Sent] = []
    killed: Counter[str] = Counter()
    began_s = time.monotonic()
    whole = asyncio.Lock()
    loading = asyncio.ensure_future(load(setup, options, sent))
    halting = asyncio.ensure_future(halt(setup, options, sent, whole))
    breaking = asyncio.ensure_future(kills(setup, options, sent, killed, whole))
    while not loading.done():
        await asyncio.wait([loading], timeout=5.0)
        print(
            f"\r{len(sent):,} of {options.requests:,} requests, {sum(killed.values())} kills", end="", file=sys.stderr
        )
    print(file=sys.stderr)
    took_s = time.monotonic() - began_s
    await breaking
    halted_s = await halting or float("inf")  # too few requests to halt it
    await asyncio.sleep(3.0)  # events are written in the background
    print(f"killed: {json.dumps(killed)}")
    return report(setup, options, sent, halted_s, took_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--kills", type=int, help="20; with --places 60")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=24, help="requests in flight (24)")
    parser.add_argument("--parallel", type=int, default=4, help="ROUTER_ML_PARALLEL; at least the replicas (4)")
    parser.add_argument("--call-s", type=float, default=0.2, help="seconds of one call at a host (0.2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without Redis, to compare")
    parser.add_argument("--cost", action="store_true", help="measure what shared state adds to a request, no more")
    parser.add_argument("--places", action="store_true", help="places alone, under kills of processes and Redis")
    parser.add_argument("--calls", type=int, default=100_000, help="with --places (100,000)")
    parser.add_argument("--as-taker", nargs=3, metavar=("URL", "LOG", "NUMBER"), help=argparse.SUPPRESS)
    parser.add_argument("--as-host", nargs=2, metavar=("PORT", "LOG"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.kills is None:
        options.kills = 60 if options.places else 20
    if options.as_taker:
        url, log, number = options.as_taker
        places.run_taker(url, Path(log), int(number))
        return 0
    if options.as_host:
        run_host(int(options.as_host[0]), Path(options.as_host[1]), options.call_s)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # every part ends with the campaign
    try:
        if options.places:
            return 0 if places.campaign(options) else 1
        if options.cost:
            p50_s, p99_s, frozen_s = asyncio.run(cost(2000))
            print("| shared state adds | found | bound |\n|---|---|---|")
            print(f"| to a request, p50 (p99) | {p50_s * 1e3:.2f} ({p99_s * 1e3:.2f}) ms | <= 1 ms |")
            print(f"| to the first request after Redis was frozen | {frozen_s * 1e3:.2f} ms | <= 5 ms |")
            return 0 if p50_s <= 1e-3 else 1
        with running(options) as setup:
            return 0 if asyncio.run(campaign(setup, options)) else 1
    except FileNotFoundError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return 0


if __name__ == "__main__":
    raise SystemExit(main())
