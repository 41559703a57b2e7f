"""Check what the event store and a running experiment preserve under kill -9, and measure what they cost.

    python -m benchmarks.kill_campaign [--kills 300]
    python -m benchmarks.kill_campaign --postgres [--kills 100]

Each process records events under load, reports which are safely written, runs an experiment with a bad challenger, and
reports when it is halted; it is killed at a random moment, and the files it left are examined. With `--postgres` four
processes write to one PostgreSQL server (whose commits wait for the disk), each is killed and started again at random,
and at the end every event that any of them reported as written must be there.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import signal
import sqlite3
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router_ml.events.connect import open_store
from router_ml.events.event import DecisionEvent, OutcomeEvent, Recorders
from router_ml.events.store import EventFilter
from router_ml.events.writer import EventWriter
from router_ml.experiments.experiment import Experiment, Variant
from router_ml.experiments.rollout import FOLDER, open_rollout
from router_ml.experiments.state import ExperimentState
from router_ml.monitor.alerts import Alerts
from router_ml.monitor.metrics import LiveMetrics
from router_ml.types import Candidate, Quantiles
from tests.servers import PostgresServer

_WRITERS = 4
_STARTS = 3  # on copies of what a killed process left
_REPORTED = 2000  # events between two reports of a writer
_HALTED = b"H"
_CANDIDATES = tuple(Candidate(f"m{i}", 0.9, Quantiles(1.0, 2.0, 3.0), 0.0, 1.0, ("fits",)) for i in range(3))


@dataclass(frozen=True, slots=True)
class Killed:
    """What a killed process had reported, and what was found afterwards."""

    acknowledged: int
    lost: int
    whole: bool  # the database passes SQLite's own check
    ready_s: float  # until a new process had opened store and rollout, and made its first analysis
    halt_reported: bool
    halt_found: bool


def _work(folder: Path, send: int, seed: int) -> None:
    """Record events, flush and report it, until killed."""
    writer = EventWriter(lambda: open_store(folder))
    rollout = open_rollout(folder, recorder=writer, read_store=lambda: open_store(folder))
    rollout.start()
    draw, number, halted = random.Random(seed), 0, False
    while True:
        for _ in range(20):
            given = rollout.assign(f"s{draw.random()}")
            wrong = given is not None and given.arm == "challenger" and draw.random() < 0.5
            event = OutcomeEvent(
                f"d{number}", "m", float(not wrong), draw.uniform(1, 3), output_tokens=9, eval_s=1.0,
                experiment=given.experiment if given else None, variant=given.variant.name if given else None,
                unit=given.unit if given else None,
            )  # fmt: skip
            writer.record(event)
            rollout.record(event)
            number += 1
        if writer.flush():
            os.write(send, number.to_bytes(8, "big"))
        if not halted and rollout.files.halt() is not None:
            halted = True
            os.write(send, _HALTED * 8)


def kill_one(folder: Path, after_s: float, seed: int) -> Killed:
    """Start a process, kill it after a while, and examine what it left."""
    ExperimentState(folder / FOLDER).start(
        Experiment("e1", Variant("old"), Variant("new", policy="fast"), time.time() - 1, unit="request")
    )
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _work(folder, send, seed)
        finally:
            os._exit(1)
    os.close(send)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged, reported = 0, False
    while block := os.read(receive, 8):
        if block == _HALTED * 8:
            reported = True
        else:
            acknowledged = int.from_bytes(block, "big")
    os.close(receive)
    return _examine(folder, acknowledged, reported)


def _examine(folder: Path, acknowledged: int, reported: bool) -> Killed:
    with tempfile.TemporaryDirectory(prefix="copies") as copies:  # a busy machine makes a start slower, never quicker
        starts = [_start(Path(shutil.copytree(folder, f"{copies}/{number}"))) for number in range(_STARTS)]
    ready_s = min(seconds for seconds, _ in starts)
    served = any(serves for _, serves in starts)
    store = open_store(folder)
    stored = {s.event.decision_id for s in store.read(EventFilter(("outcome",))) if isinstance(s.event, OutcomeEvent)}
    store.close()
    with sqlite3.connect(folder / "events.db") as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    lost = sum(f"d{i}" not in stored for i in range(acknowledged))
    return Killed(acknowledged, lost, whole, ready_s, reported, not served)


def _start(folder: Path) -> tuple[float, bool]:
    """Return the seconds until a new process is ready to serve, and whether it serves the experiment."""
    began_s = time.monotonic()
    rollout = open_rollout(folder, read_store=lambda: open_store(folder))
    served = rollout.assign("anybody")
    rollout.analyse()
    ready_s = time.monotonic() - began_s
    rollout.close()
    return ready_s, served is not None


def campaign(kills: int, seed: int = 0) -> list[Killed]:
    """Kill `kills` processes, each after a random delay."""
    draw = random.Random(seed)
    found = []
    for run in range(kills):
        with tempfile.TemporaryDirectory(prefix="killed") as folder:
            found.append(kill_one(Path(folder), draw.uniform(0.02, 0.8), run))
    return found


@dataclass(frozen=True, slots=True)
class Kept:
    """What writers that were killed had reported, and what PostgreSQL had at the end."""

    kills: int
    acknowledged: int
    lost: int
    twice: int
    stored: int
    seconds: float  # of the load, kills and new starts included


def _write(url: str, folder: Path, send: int, name: str) -> None:
    """Record a decision and its outcome in turn, flush and report how many, until killed."""
    writer = EventWriter(lambda: open_store(url, key_dir=folder), capacity=50_000)
    number = 0
    while True:
        for _ in range(_REPORTED // 2):
            decision = f"{name}-{number // 2}"
            writer.record(DecisionEvent(decision, "m0", "simple", "p", "b", 1.0, _CANDIDATES, unit=f"u{number}"))
            writer.record(OutcomeEvent(decision, "m0", 1.0, 2.0, prompt_tokens=90, output_tokens=200))
            number += 2
        if writer.flush(60.0):
            os.write(send, f"{name} {number}\n".encode())


def write_and_kill(url: str, folder: Path, kills: int, writers: int = _WRITERS, seed: int = 0) -> Kept:
    """Run writers at once, kill them one after the other, start each again, and count what was stored."""
    draw, (receive, send) = random.Random(seed), os.pipe()
    acknowledged: Counter[str] = Counter()
    started: list[str] = []

    def start() -> int:
        name = f"w{len(started)}"
        started.append(name)
        child = os.fork()
        if child == 0:
            try:
                os.close(receive)
                _write(url, folder, send, name)
            finally:
                os._exit(1)
        return child

    def note() -> None:
        while block := os.read(receive, 65_536):
            for line in block.decode().splitlines():
                name, _, number = line.partition(" ")
                acknowledged[name] = int(number)

    open_store(url, key_dir=folder).close()
    began_s = time.monotonic()
    running = [start() for _ in range(writers)]
    reader = threading.Thread(target=note, daemon=True)
    reader.start()
    for number in range(kills + writers):
        time.sleep(draw.uniform(0.2, 1.0) if number <= kills else 0.0)
        victim = draw.randrange(len(running))
        os.kill(running[victim], signal.SIGKILL)
        os.waitpid(running[victim], 0)
        if number < kills:
            running[victim] = start()
        else:
            del running[victim]
    seconds = time.monotonic() - began_s
    os.close(send)
    reader.join()
    os.close(receive)
    return _count(url, folder, acknowledged, kills, seconds)


def _count(url: str, folder: Path, acknowledged: Mapping[str, int], kills: int, seconds: float) -> Kept:
    store = open_store(url, key_dir=folder)
    found = Counter(f"{type(s.event).__name__} {s.event.decision_id}" for s in store.read()
                    if isinstance(s.event, DecisionEvent | OutcomeEvent))  # fmt: skip
    store.close()
    expected = [f"{kind.__name__} {name}-{number}" for name, total in acknowledged.items()
                for number in range(total // 2) for kind in (DecisionEvent, OutcomeEvent)]  # fmt: skip
    lost = sum(each not in found for each in expected)
    return Kept(kills, len(expected), lost, sum(n > 1 for n in found.values()), found.total(), seconds)


def report_postgres(kills: int) -> bool:
    """Run the campaign with PostgreSQL and print what was found; return whether all of it holds."""
    with tempfile.TemporaryDirectory(prefix="keys") as folder:
        server = PostgresServer(durable=True)
        try:
            server.start()
            kept = write_and_kill(server.url, Path(folder), kills)
        finally:
            server.close()
    rate = kept.stored / kept.seconds
    print("| what | found | bound |\n|---|---|---|")
    print(f"| acknowledged events lost in {kept.kills} kills of {_WRITERS} writers "
          f"({kept.acknowledged:,} acknowledged) | {kept.lost} | 0 |")  # fmt: skip
    print(f"| events stored twice | {kept.twice} | 0 |")
    print(f"| events a second into PostgreSQL, kills included, over {kept.seconds:.0f} s | {rate:,.0f} | >= 5,000 |")
    return not kept.lost and not kept.twice and rate >= 5000


def stored_per_s(seconds: float = 5.0) -> float:
    """Return the events per second that reach the disk, decisions and outcomes in turn."""
    with tempfile.TemporaryDirectory(prefix="rate") as folder:
        writer = EventWriter(lambda: open_store(Path(folder)), capacity=50_000)
        began, number = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            for _ in range(500):
                writer.record(
                    DecisionEvent(f"d{number}", "m0", "simple", "p", "b", 1.0, _CANDIDATES, unit=f"u{number}")
                )
                writer.record(OutcomeEvent(f"d{number}", "m0", 1.0, 2.0, prompt_tokens=90, output_tokens=200))
                number += 1
            while writer.state().pending > 20_000:
                time.sleep(0.01)
        writer.flush(60.0)
        rate = writer.state().written / (time.perf_counter() - began)
        assert writer.state().dropped == 0
        writer.close()
        return rate


def request_cost_s(requests: int = 5000) -> tuple[float, float]:
    """Return the p50 and p99 of the seconds a request spends on being assigned and recorded.

    A decision and an outcome go to writer, metrics, alerts and rollout."""
    with tempfile.TemporaryDirectory(prefix="cost") as name:
        folder = Path(name)
        ExperimentState(folder / FOLDER).start(
            Experiment("e1", Variant("old"), Variant("new", policy="fast"), time.time() - 1)
        )
        writer = EventWriter(lambda: open_store(folder))
        rollout = open_rollout(folder, recorder=writer, read_store=lambda: open_store(folder))
        alerts = Alerts(recorder=writer)
        rollout.start()
        alerts.start()
        recorders = Recorders((writer, LiveMetrics(), alerts, rollout))
        draw, spent = random.Random(1), []
        for number in range(requests):
            began = time.perf_counter()
            given = rollout.assign(f"s{number}")
            recorders.record(DecisionEvent(f"d{number}", "m0", "simple", "p", "b", 1.0, _CANDIDATES, unit=f"s{number}"))
            done = OutcomeEvent(
                f"d{number}", "m0", 1.0, draw.uniform(1, 3), prompt_tokens=90, output_tokens=200, eval_s=1.0,
                experiment="e1", variant=given.variant.name if given else None, unit=f"s{number}",
            )  # fmt: skip
            recorders.record(done)
            spent.append(time.perf_counter() - began)
            time.sleep(0.0005)  # two thousand requests a second at most
        for part in (rollout, alerts, writer):
            part.close()
    spent.sort()
    return statistics.median(spent), spent[int(len(spent) * 0.99)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_campaign", description="kill -9 and costs")
    parser.add_argument("--kills", type=int, help="300; with --postgres 100")
    parser.add_argument("--postgres", action="store_true", help="four writers and one PostgreSQL server")
    options = parser.parse_args(arguments)
    logging.disable(logging.ERROR)  # every rollback is logged
    if options.postgres:
        return 0 if report_postgres(options.kills or 100) else 1
    killed = campaign(options.kills or 300)
    reported = [w for w in killed if w.halt_reported]
    lost, torn = sum(w.lost for w in killed), sum(not w.whole for w in killed)
    slowest = max(w.ready_s for w in killed)
    forgotten = sum(not w.halt_found for w in reported)
    rate = stored_per_s()
    p50_s, p99_s = request_cost_s()
    total = sum(w.acknowledged for w in killed)
    print("| what | found | bound |\n|---|---|---|")
    print(f"| acknowledged events lost in {len(killed)} kills ({total:,} acknowledged) | {lost} | 0 |")
    print(f"| databases torn | {torn} | 0 |")
    print(f"| slowest start after a kill | {slowest:.2f} s | <= 2 s |")
    print(f"| halts forgotten of {len(reported)} reported | {forgotten} | 0 |")
    print(f"| events a second into SQLite | {rate:,.0f} | >= 5,000 |")
    print(f"| cost on the request path, p50 (p99) | {p50_s * 1e6:.0f} ({p99_s * 1e6:.0f}) microseconds | <= 50 |")
    holds = not lost and not torn and slowest <= 2 and not forgotten and rate >= 5000 and p50_s <= 50e-6
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
