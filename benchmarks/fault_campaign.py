"""Many requests under every kind of fault: does each get one answer or one typed error, in time?

    python -m benchmarks.fault_campaign --requests 10000

Host A serves two models and meets the faults, host B serves a healthy one. Each model echoes the number of the
request, so that a mixed-up answer is seen. Faults of one generation hit `--share` of A's generations at random. One
request in ten is a mistake of its caller: it must end in an `InputError` and not affect other requests. One row
restarts host A again and again. The last rows break both hosts: then a typed error must come at once.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import gc
import itertools
import random
import re
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router_ml.errors import InputError, RouterError, StreamInterrupted
from router_ml.hosts.options import BreakerOptions
from router_ml.serve import Gateway, GatewayOptions
from tests.ollama_double import DoubleModel, Fault, OllamaDouble
from tests.serve.deciders import FixedDecider, catalogue_of
from tests.timing import Stopwatch

FAULTS = tuple(Fault)
MODELS_A, MODEL_B = ("alpha:1b", "beta:3b"), "gamma:8b"
OPTIONS = GatewayOptions(
    last_resort=MODEL_B,
    attempt_min_s=0.25,
    attempt_min_tokens=0,
    attempt_factor=3.0,
    cold_load_s=0.5,
    idle_s=0.5,
    connect_s=0.5,
    parallel=64,
    breaker=BreakerOptions(open_s=0.5, open_max_s=4.0),
)
SLACK_S = 0.1
EVERY = 10  # one request in so many is a caller's mistake
MISTAKES: tuple[Mapping[str, Any], ...] = (
    {"images": ["/nowhere/picture.png"]},
    {"options": {"temperature": float("nan")}},
    {"options": {"num_ctx": {"a set"}}},
    {"format": object},
    {"tools": [3]},
    {"role": 7},
)
_NUMBER = re.compile(r"request (\d+)")


@dataclass
class Given:
    """What one request gave."""

    number: int
    began_s: float  # monotonic
    elapsed_s: float = 0.0  # less what the machine kept this process from running
    answered: bool = False
    wrong: bool = False  # the answer to another request
    error: BaseException | None = None
    first_byte_s: float | None = None  # monotonic
    fallback: bool = False
    mistake: bool = False  # of the caller

    @property
    def refused(self) -> bool:
        """Return whether a caller's mistake was given back to the caller."""
        return self.mistake and isinstance(self.error, InputError)

    @property
    def typed(self) -> bool:
        """Return whether the error is one of the router's own."""
        return isinstance(self.error, RouterError)

    @property
    def interrupted(self) -> bool:
        """Return whether the stream failed after its first part."""
        return isinstance(self.error, StreamInterrupted)


@dataclass
class Row:
    """One fault's share of the campaign."""

    fault: str
    deadline_s: float
    given: list[Given] = field(default_factory=list)
    repeated: int = 0  # generations begun after the first byte had been passed on

    @property
    def answered(self) -> int:
        """Return the number of requests with an answer."""
        return sum(g.answered for g in self.given)

    @property
    def interrupted(self) -> int:
        """Return the number of streams that failed after their first part."""
        return sum(g.interrupted for g in self.given)

    @property
    def untyped(self) -> int:
        """Return the number of failures without a typed error."""
        return sum(not g.answered and not g.typed for g in self.given)

    @property
    def wrong(self) -> int:
        """Return the number of answers with wrong content."""
        return sum(g.wrong for g in self.given)

    @property
    def late(self) -> int:
        """Return the number of requests that ended after their deadline."""
        return sum(g.elapsed_s > self.deadline_s + SLACK_S for g in self.given)

    @property
    def success(self) -> float:
        """Return the share of the requests that could still be served: neither mistakes nor streams that broke after
        their first byte, which are not repeated."""
        open_ = [g for g in self.given if not g.mistake and not g.interrupted]
        return sum(g.answered for g in open_) / len(open_) if open_ else 1.0

    @property
    def unrefused(self) -> int:
        """Return how many mistakes of callers did not end in an `InputError`."""
        return sum(g.mistake and not g.refused for g in self.given)

    def elapsed_ms(self, share: float) -> float:
        """Return a quantile of the request durations in milliseconds."""
        times = sorted(g.elapsed_s for g in self.given)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))]


def _echo(body: Mapping[str, Any]) -> str:
    found = _NUMBER.search(str(body["messages"][-1]["content"]))
    return f"this answers request {found.group(1) if found else '?'} in full"


def _model(name: str) -> DoubleModel:
    return DoubleModel(name, reply=_echo, parallel=64, decode_tokens_per_s=2000.0)


class Campaign:
    """Two hosts, a gateway, and the requests sent through it."""

    def __init__(self, deadline_s: float, concurrency: int, share: float, seed: int) -> None:
        self.deadline_s, self.concurrency, self.share = deadline_s, concurrency, share
        self._random = random.Random(seed)
        self._numbers = itertools.count()
        self.a = OllamaDouble([_model(name) for name in MODELS_A], drip_s=0.3, jitter_s=0.05)
        self.b = OllamaDouble([_model(MODEL_B)])

    def __enter__(self) -> Campaign:
        self.a.start()
        self.b.start()
        self.gateway = self._gateway()
        self._threads = concurrent.futures.ThreadPoolExecutor(4)
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.close()
        self._threads.shutdown()
        self.a.close()
        self.b.close()

    def _gateway(self) -> Gateway:
        names = (*MODELS_A, MODEL_B)
        hosts = {**{name: [self.a.url] for name in MODELS_A}, MODEL_B: [self.b.url]}
        catalogue = catalogue_of(*names, hosts=hosts)
        return Gateway(FixedDecider(*names, p95_s=0.1), catalogue, options=OPTIONS)

    def fault(self, fault: Fault, requests: int) -> Row:
        """Run one fault on host A, while host B stays healthy."""
        self._break(self.a, fault, self.share)
        if fault is Fault.TAGS_DOWN:
            self._break(self.b, fault, 1.0)
        row = self._row(fault.value, requests)
        self._heal()
        return row

    def restarts(self, requests: int) -> Row:
        """Send requests while host A is down for 0.2 s in every second."""

        async def stop_and_start() -> None:
            while True:
                self.a.refuse()
                await asyncio.sleep(0.2)
                self.a.accept()
                await asyncio.sleep(0.8)

        row = self._row("host restarts", requests, beside=stop_and_start)
        self._heal()
        return row

    def nothing_left(self, fault: Fault, requests: int, warm_up: int) -> Row:
        """Run the same fault on both hosts, once their circuit breakers know of it."""
        for double in (self.a, self.b):
            self._break(double, fault, 1.0)
        assert self._row("warm-up", warm_up).answered == 0
        row = self._row(f"both hosts: {fault.value}", requests)
        self._heal()
        return row

    def _row(self, name: str, requests: int, beside: Callable[[], Coroutine[Any, Any, None]] | None = None) -> Row:
        row = Row(name, self.deadline_s)
        gc.collect()  # the log of this campaign grows long: walking it is no part of what is measured
        gc.freeze()
        with Stopwatch() as watch:
            row.given = asyncio.run(self._send_all(requests, beside))
        for given in row.given:
            given.elapsed_s = watch.between(given.began_s, given.began_s + given.elapsed_s)
        row.repeated = self._repeated(row.given)
        return row

    def _break(self, double: OllamaDouble, fault: Fault, share: float) -> None:
        if fault is Fault.REFUSED:
            double.refuse()
        elif fault in (Fault.TAGS_DOWN, Fault.CHAT_DOWN, Fault.FLAPPING) or share >= 1.0:
            double.faults.set("*", fault)
        else:
            chance = random.Random(self._random.random())
            double.faults.plan(lambda model, index: fault if chance.random() < share else None)

    def _heal(self) -> None:
        for double in (self.a, self.b):
            double.faults.clear()
            double.accept()
        self.gateway.close()
        self.gateway = self._gateway()

    async def _send_all(
        self, requests: int, beside: Callable[[], Coroutine[Any, Any, None]] | None = None
    ) -> list[Given]:
        other = asyncio.create_task(beside()) if beside else None
        places = asyncio.Semaphore(self.concurrency)

        async def one() -> Given:
            async with places:
                return await self._send(next(self._numbers))

        given = await asyncio.gather(*(one() for _ in range(requests)))
        if other is not None:
            other.cancel()
        return given

    async def _send(self, number: int) -> Given:
        """Send one request: in turn a whole answer or a stream for a coroutine, or a whole answer for a thread."""
        given = Given(number, time.monotonic(), mistake=number % EVERY == EVERY - 1)
        wrong: Mapping[str, Any] = MISTAKES[number // EVERY % len(MISTAKES)] if given.mistake else {}
        form = {key: value for key, value in wrong.items() if key in ("options", "format", "tools")}
        part = {key: value for key, value in wrong.items() if key not in form}
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"request {number}", **part}]
        try:
            if number % 4 == 0:
                content = await self._stream(messages, given, form)
            elif number % 4 == 1:
                call = lambda: self.gateway.chat(messages, deadline_s=self.deadline_s, **form)  # noqa: E731
                answer = await asyncio.get_running_loop().run_in_executor(self._threads, call)
                content, given.fallback = answer.content, answer.fallback
            else:
                answer = await self.gateway.achat(messages, deadline_s=self.deadline_s, **form)
                content, given.fallback = answer.content, answer.fallback
            given.answered = True
            given.wrong = bool(content) and content != _echo({"messages": messages})
        except Exception as error:
            given.error = error
        given.elapsed_s = time.monotonic() - given.began_s
        return given

    async def _stream(self, messages: list[dict[str, Any]], given: Given, form: dict[str, Any]) -> str:
        stream = await self.gateway.achat(messages, stream=True, deadline_s=self.deadline_s, **form)
        given.first_byte_s = time.monotonic()
        content = "".join([part.message.content or "" async for part in stream])
        given.fallback = stream.answer.fallback
        return content

    def _repeated(self, given: Sequence[Given]) -> int:
        first_bytes = {g.number: g.first_byte_s for g in given if g.first_byte_s is not None}
        repeated = 0
        for seen in (*self.a.generations, *self.b.generations):
            found = _NUMBER.search(str(seen.body["messages"][-1]["content"]))
            first = first_bytes.get(int(found.group(1))) if found else None
            repeated += first is not None and seen.at_s > first
        return repeated


def run(
    requests: int, deadline_s: float = 3.0, concurrency: int = 16, share: float = 0.6, seed: int = 0,
    faults: Sequence[Fault] = FAULTS, log: Any = None, warm_up: int = 40, healthy_deadline_s: float | None = None,
) -> tuple[list[Row], list[Row]]:  # fmt: skip
    """Return the rows in which a model is healthy, and those in which none is.

    `healthy_deadline_s`: another deadline for the former."""
    each = max(1, -(-requests // len(faults)))
    with Campaign(healthy_deadline_s or deadline_s, concurrency, share, seed) as campaign:
        rows = []
        for fault in faults:
            rows.append(campaign.fault(fault, each))
            if log is not None:
                print(line(rows[-1]), file=log, flush=True)
        if len(faults) > 1:
            rows.append(campaign.restarts(each))
            if log is not None:
                print(line(rows[-1]), file=log, flush=True)
        hopeless = []
        campaign.deadline_s = deadline_s
        for fault in (Fault.REFUSED, Fault.ERROR_500, Fault.HANG_BEFORE_HEADERS, Fault.MISSING_404):
            hopeless.append(campaign.nothing_left(fault, max(20, each // 5), warm_up))
            if log is not None:
                print(line(hopeless[-1]), file=log, flush=True)
    return rows, hopeless


HEAD = (
    f"{'fault':32} {'sent':>6} {'answer':>6} {'typed':>6} {'after 1st byte':>14} {'untyped':>7} {'wrong':>5} "
    f"{'again':>5} {'late':>4} {'success':>8} {'p50 ms':>7} {'p99 ms':>7} {'max ms':>7}"
)


def line(row: Row) -> str:
    """Format a row under `HEAD`."""
    typed = sum(g.typed and not g.interrupted and not g.mistake for g in row.given)
    return (
        f"{row.fault:32} {len(row.given):6} {row.answered:6} {typed:6} {row.interrupted:14} {row.untyped:7} "
        f"{row.wrong:5} {row.repeated:5} {row.late:4} {row.success:8.3%} {row.elapsed_ms(0.5):7.0f} "
        f"{row.elapsed_ms(0.99):7.0f} {row.elapsed_ms(1.0):7.0f}"
    )


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fault_campaign", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--deadline-s", type=float, default=3.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.6, help="share of A's generations that meet the fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="*", choices=[f.value for f in Fault], help="only these")
    arguments = parser.parse_args()
    faults = [Fault(name) for name in arguments.faults] if arguments.faults else FAULTS
    began = time.monotonic()
    print(HEAD)
    rows, hopeless = run(
        arguments.requests, arguments.deadline_s, arguments.concurrency, arguments.share, arguments.seed, faults,
        log=sys.stdout,
    )  # fmt: skip
    total = Row("with a healthy model", arguments.deadline_s, [g for row in rows for g in row.given])
    total.repeated = sum(row.repeated for row in rows)
    print(line(total))
    quick = sorted(1000 * g.elapsed_s for row in hopeless for g in row.given)
    within = sum(ms <= 50 for ms in quick) / len(quick)
    for given in total.given:
        if given.error is not None and not given.interrupted and not given.refused:
            print(f"  request {given.number}: {type(given.error).__name__}: {given.error}")
    print(f"no healthy model: typed error within 50 ms in {within:.1%}, p50 {quick[len(quick) // 2]:.1f} ms, "
          f"p95 {quick[int(0.95 * len(quick))]:.1f} ms")  # fmt: skip
    mistakes = sum(given.mistake for given in total.given)
    print(f"mistakes of callers: {mistakes}, of them not given back as InputError: {total.unrefused}")
    print(f"{len(total.given)} requests, {len(faults)} kinds of faults, {time.monotonic() - began:.0f} s")
    bad = total.unrefused + total.untyped + total.wrong + total.late + total.repeated + (total.success < 0.999)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
