"""The resumable run: every query to every model, each answer kept, scored and written once."""

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
from training.measuring.answer import Answer, answer_from, answer_row
from training.measuring.conversation import ChatClient, Conversation, Manner
from training.measuring.expectation import Expectation, expectation
from training.measuring.journal import RowLog
from training.measuring.judge import Judge, Verdict
from training.measuring.progress import Progress
from training.measuring.scoring import needs_judge, outcome
from training.measuring.settings import RunFile

log = logging.getLogger(__name__)

T = TypeVar("T")

_WAITS_S = (1.0, 5.0, 15.0)  # before a host that does not answer is given up


class HostClient(ChatClient, Protocol):
    """What the run needs of `ollama.Client` besides."""

    def show(self, model: str) -> ollama.ShowResponse: ...

    @property
    def generate(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Plan:
    """What to measure, how, and where the rows go."""

    models: tuple[str, ...]
    queries: tuple[Query, ...]
    out: Path
    host: str
    manner: Manner
    catalogue: Catalogue
    judge: str | None = None
    warm_up: bool = True
    retry_errors: bool = False
    rescore: bool = False

    @property
    def answers(self) -> Path:
        """Where every answer is kept, so that rows can be scored again without asking again."""
        return self.out.with_suffix(".answers.jsonl")

    @property
    def run_file(self) -> Path:
        return self.out.with_suffix(".run.json")


class Benchmark:
    """One run. An answer is on disk before it is scored and its row before the next query is asked, so that a kill
    at any moment costs the one answer that was on its way."""

    def __init__(
        self,
        plan: Plan,
        client: HostClient,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._host = without_credentials(plan.host)
        self._plan, self._client, self._quiet, self._clock, self._sleep = plan, client, quiet, clock, sleep
        self._expected = {query.id: expectation(query) for query in plan.queries}
        self._by_id = {query.id: query for query in plan.queries}
        self._run_file = RunFile(plan.run_file, plan.host, plan.manner)
        self._conversation = Conversation(client, plan.manner, clock)
        self._judge = Judge(client, plan.judge) if plan.judge else None

    def run(self) -> None:
        """Measure what is not yet measured.

        Raises `NoModelAvailable` where the host or a model is not there, and `InputError` where an earlier part of
        the run was measured in another way."""
        digests = self._preflight()
        self._run_file.agree(self._plan.queries, digests, self._plan.judge, self._plan.rescore)
        prepare_files(self._plan)
        with RowLog(self._plan.out) as rows, RowLog(self._plan.answers) as answers:
            todo = self._todo(rows, answers)
            done = len(self._plan.models) * len(self._plan.queries) - sum(map(len, todo.values()))
            with Progress({model: len(queries) for model, queries in todo.items()}, done, quiet=self._quiet) as bar:
                self._score_kept(rows, answers)
                for model, queries in todo.items():
                    self._measure(model, queries, rows, answers, bar)
                self._judge_kept(rows, answers, bar)

    @property
    def warm_up_s(self) -> Mapping[str, float]:
        """Seconds each model took to load in its warm-up."""
        return self._run_file.warm_up_s

    # -- before ---------------------------------------------------------------------------------------------------

    def _preflight(self) -> dict[str, str]:
        """The digests of the models. Raises `NoModelAvailable` for a host or a model that is not there."""
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
        """Load the model and let it read the system prompt, so that no measured row pays for it."""
        bar.say(f"{model}: warming up")
        manner = self._plan.manner
        options = dict(manner.options)
        began = self._clock()
        try:
            self._reach(lambda: self._client.generate(model, "", options=options, keep_alive=manner.keep_alive))
            self._run_file.warmed(model, self._clock() - began)
            messages = [{"role": "system", "content": manner.system}, {"role": "user", "content": "Hello"}]
            short = {**options, "num_predict": 1}
            self._reach(
                lambda: self._client.chat(model, messages=messages, options=short, keep_alive=manner.keep_alive)
            )
        except (ollama.ResponseError, _StillFailing, httpx.HTTPError, ValueError) as error:  # its rows will say so too
            log.warning("the warm-up of %s failed: %s", model, error)

    def _can_think(self, model: str) -> bool:
        if not self._plan.manner.think:
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

    def _ask(self, model: str, query: Query, can_think: bool) -> Answer:
        expected = self._expected[query.id]
        try:
            return self._reach(lambda: self._conversation.ask(model, query, expected, can_think=can_think))
        except _StillFailing as error:  # the host is there: this query of this model is what fails
            return Answer(query.id, model, turns=1, error=str(error.failure))

    def _score(self, answer: Answer, rows: RowLog) -> None:
        """Write the row, unless a judge has to decide first: judging now would push the model out of memory."""
        expected = self._expected[answer.query_id]
        if self._judge is None or not needs_judge(answer, expected):
            self._write(answer, expected, rows)

    def _write(self, answer: Answer, expected: Expectation, rows: RowLog, verdict: Verdict | None = None) -> None:
        model = self._plan.catalogue.find(answer.model)
        rows.append(outcome_row(outcome(answer, expected, model, verdict)))

    def _kept(self, rows: RowLog, answers: RowLog) -> list[Answer]:
        """Answers of this plan that have no row yet."""
        open_keys = [
            (query.id, model)
            for model in self._plan.models
            for query in self._plan.queries
            if (query.id, model) in answers and (query.id, model) not in rows
        ]
        return [answer_from(answers.rows[key]) for key in open_keys]

    def _score_kept(self, rows: RowLog, answers: RowLog) -> None:
        for answer in self._kept(rows, answers):
            self._score(answer, rows)

    def _judge_kept(self, rows: RowLog, answers: RowLog, bar: Progress) -> None:
        if self._judge is None:
            return
        kept = self._kept(rows, answers)
        for number, answer in enumerate(kept, start=1):
            bar.say(f"{self._judge.model} judges {number}/{len(kept)}")
            expected = self._expected[answer.query_id]
            self._write(answer, expected, rows, self._verdict(self._judge, answer, expected.judged or ""))

    def _verdict(self, judge: Judge, answer: Answer, criterion: str) -> Verdict:
        try:
            return self._reach(lambda: judge.decide(self._by_id[answer.query_id], answer, criterion))
        except _StillFailing as error:
            return Verdict(None, str(error.failure))

    # -- the host -------------------------------------------------------------------------------------------------

    def _reach(self, call: Callable[[], T]) -> T:
        """The result of a call, tried again while the host does not answer.

        Raises `NoModelAvailable` where the host is gone, and `_StillFailing` where it is there and the call fails
        every time."""
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
                f"{self._host} does not answer ({failure}); start Ollama there and go on with --resume"
            ) from error
        raise _StillFailing(failure)


class _StillFailing(Exception):
    """The host is there, the call fails every time."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def prepare_files(plan: Plan) -> None:
    """Drop the rows that are to be made again: all of them to score anew, or those with errors to ask anew."""
    if plan.rescore:
        answered = _keys(plan.answers)
        _keep(plan.out, lambda row: (row["query_id"], row["model"]) not in answered)
    if plan.retry_errors:
        _keep(plan.out, lambda row: row.get("error") is None)  # first: an answer without a row is scored again
        _keep(plan.answers, lambda row: row.get("error") is None)


def _keys(path: Path) -> frozenset[tuple[str, str]]:
    if not path.exists():
        return frozenset()
    with RowLog(path) as journal:
        return frozenset(journal.rows)


def _keep(path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrite a journal without some of its rows, whole or not at all."""
    if not path.exists():
        return
    with RowLog(path) as journal:
        write_rows(path, [row for row in journal.rows.values() if wanted(row)])
