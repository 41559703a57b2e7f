"""The circuit breaker, held against a reference of its own and against many threads."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from router_ml.errors import SettingsError
from router_ml.hosts.breaker import Breaker, Permit
from router_ml.hosts.options import BreakerOptions

OPTIONS = BreakerOptions(consecutive_failures=3, window=10, window_minimum=6, open_s=5.0, open_max_s=20.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class BreakerMachine(RuleBasedStateMachine):
    """Callers come, succeed, fail, give up, or dawdle, in any order and over any time."""

    steps = probes = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(OPTIONS, self.clock)
        self.out: list[Permit] = []
        self.must_stay_shut_until_s = 0.0  # as this test knows it, without asking the breaker

    @rule()
    def call(self) -> None:
        before = self.breaker.state
        permit = self.breaker.acquire()
        if self.clock.now_s < self.must_stay_shut_until_s:
            assert permit is None
        if permit is not None:
            assert permit.probe == (before == "half_open")
            BreakerMachine.probes += permit.probe
            self.out.append(permit)

    @rule(index=st.integers(0, 50), ok=st.sampled_from([True, False, None]))
    def settle(self, index: int, ok: bool | None) -> None:
        if not self.out:
            return
        permit = self.out.pop(index % len(self.out))
        was = self.breaker.state
        {True: permit.succeeded, False: permit.failed, None: permit.released}[ok]()
        if self.breaker.state == "open" and was != "open":
            assert ok is False
            wait_s = self.breaker.retry_after_s
            assert OPTIONS.open_s <= wait_s <= OPTIONS.open_max_s
            self.must_stay_shut_until_s = self.clock.now_s + wait_s
        if was == "half_open" and permit.probe and ok and permit.period == self.breaker._period - 1:
            assert self.breaker.state == "closed"
            self.must_stay_shut_until_s = 0.0

    @rule(index=st.integers(0, 50))
    def settle_twice(self, index: int) -> None:
        if self.out:
            permit = self.out.pop(index % len(self.out))
            permit.released()
            state = self.breaker.state
            permit.failed()  # too late
            assert self.breaker.state == state

    @initialize(opened=st.booleans())
    def begin(self, opened: bool) -> None:
        if opened:
            self.fail_until_it_opens()

    @rule()
    def fail_until_it_opens(self) -> None:
        for _ in range(OPTIONS.consecutive_failures):
            permit = self.breaker.acquire()
            if permit is None or permit.probe:
                if permit is not None:
                    self.out.append(permit)
                return
            permit.failed()
        assert self.breaker.state == "open"
        self.must_stay_shut_until_s = self.clock.now_s + self.breaker.retry_after_s

    @rule(seconds=st.sampled_from([20.0, 10.0, 5.0, 4.9, 0.5, 0.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(callers=st.integers(2, 20))
    def crowd(self, callers: int) -> None:
        """Many come at once; in the half-open state one of them at most is let through."""
        before = self.breaker.state
        permits = [permit for _ in range(callers) if (permit := self.breaker.acquire()) is not None]
        if before == "half_open":
            assert len(permits) <= 1
        BreakerMachine.probes += sum(permit.probe for permit in permits)
        self.out.extend(permits)

    @invariant()
    def never_two_probes(self) -> None:
        BreakerMachine.steps += 1
        current = [p for p in self.out if p.probe and p.period == self.breaker._period]
        assert len(current) <= 1

    @invariant()
    def admits_what_it_would_give(self) -> None:
        if self.breaker.state == "open":
            assert not self.breaker.admits()
            assert self.breaker.retry_after_s > 0


def test_ten_thousand_steps_never_make_two_probes() -> None:
    BreakerMachine.steps = BreakerMachine.probes = 0
    run_state_machine_as_test(
        BreakerMachine, settings=settings(max_examples=700, stateful_step_count=60, deadline=None, derandomize=True)
    )
    print(f"{BreakerMachine.steps} steps, {BreakerMachine.probes} probes")
    assert BreakerMachine.steps >= 10_000
    assert BreakerMachine.probes >= 250  # the half-open state was really visited


def _open(breaker: Breaker) -> None:
    for _ in range(OPTIONS.consecutive_failures):
        breaker.acquire().failed()


def test_three_failures_in_a_row_open_it_and_two_do_not() -> None:
    breaker = Breaker(OPTIONS, Clock())
    for ok in (False, False, True, False, False):
        permit = breaker.acquire()
        permit.succeeded() if ok else permit.failed()
    assert breaker.state == "closed"
    breaker.acquire().failed()
    assert breaker.state == "open"
    assert breaker.acquire() is None


def test_half_of_a_window_failing_opens_it_even_when_no_three_are_in_a_row() -> None:
    breaker = Breaker(OPTIONS, Clock())
    for ok in (True, False, True, False, True, False):
        permit = breaker.acquire()
        permit.succeeded() if ok else permit.failed()
    assert breaker.state == "open"


def test_exactly_one_of_fifty_threads_probes() -> None:
    clock = Clock()
    breaker = Breaker(OPTIONS, clock)
    _open(breaker)
    clock.now_s += OPTIONS.open_s
    start, permits = threading.Barrier(50), []

    def call() -> None:
        start.wait()
        permits.append(breaker.acquire())

    threads = [threading.Thread(target=call) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(permit is not None for permit in permits) == 1


def test_each_failed_probe_doubles_the_wait_up_to_its_limit() -> None:
    clock = Clock()
    breaker = Breaker(OPTIONS, clock)
    _open(breaker)
    waits = []
    for _ in range(4):
        waits.append(breaker.retry_after_s)
        clock.now_s += breaker.retry_after_s
        breaker.acquire().failed()
    assert waits == pytest.approx([5.0, 10.0, 20.0, 20.0])


def test_a_released_probe_leaves_the_place_to_the_next() -> None:
    clock = Clock()
    breaker = Breaker(OPTIONS, clock)
    _open(breaker)
    clock.now_s += OPTIONS.open_s
    breaker.acquire().released()
    assert breaker.acquire() is not None


def test_a_success_from_before_it_opened_does_not_close_it() -> None:
    breaker = Breaker(OPTIONS, Clock())
    early = breaker.acquire()
    _open(breaker)
    early.succeeded()
    assert breaker.state == "open"


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError):
        BreakerOptions(open_s=10.0, open_max_s=5.0)
