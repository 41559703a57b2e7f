"""Places alone, under kills: python -m benchmarks.replicas --places [--calls 100000 --kills 60]

Processes take and give back places through the gate that serves, against a real Redis, as fast as they can; processes
and Redis are killed and started again, and Redis is frozen. Each process writes the begin and the end of each call to
a file that its death leaves whole; a call that was cut ends with its process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from router_ml.hosts.gate import Gate
from router_ml.hosts.options import BreakerOptions
from router_ml.hosts.shared_gate import shared_pair
from router_ml.shared_state.redis import RedisState
from tests.servers import RedisServer

LIMITS = (3, 4, 6)  # of the backends: fewer places than processes, as many, more
_PROCESSES = 4
_CALLERS = 2  # of each process at each backend
_CALL_S = 0.004  # and as long between two calls of a caller
_LEASE_S = 3.0
_PATIENCE_S = 60.0
_DOWN_S = (0.2, 4.0)  # a lease ends meanwhile, or not


# -- a process that takes places ------------------------------------------------------------------------------------


def run_taker(url: str, log: Path, number: int) -> None:
    """Take places until killed."""
    logging.disable(logging.WARNING)  # each freeze is logged
    asyncio.run(_take(url, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number))


async def _take(url: str, log: int, process: int) -> None:
    state, calls = RedisState(url, lease_s=_LEASE_S), itertools.count()
    state.start()

    async def call(gate: Gate, backend: int, draw: random.Random) -> None:
        while True:
            await gate.enter(_PATIENCE_S, _CALL_S)
            name = f"{process} {backend} {next(calls)}"
            os.write(log, f"begin {time.monotonic():.6f} {name}\n".encode())
            await asyncio.sleep(draw.expovariate(1 / _CALL_S))
            os.write(log, f"end {time.monotonic():.6f} {name}\n".encode())
            gate.leave()
            await asyncio.sleep(draw.expovariate(1 / _CALL_S))

    async with asyncio.TaskGroup() as tasks:
        for backend, limit in enumerate(LIMITS):
            gate, _ = shared_pair(f"model{backend}@host", limit, 100, BreakerOptions(), state)
            for number in range(_CALLERS):
                tasks.create_task(call(gate, backend, random.Random(f"{process} {backend} {number}")))


# -- kills ----------------------------------------------------------------------------------------------------------


@dataclass
class Takers:
    """The processes, each started again under a new number after it was killed."""

    url: str
    log: Path
    started: int = 0
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self) -> None:
        """Start one more."""
        command = [sys.executable, "-m", "benchmarks.replicas", "--as-taker", self.url, str(self.log)]
        self.running[self.started] = subprocess.Popen([*command, str(self.started)])
        self.started += 1

    def kill(self, number: int) -> None:
        """End one as `kill -9` does, and write down when its calls ended."""
        process = self.running.pop(number)
        process.kill()
        process.wait(10)
        with open(self.log, "ab") as log:
            log.write(f"killed {time.monotonic():.6f} {number} - -\n".encode())


def _break(kind: str, takers: Takers, redis: RedisServer, draw: random.Random) -> None:
    away_s = draw.uniform(*_DOWN_S)
    if kind == "process":
        takers.kill(draw.choice(list(takers.running)))
        takers.start()
    elif kind == "redis":
        redis.kill()
        time.sleep(away_s)
        redis.start()
    else:
        redis.freeze()
        time.sleep(away_s)
        redis.thaw()


# -- what must hold -------------------------------------------------------------------------------------------------


@dataclass
class Counted:
    """What the processes wrote down."""

    calls: int = 0
    over: list[float] = field(default_factory=list)  # when a call began beyond the limit
    most: Counter[int] = field(default_factory=Counter)  # calls at once by backend


def count(lines: Iterable[str], limits: Sequence[int]) -> Counted:
    """Count calls at once."""
    rows = []
    for line in lines:
        parts = line.split()
        if len(parts) == 5:
            what, at_s, process, backend, call = parts
            rows.append((float(at_s), what == "begin", what, process, backend, call))
    found = Counted()
    running: dict[str, set[tuple[str, str]]] = {str(backend): set() for backend in range(len(limits))}
    for when_s, _, what, process, backend, call in sorted(rows):
        if what == "killed":
            for inside in running.values():
                inside -= {each for each in inside if each[0] == process}
        elif what == "begin":
            found.calls += 1
            inside = running[backend]
            inside.add((process, call))
            found.most[int(backend)] = max(found.most[int(backend)], len(inside))
            if len(inside) > limits[int(backend)]:
                found.over.append(when_s)
        else:
            running[backend].discard((process, call))
    return found


def campaign(options: argparse.Namespace) -> bool:
    """Run processes with the kills, and print what was found; return whether the limits held."""
    draw, killed, breaks = random.Random(options.seed), Counter[str](), list[tuple[float, str]]()
    redis = RedisServer()
    redis.start()
    with tempfile.TemporaryDirectory(prefix="places") as folder:
        takers = Takers(redis.url, Path(folder) / "log")
        began_s = time.monotonic()
        try:
            for _ in range(_PROCESSES):
                takers.start()
            for number in range(1, options.kills + 2):
                while (done := _begun(takers.log)) < number * options.calls / (options.kills + 1):
                    time.sleep(0.05)
                print(f"\r{done:,} of {options.calls:,} calls, {killed.total()} kills", end="", file=sys.stderr)
                if number <= options.kills:
                    kind = draw.choice(("process", "process", "redis", "frozen redis"))
                    breaks.append((time.monotonic(), kind))
                    _break(kind, takers, redis, draw)
                    killed[kind] += 1
        finally:
            print(file=sys.stderr)
            for process in list(takers.running):
                takers.kill(process)
            redis.kill()
        took_s = time.monotonic() - began_s
        found = count(takers.log.read_text().splitlines(), LIMITS)
    return _report(found, killed, breaks, took_s)


def _begun(log: Path) -> int:
    """Return about how many calls there were: each is two lines of some 30 bytes."""
    return log.stat().st_size // 60 if log.exists() else 0


def _report(found: Counted, killed: Counter[str], breaks: Sequence[tuple[float, str]], took_s: float) -> bool:
    most = ", ".join(str(found.most[backend]) for backend in range(len(LIMITS)))
    print("| what | found | bound |\n|---|---|---|")
    print(f"| calls of {_PROCESSES} processes ({found.calls / took_s:,.0f} a second) | {found.calls:,} | |")
    print(f"| kills ({', '.join(f'{n} {kind}' for kind, n in sorted(killed.items()))}) | {killed.total()} | |")
    print(f"| most calls at once at the three backends | {most} | {', '.join(map(str, LIMITS))} |")
    print(f"| calls begun beyond the limit | {len(found.over)} | 0 |")
    print_breaks_before(found.over, breaks)
    return not found.over


def print_breaks_before(over_s: Sequence[float], breaks: Sequence[tuple[float, str]]) -> None:
    """Say what was killed shortly before each call beyond the limit."""
    for at_s in over_s[:10]:
        before = [f"{kind} {at_s - at:.2f} s before" for at, kind in breaks if 0 < at_s - at < 10]
        print(f"beyond the limit: {', '.join(before)}", file=sys.stderr)
