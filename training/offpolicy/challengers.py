"""What a challenger would have chosen in logged decisions: one arm, another policy, or another bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from router_ml.context import parse_context
from router_ml.decide.features.extractor import Features
from router_ml.decide.predictors.outcomes import Predictions
from router_ml.decide.router import Router
from router_ml.decide.selection.limits import bounds
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.utility import utility
from router_ml.errors import InputError
from router_ml.types import EMPTY_CONTEXT, Candidate, Quantiles
from training.arrays import Index, Matrix
from training.offpolicy.gate import MARGIN, Verdict, judge
from training.offpolicy.log import Challenger, Log
from training.offpolicy.reading import arm_name, log_of

_BATCH = 256


def always(arm: str) -> Challenger:
    """Return the challenger that always chooses one arm."""

    def choose(log: Log) -> Index:
        if arm not in log.arms:
            raise InputError(f"no decision had {arm!r} as a candidate; it had {', '.join(log.arms)}")
        return np.full(len(log), log.arms.index(arm), np.intp)

    return choose


class Predicted(NamedTuple):
    """What a bundle predicts of the log's arms, whether they were candidates or not; NaN for arms it does not know."""

    success: Matrix  # (n, K)
    latency_s: Matrix  # (n, K, 3), p50, p90, p95; read only for arms that were never candidates
    cost_usd: Matrix  # (n, K), likewise


def by_policy(policy: Policy | None = None, predicted: Predicted | None = None) -> Challenger:
    """Return the challenger that ranks the logged candidates by a policy, with its own predictions of success.

    `policy` None: the weights and limits in force when each decision was logged. `predicted` None: as logged. Latency
    and cost are those that were logged, with the state of the machine at that time. An arm that was never a candidate
    (see `with_arms`) is ranked by what is predicted of it, so that the gate can say that it cannot be judged."""

    def choose(log: Log) -> Index:
        if len(log.rows) != len(log):
            raise InputError("a policy can only be judged on a log that was read from rows")
        seen = {arm_name(raw) for row in log.rows for raw in row["candidates"]}
        new = [i for i, arm in enumerate(log.arms) if arm not in seen]
        return np.array([_best(log, i, policy, predicted, new) for i in range(len(log))], np.intp)

    return choose


def with_arms(log: Log, names: Iterable[str]) -> Log:
    """Return the log with further arms, which were never admissible."""
    known = {arm.split("+", 1)[0] for arm in log.arms} | set(log.arms)
    new = tuple(name for name in names if name not in known)
    shape = (len(log), len(new))
    return replace(
        log,
        arms=(*log.arms, *new),
        admissible=np.hstack((log.admissible, np.zeros(shape, bool))),
        predicted=np.hstack((log.predicted, np.full(shape, 0.5))),
    )


def _best(log: Log, i: int, policy: Policy | None, predicted: Predicted | None, new: Sequence[int]) -> int:
    row = log.rows[i]
    by = policy or _logged_policy(row)
    best, best_utility = int(log.preferred[i]), -np.inf  # as logged, where nothing is within its limits
    arms = [log.arms.index(arm_name(raw)) for raw in row["candidates"]]
    candidates = [_candidate(raw) for raw in row["candidates"]]
    if predicted is not None:
        candidates = [
            candidate
            if np.isnan(predicted.success[i, arm])
            else candidate._replace(p_success=predicted.success[i, arm])
            for arm, candidate in zip(arms, candidates, strict=True)
        ]
        arms += new
        candidates += [_unseen(log.arms[arm], predicted, i, arm) for arm in new]
    for arm, candidate in zip(arms, candidates, strict=True):
        value = utility(by, candidate.p_success, candidate.latency_s.p50, candidate.cost_usd)
        if value > best_utility and _within(candidate, by, policy is None and arm not in new):
            best, best_utility = arm, value
    return best


def _within(candidate: Candidate, policy: Policy, as_logged: bool) -> bool:
    if as_logged:
        return candidate.admissible
    named = policy.models is None or candidate.model in policy.models
    return named and not any(check(candidate, bound) for check, bound in bounds(policy, EMPTY_CONTEXT))


def _candidate(raw: Mapping[str, Any]) -> Candidate:
    latency = [np.nan if value is None else float(value) for value in raw.get("latency_s") or (None,) * 3]
    cost = raw.get("cost_usd")
    return Candidate(
        raw["model"], raw["p_success"], Quantiles(*latency), np.nan if cost is None else cost, raw["utility"],
        output_tokens=raw.get("output_tokens"), admissible=raw.get("admissible", True),
    )  # fmt: skip


def _unseen(arm: str, predicted: Predicted, i: int, column: int) -> Candidate:
    latency = Quantiles(*map(float, predicted.latency_s[i, column]))
    return Candidate(arm, float(predicted.success[i, column]), latency, float(predicted.cost_usd[i, column]), 0.0)


def _logged_policy(row: Mapping[str, Any]) -> Policy:
    own = row.get("policy_parameters") or {}
    if not own:
        return Policy("logged")
    names = ("success_weight", "latency_weight_per_s", "cost_weight_per_usd", "min_p_success")
    values: dict[str, Any] = {name: own[name] for name in names if name in own}
    values |= {name: own.get(name) for name in ("latency_budget_s", "max_cost_usd")}  # what is lifted is not logged
    return Policy("logged", **values)


def predictions(log: Log, router: Router, stored: Mapping[str, tuple[str, Mapping[str, Any] | None]]) -> Predicted:
    """Return what a bundle's router predicts of the log's arms, from the stored text and context by decision id.

    Raises `InputError` where a text is missing."""
    try:
        pairs = [stored[row["decision_id"]] for row in log.rows]
    except KeyError as error:
        raise InputError(f"the text of decision {error} was not stored; judge the decisions that have one") from error
    parts = [
        router.predict_many([text for text, _ in part], [None if c is None else parse_context(c) for _, c in part])[1]
        for part in (pairs[begin : begin + _BATCH] for begin in range(0, len(pairs), _BATCH))
    ]
    return _by_arm(log, parts)


def judge_bundle(
    bundle: Path, rows: Sequence[Mapping[str, Any]], features: Features, *, margin: float = MARGIN, seed: int = 0
) -> Verdict:
    """Return the verdict on a bundle, given the rows of `bandit_rows` and the features of the same decisions, made by
    the bundle's own encoder: no text is needed. Raises as `Router.load` does."""
    router = Router.load(bundle)
    chosen = [i for i, row in enumerate(rows) if row.get("candidates")]
    rows, features = [rows[i] for i in chosen], features.rows(np.array(chosen, np.intp))
    log = with_arms(log_of((row, i) for i, row in enumerate(rows, 1)), (model.name for model in router.models))
    tokens = np.array([row.get("prompt_tokens") or np.nan for row in rows], np.float32)
    predicted = _by_arm(log, [router.predict_features(features, tokens)])
    return judge(log, by_policy(None, predicted), margin=margin, seed=seed)


def _by_arm(log: Log, parts: Sequence[Predictions]) -> Predicted:
    shape = (len(log), len(log.arms))
    found = Predicted(np.full(shape, np.nan), np.full((*shape, 3), np.nan), np.full(shape, np.nan))
    for column, arm in enumerate(log.arms):
        models = parts[0].models
        name = arm if arm in models else arm.split("+", 1)[0]
        if name in models:
            own = models.index(name)
            found.success[:, column] = np.concatenate([part.p_success[:, own] for part in parts])
            found.latency_s[:, column] = np.concatenate([part.latency_s[:, own] for part in parts])
            found.cost_usd[:, column] = np.concatenate([part.cost_usd[:, own] for part in parts])
    return found
