"""What a challenger would have chosen in logged decisions: one arm, another policy, or another bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from router_ml.context import parse_context
from router_ml.decide.router import Router
from router_ml.decide.selection.limits import bounds
from router_ml.decide.selection.policy import Policy
from router_ml.decide.selection.utility import utility
from router_ml.errors import InputError
from router_ml.types import EMPTY_CONTEXT, Candidate, Quantiles
from training.arrays import Index, Matrix
from training.offpolicy.log import Challenger, Log
from training.offpolicy.reading import arm_name

_BATCH = 256


def always(arm: str) -> Challenger:
    """Return the challenger that always chooses one arm."""

    def choose(log: Log) -> Index:
        if arm not in log.arms:
            raise InputError(f"no decision had {arm!r} as a candidate; it had {', '.join(log.arms)}")
        return np.full(len(log), log.arms.index(arm), np.intp)

    return choose


def by_policy(policy: Policy | None = None, predicted: Matrix | None = None) -> Challenger:
    """Return the challenger that ranks the logged candidates by a policy, with its own predictions of success.

    `policy` None: the weights and limits in force when each decision was logged. `predicted` (n, K) as the log's arms;
    None: as logged; NaN: as logged, for an arm it knows nothing of. Latency and cost are those that were logged, with
    the state of the machine at that time."""

    def choose(log: Log) -> Index:
        if len(log.rows) != len(log):
            raise InputError("a policy can only be judged on a log that was read from rows")
        return np.array([_best(log, i, policy, predicted) for i in range(len(log))], np.intp)

    return choose


def _best(log: Log, i: int, policy: Policy | None, predicted: Matrix | None) -> int:
    row = log.rows[i]
    chosen_by = policy or _logged_policy(row)
    best, best_utility = -1, -np.inf
    for raw in row["candidates"]:
        arm = log.arms.index(arm_name(raw))
        p = raw["p_success"] if predicted is None or np.isnan(predicted[i, arm]) else float(predicted[i, arm])
        candidate = _candidate(raw, p)
        if policy is None:
            admissible = raw.get("admissible", True)
        else:
            admissible = (policy.models is None or candidate.model in policy.models) and not any(
                check(candidate, bound) for check, bound in bounds(policy, EMPTY_CONTEXT)
            )
        value = utility(chosen_by, p, candidate.latency_s.p50, candidate.cost_usd)
        if admissible and value > best_utility:
            best, best_utility = arm, value
    return int(log.preferred[i]) if best < 0 else best  # nothing within its limits: as logged


def _candidate(raw: Mapping[str, Any], p_success: float) -> Candidate:
    latency = [np.nan if value is None else float(value) for value in raw.get("latency_s") or (None,) * 3]
    cost = raw.get("cost_usd")
    return Candidate(
        raw["model"], p_success, Quantiles(*latency), np.nan if cost is None else cost, raw["utility"],
        output_tokens=raw.get("output_tokens"),
    )  # fmt: skip


def _logged_policy(row: Mapping[str, Any]) -> Policy:
    own = row.get("policy_parameters") or {}
    names = ("success_weight", "latency_weight_per_s", "cost_weight_per_usd")
    return Policy("logged", **{name: own[name] for name in names if name in own})


def predictions(log: Log, router: Router, stored: Mapping[str, tuple[str, Mapping[str, Any] | None]]) -> Matrix:
    """Return the success (n, K) that a bundle's router predicts for the log's arms; NaN for arms it does not know.

    `stored` gives text and context by decision id. Raises `InputError` where a text is missing."""
    try:
        pairs = [stored[row["decision_id"]] for row in log.rows]
    except KeyError as error:
        raise InputError(f"the text of decision {error} was not stored; judge the decisions that have one") from error
    found = np.full((len(log), len(log.arms)), np.nan)
    for begin in range(0, len(pairs), _BATCH):
        part = pairs[begin : begin + _BATCH]
        contexts = [None if context is None else parse_context(context) for _, context in part]
        _, predicted = router.predict_many([text for text, _ in part], contexts)
        for column, arm in enumerate(log.arms):
            name = arm if arm in predicted.models else arm.split("+", 1)[0]
            if name in predicted.models:
                own = predicted.p_success[:, predicted.models.index(name)]
                found[begin : begin + len(part), column] = own
    return found
