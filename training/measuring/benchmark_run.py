"""A resumable benchmark: every query to every model, each answer stored, scored and written once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router_ml.arm import EFFORTS, arm_key
from router_ml.catalogue import Catalogue
from router_ml.engines.engine import Engine, LocalEngine
from router_ml.errors import NoModelAvailable
from router_ml.hosts.names import normal
from router_ml.jsonl import outcome_row, write_rows
from router_ml.settings import without_credentials
from router_ml.types import Query, Think
from training.measuring.asker import Asker, BenchmarkArm, HostJob, Judged, Question, installed
from training.measuring.conversation import ChatSettings
from training.measuring.expected_answer import ExpectedAnswer, expected_answer
from training.measuring.judge import JudgeDecision
from training.measuring.measured_answer import MeasuredAnswer, answer_from, answer_row
from training.measuring.progress import Progress
from training.measuring.row_log import RowLog, row_key
from training.measuring.run_file import RunFile
from training.measuring.scoring import needs_judge, outcome

_EFFORT_FAMILIES = frozenset({"gptoss"})  # these think always, and take an effort instead of on and off


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
    timeout_s: float = 300.0  # of one turn

    @property
    def answers(self) -> Path:
        """The file of all answers, so that rows can be scored again without asking again."""
        return self.out.with_suffix(".answers.jsonl")

    @property
    def run_file(self) -> Path:
        """The file of the settings of the run."""
        return self.out.with_suffix(".run.json")


class Benchmark:
    """One run, of which a kill at any moment loses the answer in progress alone; on an engine those that its workers
    have under way or wait to be written, at most three for each.

    An answer is on disk before it is scored. Rows are written in the order of the queries, whatever the engine."""

    def __init__(self, plan: BenchmarkPlan, engine: Engine | None = None, *, quiet: bool = False) -> None:
        self._plan, self._quiet = plan, quiet
        self._engine, self._here = engine or LocalEngine(1), engine is None
        self._job = HostJob(plan.host, plan.settings, plan.judge, plan.warm_up, plan.timeout_s)
        self._client = self._job.client()
        self._expected = {query.id: expected_answer(query) for query in plan.queries}
        self._by_id = {query.id: query for query in plan.queries}
        self._run_file = RunFile(plan.run_file, plan.host, plan.settings, self._engine.workers)
        self._warmed: set[str] = set()

    def run(self) -> None:
        """Measure what was not measured yet.

        Raises `NoModelAvailable` if the host or a model is missing, and `InputError` if an earlier part of the
        run was measured with other settings."""
        digests = self._preflight()
        self._job = replace(self._job, digests=digests)
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
        found = installed(self._client, self._plan.host)
        wanted = [*self._plan.models, *([self._plan.judge] if self._plan.judge else [])]
        missing = [name for name in wanted if normal(name) not in found]
        if missing:
            pulls = "; ".join(f"ollama pull {name}" for name in missing)
            host = without_credentials(self._plan.host)
            raise NoModelAvailable(f"{host} does not have {', '.join(missing)}: {pulls}")
        return {name: found[normal(name)] for name in self._plan.models}

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

    @functools.cached_property
    def _asker(self) -> Asker:
        """What asks from this process; it knows which model is loaded from arm to arm."""
        return Asker(self._job, self._client)

    # -- measuring ------------------------------------------------------------------------------------------------

    def _measure(
        self, arm: BenchmarkArm, queries: Sequence[Query], rows: RowLog, answers: RowLog, bar: Progress
    ) -> None:
        if not queries:
            return
        model, key = arm[0], arm_key(*arm)
        if self._plan.warm_up and model not in self._warmed:
            bar.status(f"{model}: warming up")
        build = (lambda: self._asker.answer) if self._here else self._job.answering
        for asked in self._engine.map(build, (Question(arm, query) for query in queries)):
            if asked.warm_up_s is not None and model not in self._warmed:
                self._warmed.add(model)
                self._run_file.warmed(model, asked.warm_up_s)
            answers.append(answer_row(asked.answer))
            self._score(asked.answer, rows)
            bar.row(key, asked.seconds / self._engine.workers)

    def _score(self, answer: MeasuredAnswer, rows: RowLog) -> None:
        """Write the row, unless a judge has to decide first: judging now would unload the model."""
        expected = self._expected[answer.query_id]
        if self._plan.judge is None or not needs_judge(answer, expected):
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
        if self._plan.judge is None or not (waiting := self._unscored(rows, answers)):
            return
        judged = [Judged(self._by_id[a.query_id], a, self._expected[a.query_id].judged or "") for a in waiting]
        decisions = self._engine.map((lambda: self._asker.decide) if self._here else self._job.judging, judged)
        for number, (answer, decision) in enumerate(zip(waiting, decisions, strict=True), start=1):
            bar.status(f"{self._plan.judge} has judged {number}/{len(waiting)}")
            self._write(answer, self._expected[answer.query_id], rows, decision)


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
