"""A resumable benchmark: every query to every model, each answer stored, scored and written once."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import httpx
import ollama

from router_ml.arm import EFFORTS, arm_key
from router_ml.catalogue import Catalogue
from router_ml.errors import InputError, NoModelAvailable
from router_ml.hosts.failure import Failure, classify
from router_ml.hosts.names import normal
from router_ml.jsonl import outcome_row, write_rows
from router_ml.settings import without_credentials
from router_ml.types import Query, Think
from training.measuring.conversation import BenchmarkConversation, ChatClient, ChatSettings
from training.measuring.expected_answer import ExpectedAnswer, expected_answer
from training.measuring.judge import Judge, JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer, answer_from, answer_row
from training.measuring.progress import Progress
from training.measuring.row_log import RowLog, row_key
from training.measuring.run_file import RunFile
from training.measuring.scoring import needs_judge, outcome

log = logging.getLogger(__name__)

T = TypeVar("T")
BenchmarkArm: TypeAlias = tuple[str, Think | None]  # model, and how it is asked
_EFFORT_FAMILIES = frozenset({"gptoss"})  # these think always, and take an effort instead of on and off

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


@dataclass(frozen=True)
class BenchmarkPlan:
    """What to measure, how, and where the rows go."""

    models: tuple[str, ...]
    queries: tuple[Query, ...]
    out: Path
    host: str
    settings: ChatSettings
    catalogue: Catalogue
    judge: str | None = None
    warm_up: bool = True
    retry_errors: bool = False
    rescore: bool = False
    arms: bool = False  # ask a model that can think in each way that the catalogue offers, else both ways

    @property
    def answers(self) -> Path:
        """The file of all answers, so that rows can be scored again without asking again."""
        return self.out.with_suffix(".answers.jsonl")

    @property
    def run_file(self) -> Path:
        """The file of the settings of the run."""
        return self.out.with_suffix(".run.json")


class Benchmark:
    """One run, of which a kill at any moment loses the answer in progress alone.

    An answer is on disk before it is scored, and its row before the next query is asked."""

    def __init__(
        self,
        plan: BenchmarkPlan,
        client: HostClient,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host = without_credentials(plan.host)
        self._plan, self._client, self._quiet, self._clock, self._sleep = plan, client, quiet, clock, sleep
        self._expected = {query.id: expected_answer(query) for query in plan.queries}
        self._by_id = {query.id: query for query in plan.queries}
        self._run_file = RunFile(plan.run_file, plan.host, plan.settings)
        self._conversation = BenchmarkConversation(client, plan.settings, clock)
        self._judge = Judge(client, plan.judge) if plan.judge else None
        self._warm: set[str] = set()

    def run(self) -> None:
        """Measure what was not measured yet.

        Raises `NoModelAvailable` if the host or a model is missing, and `InputError` if an earlier part of the
        run was measured with other settings."""
        digests = self._preflight()
        self._run_file.agree(self._plan.queries, digests, self._plan.judge, self._plan.rescore)
        prepare_files(self._plan)
        with RowLog(self._plan.out) as rows, RowLog(self._plan.answers) as answers:
            todo = self._todo(rows, answers)
            done = len(todo) * len(self._plan.queries) - sum(map(len, todo.values()))
            with Progress(
                {arm_key(*arm): len(queries) for arm, queries in todo.items()}, done, quiet=self._quiet
            ) as bar:
                self._score_stored(rows, answers)
                for arm, queries in todo.items():
                    self._measure(arm, queries, rows, answers, bar)
                self._judge_stored(rows, answers, bar)

    @property
    def warm_up_s(self) -> Mapping[str, float]:
        """Seconds each model took to load in its warm-up."""
        return self._run_file.warm_up_s

    # -- before ---------------------------------------------------------------------------------------------------

    def _preflight(self) -> dict[str, str]:
        """Return the digests of the models. Raises `NoModelAvailable` if the host or a model is missing."""
        try:
            listed = self._client.list()
        except Exception as error:
            raise NoModelAvailable(
                f"cannot list the models of {self._host} ({classify(error)}); start Ollama there, or give --host"
            ) from error
        installed = {normal(entry.model or ""): entry.digest or "" for entry in listed.models}
        wanted = [*self._plan.models, *([self._plan.judge] if self._plan.judge else [])]
        missing = [name for name in wanted if normal(name) not in installed]
        if missing:
            pulls = "; ".join(f"ollama pull {name}" for name in missing)
            raise NoModelAvailable(f"{self._host} does not have {', '.join(missing)}: {pulls}")
        return {name: installed[normal(name)] for name in self._plan.models}

    def _todo(self, rows: RowLog, answers: RowLog) -> dict[BenchmarkArm, list[Query]]:
        def is_done(query: Query, arm: BenchmarkArm) -> bool:
            # rows of versions that did not note how a model was asked are of the run's own way
            keys = [(query.id, arm_key(*arm)), *([] if self._plan.arms else [(query.id, arm[0])])]
            return any(key in rows or key in answers for key in keys)

        return {arm: [q for q in self._plan.queries if not is_done(q, arm)] for arm in self._arms}

    @functools.cached_property
    def _arms(self) -> tuple[BenchmarkArm, ...]:
        """The models, each with every way it is asked; arms of one model follow each other, so it is loaded once."""
        return tuple((model, think) for model in self._plan.models for think in self._ways(model))

    def _ways(self, model: str) -> tuple[Think | None, ...]:
        if self._plan.settings.think is None and not self._plan.arms:
            return (None,)
        try:
            shown = self._client.show(model)
        except Exception:
            return (None,)
        if "thinking" not in (shown.capabilities or ()):
            return (None,)
        if not self._plan.arms:
            return (self._plan.settings.think,)
        entry = self._plan.catalogue.find(model)
        if entry is not None and entry.arms:
            return tuple(arm.think for arm in entry.arms)
        return EFFORTS if shown.details is not None and shown.details.family in _EFFORT_FAMILIES else (False, True)

    def _warm_up(self, model: str, bar: Progress) -> None:
        """Load the model and its system prompt, so that no measured row includes that time."""
        bar.status(f"{model}: warming up")
        settings = self._plan.settings
        options = dict(settings.options)
        began = self._clock()
        try:
            self._reach(lambda: self._client.generate(model, "", options=options, keep_alive=settings.keep_alive))
            self._run_file.warmed(model, self._clock() - began)
            messages = [{"role": "system", "content": settings.system}, {"role": "user", "content": "Hello"}]
            short = {**options, "num_predict": 1}
            self._reach(
                lambda: self._client.chat(model, messages=messages, options=short, keep_alive=settings.keep_alive)
            )
        except (ollama.ResponseError, _StillFailing, httpx.HTTPError, ValueError) as error:  # its rows report it, too
            log.warning("the warm-up of %s failed: %s", model, error)

    # -- measuring ------------------------------------------------------------------------------------------------

    def _measure(
        self, arm: BenchmarkArm, queries: Sequence[Query], rows: RowLog, answers: RowLog, bar: Progress
    ) -> None:
        if not queries:
            return
        if self._plan.warm_up and arm[0] not in self._warm:
            self._warm_up(arm[0], bar)
            self._warm = {arm[0]}  # the host may have dropped another one for it
        for query in queries:
            began = self._clock()
            answer = self._ask(arm, query)
            answers.append(answer_row(answer))
            self._score(answer, rows)
            bar.row(arm_key(*arm), self._clock() - began)

    def _ask(self, arm: BenchmarkArm, query: Query) -> MeasuredAnswer:
        model, think = arm
        expected = self._expected[query.id]
        try:
            return self._reach(lambda: self._conversation.ask(model, query, expected, think=think))
        except _StillFailing as error:  # the host answers: only this query of this model fails
            return MeasuredAnswer(query.id, model, turns=1, error=str(error.failure), think=think)

    def _score(self, answer: MeasuredAnswer, rows: RowLog) -> None:
        """Write the row, unless a judge has to decide first: judging now would unload the model."""
        expected = self._expected[answer.query_id]
        if self._judge is None or not needs_judge(answer, expected):
            self._write(answer, expected, rows)

    def _write(
        self, answer: MeasuredAnswer, expected: ExpectedAnswer, rows: RowLog, decision: JudgeDecision | None = None
    ) -> None:
        model = self._plan.catalogue.find(answer.model)
        rows.append(outcome_row(outcome(answer, expected, model, decision)))

    def _unscored(self, rows: RowLog, answers: RowLog) -> list[MeasuredAnswer]:
        """Return the answers of this plan that have no row yet."""
        mine = [(query.id, arm_key(*arm)) for arm in self._arms for query in self._plan.queries]
        return [answer_from(answers.rows[key]) for key in mine if key in answers and key not in rows]

    def _score_stored(self, rows: RowLog, answers: RowLog) -> None:
        for answer in self._unscored(rows, answers):
            self._score(answer, rows)

    def _judge_stored(self, rows: RowLog, answers: RowLog, bar: Progress) -> None:
        if self._judge is None:
            return
        waiting = self._unscored(rows, answers)
        for number, answer in enumerate(waiting, start=1):
            bar.status(f"{self._judge.model} judges {number}/{len(waiting)}")
            expected = self._expected[answer.query_id]
            self._write(answer, expected, rows, self._decision(self._judge, answer, expected.judged or ""))

    def _decision(self, judge: Judge, answer: MeasuredAnswer, criterion: str) -> JudgeDecision:
        try:
            return self._reach(lambda: judge.decide(self._by_id[answer.query_id], answer, criterion))
        except _StillFailing as error:
            return JudgeDecision(None, str(error.failure))

    # -- the host -------------------------------------------------------------------------------------------------

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


def prepare_files(plan: BenchmarkPlan) -> None:
    """Drop the rows to make again: all answered ones to score them again, or those with errors to ask again."""
    if plan.rescore:
        answered = _keys(plan.answers)
        _retain(plan.out, lambda row: row_key(row) not in answered)
    if plan.retry_errors:
        _retain(plan.out, lambda row: row.get("error") is None)  # first: an answer without a row is scored again
        _retain(plan.answers, lambda row: row.get("error") is None)


def _keys(path: Path) -> frozenset[tuple[str, str]]:
    if not path.exists():
        return frozenset()
    with RowLog(path) as log_file:
        return frozenset(log_file.rows)


def _retain(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite a row log without some of its rows, completely or not at all."""
    if not path.exists():
        return
    with RowLog(path) as log_file:
        write_rows(path, [row for row in log_file.rows.values() if wanted(row)])
