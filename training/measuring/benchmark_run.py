"""A resumable benchmark: every query to every model, each answer stored, scored and written once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
import ollama

from router_ml.catalogue import Catalogue
from router_ml.errors import InputError, NoModelAvailable
from router_ml.hosts.failure import Failure, classify
from router_ml.hosts.names import normal
from router_ml.jsonl import outcome_row, write_rows
from router_ml.settings import without_credentials
from router_ml.types import Query
from training.measuring.conversation import BenchmarkConversation, ChatClient, ChatSettings
from training.measuring.expected_answer import ExpectedAnswer, expected_answer
from training.measuring.judge import Judge, JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer, answer_from, answer_row
from training.measuring.progress import Progress
from training.measuring.row_log import RowLog
from training.measuring.run_file import RunFile
from training.measuring.scoring import needs_judge, outcome

log = logging.getLogger(__name__)

T = TypeVar("T")

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

    def run(self) -> None:
        """Measure what was not measured yet.

        Raises `NoModelAvailable` if the host or a model is missing, and `InputError` if an earlier part of the
        run was measured with other settings."""
        digests = self._preflight()
        self._run_file.agree(self._plan.queries, digests, self._plan.judge, self._plan.rescore)
        prepare_files(self._plan)
        with RowLog(self._plan.out) as rows, RowLog(self._plan.answers) as answers:
            todo = self._todo(rows, answers)
            done = len(self._plan.models) * len(self._plan.queries) - sum(map(len, todo.values()))
            with Progress({model: len(queries) for model, queries in todo.items()}, done, quiet=self._quiet) as bar:
                self._score_stored(rows, answers)
                for model, queries in todo.items():
                    self._measure(model, queries, rows, answers, bar)
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

    def _todo(self, rows: RowLog, answers: RowLog) -> dict[str, list[Query]]:
        return {
            model: [q for q in self._plan.queries if (q.id, model) not in rows and (q.id, model) not in answers]
            for model in self._plan.models
        }

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

    def _can_think(self, model: str) -> bool:
        if not self._plan.settings.think:
            return False
        try:
            return "thinking" in (self._client.show(model).capabilities or ())
        except Exception:
            return False

    # -- measuring ------------------------------------------------------------------------------------------------

    def _measure(self, model: str, queries: Sequence[Query], rows: RowLog, answers: RowLog, bar: Progress) -> None:
        if not queries:
            return
        if self._plan.warm_up:
            self._warm_up(model, bar)
        can_think = self._can_think(model)
        for query in queries:
            began = self._clock()
            answer = self._ask(model, query, can_think)
            answers.append(answer_row(answer))
            self._score(answer, rows)
            bar.row(model, self._clock() - began)

    def _ask(self, model: str, query: Query, can_think: bool) -> MeasuredAnswer:
        expected = self._expected[query.id]
        try:
            return self._reach(lambda: self._conversation.ask(model, query, expected, can_think=can_think))
        except _StillFailing as error:  # the host answers: only this query of this model fails
            return MeasuredAnswer(query.id, model, turns=1, error=str(error.failure))

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
        open_keys = [
            (query.id, model)
            for model in self._plan.models
            for query in self._plan.queries
            if (query.id, model) in answers and (query.id, model) not in rows
        ]
        return [answer_from(answers.rows[key]) for key in open_keys]

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
        _retain(plan.out, lambda row: (row["query_id"], row["model"]) not in answered)
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
