"""Find the load at which shared state is the limit: python -m benchmarks.shared_limit [--replicas 100 --hosts 1000]

A discrete-event simulation of replicas and hosts with the policies that serve: the gate's pauses, the 5 ms of patience,
no call without a place, leases renewed and measurements exchanged every second. There are more replicas than places of
a host, so that none keeps a place for later. Redis is one server that
takes its commands one after the other; `--measured` measures what each costs on this machine, where redis-server is
installed. The load doubles from row to row, and calls get shorter so that the hosts stay equally busy: what grows is
the number of requests, not of calls at once.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router_ml.hosts.shared_gate import _FIRST_PAUSE_S, _PAUSE_MAX_S
from router_ml.shared_state import scripts
from router_ml.shared_state.patience import PATIENCE_S
from router_ml.shared_state.redis import _TICK_S, told_a_tick

_BUSY = 0.7  # of the places at the hosts


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that Redis spends on a command, and the way there and back."""

    enter_s: float = 14e-6
    plain_s: float = 4e-6  # GET, SET, ZREM
    renew_s: float = 10e-6  # of one backend's leases
    entry_s: float = 3e-6  # of one replica's measurements, read by another
    network_s: float = 200e-6


@dataclass(slots=True)
class Redis:
    """One server that takes one command after the other."""

    costs: Costs
    free_s: float = 0.0
    spent_s: float = 0.0

    def take(self, now_s: float, cost_s: float) -> float:
        """Queue a command that arrives now; return when its answer is back."""
        self.free_s = max(self.free_s, now_s + self.costs.network_s / 2) + cost_s
        self.spent_s += cost_s
        return self.free_s + self.costs.network_s / 2


@dataclass(slots=True)
class Found:
    """What one load gave."""

    requests: int = 0
    waits: list[float] = field(default_factory=list)  # of a request for Redis, until its first answer
    late: int = 0  # without an answer within the patience
    places: list[float] = field(default_factory=list)  # seconds until there was a place
    utilisation: float = 0.0


class World:
    """Replicas, hosts and Redis at one load."""

    def __init__(self, options: argparse.Namespace, costs: Costs, per_s: float) -> None:
        self.options, self.per_s = options, per_s
        self.redis, self.draw, self.found = Redis(costs), random.Random(options.seed), Found()
        self.call_s = _BUSY * options.hosts * options.parallel / per_s
        self.running = Counter[int]()  # by host
        self.held = Counter[tuple[int, int]]()  # by replica and host
        self.away_until_s = [0.0] * options.replicas
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.number = 0

    def at(self, when_s: float, what: Callable[[float], None]) -> None:
        """Let something happen later."""
        self.number += 1
        heapq.heappush(self.events, (when_s, self.number, what))

    def run(self) -> Found:
        """Run all requests."""
        for replica in range(self.options.replicas):
            self.at(self.draw.random() * _TICK_S, lambda now_s, replica=replica: self.tick(now_s, replica))  # type: ignore[misc]
        self.at(0.0, self.arrive)
        now_s = 0.0
        while self.found.requests < self.options.requests or any(self.running.values()):
            now_s, _, what = heapq.heappop(self.events)
            what(now_s)
        self.found.utilisation = self.redis.spent_s / max(now_s, 1e-9)
        return self.found

    def arrive(self, now_s: float) -> None:
        """One request comes to a replica, and the next one is due."""
        if self.found.requests >= self.options.requests:
            return
        self.found.requests += 1
        self.at(now_s + self.draw.expovariate(self.per_s), self.arrive)
        replica = self.draw.randrange(self.options.replicas)
        two = self.draw.sample(range(self.options.hosts), 2)
        host = min(two, key=lambda host: self.held[replica, host])
        self.redis.take(now_s, self.redis.costs.plain_s)  # the session's model
        self.ask(now_s, replica, host, _FIRST_PAUSE_S, now_s)

    def ask(self, now_s: float, replica: int, host: int, pause_s: float, came_s: float) -> None:
        """Ask for a place, as the gate does."""
        if now_s < self.away_until_s[replica]:
            self.decide(now_s, replica, host, pause_s, came_s, answered=False)
            return
        back_s = self.redis.take(now_s, self.redis.costs.enter_s)
        if pause_s == _FIRST_PAUSE_S:
            self.found.waits.append(min(back_s - now_s, PATIENCE_S))
        if back_s - now_s > PATIENCE_S:
            self.found.late += 1
            self.away_until_s[replica] = self.redis.take(
                now_s + PATIENCE_S, self.redis.costs.plain_s
            )  # it is looked for
            self.at(now_s + PATIENCE_S, lambda at_s: self.decide(at_s, replica, host, pause_s, came_s, answered=False))
        else:
            self.at(back_s, lambda at_s: self.decide(at_s, replica, host, pause_s, came_s, answered=True))

    def decide(self, now_s: float, replica: int, host: int, pause_s: float, came_s: float, answered: bool) -> None:
        """Begin the call, or pause and ask again."""
        if answered and self.running[host] < self.options.parallel:
            self.running[host] += 1
            self.held[replica, host] += 1
            self.found.places.append(now_s - came_s)
            took_s = self.draw.lognormvariate(math.log(self.call_s) - 0.125, 0.5)
            self.at(now_s + took_s, lambda at_s: self.leave(at_s, replica, host))
            return
        most_s = min(_PAUSE_MAX_S, max(_FIRST_PAUSE_S, self.call_s / 4))
        next_s = min(2 * pause_s, most_s) + 1e-9
        wait_s = pause_s * self.draw.uniform(0.5, 1.0)
        self.at(now_s + wait_s, lambda at_s: self.ask(at_s, replica, host, next_s, came_s))

    def leave(self, now_s: float, replica: int, host: int) -> None:
        """End a call: its place and its session's model are told in the background."""
        self.running[host] -= 1
        self.held[replica, host] -= 1
        self.redis.take(now_s, 2 * self.redis.costs.plain_s)

    def tick(self, now_s: float, replica: int) -> None:
        """Renew the leases of a replica, and exchange what answers measured."""
        costs, replicas = self.redis.costs, self.options.replicas
        held = self.per_s / replicas * self.call_s  # backends with a call, about
        told = min(self.per_s / replicas * _TICK_S, told_a_tick(replicas))
        self.redis.take(now_s, held * costs.renew_s + (1 + replicas) * told * costs.entry_s + 2 * costs.plain_s)
        if self.found.requests < self.options.requests:
            self.at(now_s + _TICK_S, lambda at_s: self.tick(at_s, replica))


def measured() -> Costs:
    """Return the costs on this machine: commands in long pipelines, so that the network and the client hardly count."""
    import redis

    from tests.servers import RedisServer

    server = RedisServer()
    server.start()
    try:
        client = redis.Redis.from_url(server.url)

        def each_s(*command: object, n: int = 5000) -> float:
            pipe = client.pipeline(transaction=False)
            for number in range(n):
                pipe.execute_command(  # type: ignore[no-untyped-call]
                    *(str(part).replace("@@", str(number)) for part in command)
                )
            before = client.info("cpu")
            pipe.execute()
            after = client.info("cpu")
            return sum(float(after[name] - before[name]) for name in ("used_cpu_user", "used_cpu_sys")) / n

        enter_s = each_s(
            "EVAL",
            scripts.ENTER,
            5,
            "s",
            "h@@:places",
            "h@@:circuit",
            "h@@:probe",
            "h@@:wanted",
            2500,
            0,
            5000,
            "place@@",
            0,
            4,
            0,
            "me",
        )
        renew_s = each_s(
            "EVAL", scripts.RENEW, 4, "s", "h@@:places", "h@@:probe", "h@@:wanted", 2500, 0, 5000, "me", 1, "place@@"
        )
        plain_s = each_s("SET", "s@@", "m", "EX", 60)
        client.xadd("a", {"told": "x" * 60 * 50})
        entry_s = each_s("XREAD", "STREAMS", "a", "0") / 50
        return Costs(enter_s, plain_s, renew_s, entry_s)
    finally:
        server.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_limit", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--requests", type=int, default=30_000, help="of each load (30,000)")
    parser.add_argument("--from-per-s", type=float, default=500.0)
    parser.add_argument("--to-per-s", type=float, default=64_000.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measured", action="store_true", help="measure what commands cost here")
    options = parser.parse_args(arguments)
    costs = measured() if options.measured else Costs()
    print(f"microseconds of Redis: a place {costs.enter_s * 1e6:.1f}, a renewal {costs.renew_s * 1e6:.1f}, "
          f"a plain command "
          f"{costs.plain_s * 1e6:.1f}, a measurement read {costs.entry_s * 1e6:.2f}")  # fmt: skip
    print("| requests/s | s of a call | Redis busy | wait for Redis p50 (p99), ms | without an answer in 5 ms | "
          "wait for a place p50 (p99), s |\n|---|---|---|---|---|---|")  # fmt: skip
    per_s, limit = options.from_per_s, 0.0
    while per_s <= options.to_per_s:
        began_s = time.monotonic()
        found = World(options, costs, per_s).run()
        waits, places = sorted(found.waits) or [PATIENCE_S], sorted(found.places)
        late = found.late / max(1, len(found.waits))
        print(f"| {per_s:,.0f} | {_BUSY * options.hosts * options.parallel / per_s:.3f} | {found.utilisation:.0%} | "
              f"{waits[len(waits) // 2] * 1e3:.2f} ({waits[int(len(waits) * 0.99)] * 1e3:.2f}) | {late:.2%} | "
              f"{places[len(places) // 2]:.4f} "
              f"({places[int(len(places) * 0.99)]:.3f}) |", flush=True)  # fmt: skip
        if late > 0.01 and not limit:
            limit = per_s
        per_s *= 2
        if time.monotonic() - began_s > 60:
            break
    print(f"shared state is the limit from {limit:,.0f} requests a second on" if limit else "it is not the limit here")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
