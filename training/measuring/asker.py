"""Asks the models of one host: made once in each process that measures, on this machine or on a node of a cluster."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import httpx
import ollama

from router_ml.errors import InputError, NoModelAvailable
from router_ml.hosts.failure import Failure, classify
from router_ml.hosts.names import normal
from router_ml.settings import without_credentials
from router_ml.types import Query, Think
from training.measuring.conversation import BenchmarkConversation, ChatClient, ChatSettings
from training.measuring.expected_answer import expected_answer
from training.measuring.judge import Judge, JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer

log = logging.getLogger(__name__)

T = TypeVar("T")
BenchmarkArm: TypeAlias = tuple[str, Think | None]  # model, and how it is asked

_WAITS_S = (1.0, 5.0, 15.0)  # between attempts to reach a host


class HostClient(ChatClient, Protocol):
    """The part of `ollama.Client` that a benchmark needs."""

    def show(self, model: str) -> ollama.ShowResponse:
        """Describe a model."""
        ...

    @property
    def generate(self) -> Callable[..., Any]:
        """Complete a text."""
        ...


class Question(NamedTuple):
    """A query for one arm."""

    arm: BenchmarkArm
    query: Query


class Asked(NamedTuple):
    """An answer, and how long it took to get; `warm_up_s` where the model was loaded for it first."""

    answer: MeasuredAnswer
    seconds: float
    warm_up_s: float | None = None


class Judged(NamedTuple):
    """An answer that a judge decides on."""

    query: Query
    answer: MeasuredAnswer
    criterion: str


@dataclass(frozen=True)
class HostJob:
    """How a host is asked; a value that every process gets."""

    host: str  # as the process sees it: with a loopback address each node of a cluster asks its own host
    settings: ChatSettings
    judge: str | None = None
    warm_up: bool = True
    timeout_s: float = 300.0
    digests: Mapping[str, str] | None = None  # of the models, which the host of every process must have

    def client(self) -> HostClient:
        """Return a client of the host."""
        client: HostClient = ollama.Client(host=self.host, timeout=self.timeout_s)
        return client

    def answering(self) -> Callable[[Question], Asked]:
        """Return what asks the models. Raises `NoModelAvailable` if the host has not those that are measured."""
        return self._checked().answer

    def judging(self) -> Callable[[Judged], JudgeDecision]:
        """Return what asks the judge. Raises as `answering` does."""
        return self._checked().decide

    def _checked(self) -> Asker:
        client = self.client()
        found = installed(client, self.host)
        for name, digest in (self.digests or {}).items():
            if found.get(normal(name)) != digest:
                what = "another version of" if normal(name) in found else "no"
                raise NoModelAvailable(
                    f"{without_credentials(self.host)}, asked from {socket.gethostname()}, has {what} {name}: "
                    f"ollama pull {name} there"
                )
        return Asker(self, client)


def installed(client: HostClient, host: str) -> dict[str, str]:
    """Return the digests of the models of a host by their normal names. Raises `NoModelAvailable` without an answer."""
    try:
        listed = client.list()
    except Exception as error:
        raise NoModelAvailable(
            f"cannot list the models of {without_credentials(host)} ({classify(error)}); start Ollama there, or give "
            "--host"
        ) from error
    return {normal(entry.model or ""): entry.digest or "" for entry in listed.models}


class Asker:
    """Asks one thing after another, again while the host does not answer."""

    def __init__(
        self,
        job: HostJob,
        client: HostClient,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._job, self._client, self._clock, self._sleep = job, client, clock, sleep
        self._host = without_credentials(job.host)
        self._conversation = BenchmarkConversation(client, job.settings, clock)
        self._judge = Judge(client, job.judge) if job.judge else None
        self._warm = ""  # the model that was loaded last; the host may have dropped another one for it

    def answer(self, question: Question) -> Asked:
        """Return the answer of a model, loaded first where it is not the one that was asked before.

        Raises `NoModelAvailable` if the host does not answer."""
        (model, think), query = question
        load_s = None
        if self._job.warm_up and model != self._warm:
            load_s, self._warm = self._warm_up(model), model
        began, expected = self._clock(), expected_answer(query)
        try:
            answer = self._reach(lambda: self._conversation.ask(model, query, expected, think=think))
        except _StillFailing as error:  # the host answers: only this query of this model fails
            answer = MeasuredAnswer(query.id, model, turns=1, error=str(error.failure), think=think)
        return Asked(answer, self._clock() - began, load_s)

    def decide(self, judged: Judged) -> JudgeDecision:
        """Return the decision of the judge. Raises `NoModelAvailable` if the host does not answer."""
        judge = self._judge
        assert judge is not None, "no judge was given"
        try:
            return self._reach(lambda: judge.decide(judged.query, judged.answer, judged.criterion))
        except _StillFailing as error:
            return JudgeDecision(None, str(error.failure))

    def _warm_up(self, model: str) -> float | None:
        """Load the model and its system prompt, so that no measured row includes that time; return the seconds of
        loading, None where it failed."""
        settings, load_s = self._job.settings, None
        options = dict(settings.options)
        began = self._clock()
        try:
            self._reach(lambda: self._client.generate(model, "", options=options, keep_alive=settings.keep_alive))
            load_s = self._clock() - began
            messages = [{"role": "system", "content": settings.system}, {"role": "user", "content": "Hello"}]
            short = {**options, "num_predict": 1}
            self._reach(
                lambda: self._client.chat(model, messages=messages, options=short, keep_alive=settings.keep_alive)
            )
        except (ollama.ResponseError, _StillFailing, httpx.HTTPError, ValueError) as error:  # its rows report it, too
            log.warning("the warm-up of %s failed: %s", model, error)
        return load_s

    def _reach(self, call: Callable[[], T]) -> T:
        """Return the result of a call, which is repeated while the host does not answer.

        Raises `NoModelAvailable` if the host does not answer, and `_StillFailing` if it does and the call
        still fails."""
        failure = None
        for wait_s in (*_WAITS_S, None):
            try:
                return call()
            except (InputError, NoModelAvailable):
                raise
            except Exception as error:
                failure = classify(error)
                if failure.kind not in ("refused", "connection", "busy"):
                    raise
            if wait_s is not None:
                self._sleep(wait_s)
        assert failure is not None
        try:
            self._client.list()
        except Exception as error:
            raise NoModelAvailable(
                f"{self._host} does not answer ({failure}); start Ollama there and continue with --resume"
            ) from error
        raise _StillFailing(failure)


class _StillFailing(Exception):
    """The host answers, but the call fails every time."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure
