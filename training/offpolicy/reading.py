"""Logs from exported decisions (`router-ml events export --what bandit`), or from an event store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from router_ml.errors import InputError, RowError
from router_ml.events.exploration import was_explored
from router_ml.jsonl import read_objects
from router_ml.numbers import is_number, short_repr
from router_ml.types import LABELS
from training.arrays import Matrix
from training.offpolicy.log import Log

_WEIGHTS = (("latency_weight_per_s", "latency_s", 0.02), ("cost_weight_per_usd", "cost_usd", 10.0))


def read_log(path: Path | str, *, utility: bool = False) -> Log:
    """Return the decisions of a file of bandit rows. Raises `InputError`, naming file, line and field.

    With `utility` the reward is success less what the policy in force says that the seconds and dollars are worth."""
    return log_of(((row, line) for line, row in read_objects(path)), str(path), utility=utility)


def log_of(numbered: Iterable[tuple[Mapping[str, Any], int]], source: str = "events", *, utility: bool = False) -> Log:
    """Return the log of bandit rows, each with its line number. Raises `RowError`, and `InputError` for none."""
    rows = [_checked(row, source, line) for row, line in numbered]
    rows = [row for row in rows if row["candidates"]]
    if not rows:
        raise InputError(f"{source} holds no decisions; record some with a gateway or router-ml serve")
    arms = tuple(sorted({arm_name(candidate) for row in rows for candidate in row["candidates"]}))
    number = {arm: i for i, arm in enumerate(arms)}
    admissible = np.zeros((len(rows), len(arms)), bool)
    predicted = np.full((len(rows), len(arms)), 0.5)
    first, best = [], []
    for i, row in enumerate(rows):
        for candidate in row["candidates"]:
            arm = number[arm_name(candidate)]
            admissible[i, arm] = candidate.get("admissible", True)
            predicted[i, arm] = candidate["p_success"]
        first.append(number[arm_name(row["candidates"][0])])
        best.append(number[arm_name(row["candidates"][_preferred(row)])])
    propensity = np.array([float(row["propensity"]) for row in rows])
    served = np.array([_served(row) for row in rows])
    return Log(
        arms,
        np.array(first, np.intp),
        np.array(best, np.intp),
        propensity,
        admissible,
        np.array([_reward(row, utility) for row in rows]),
        np.unique([str(row.get("unit") or f"id:{row['decision_id']}") for row in rows], return_inverse=True)[1].ravel(),
        _features(rows),
        predicted,
        served & ((propensity < 1.0) | (admissible.sum(axis=1) < 2)),
        rows,
    )


def arm_name(candidate: Mapping[str, Any]) -> str:
    """Return the key of an arm: the model, with the way it is asked where it has a choice."""
    think = candidate.get("think")
    if think is None:
        return str(candidate["model"])
    return f"{candidate['model']}+{think if isinstance(think, str) else 'think' if think else 'nothink'}"


def _preferred(row: Mapping[str, Any]) -> int:
    first, second = [*row["candidates"][:2], None][:2]
    if second is None or not second.get("admissible", True):
        return 0
    return int(was_explored(row["propensity"], first["utility"], second["utility"]))


def _served(row: Mapping[str, Any]) -> bool:
    """Return whether the router's own choice was called: not the caller's, a cached answer or a question back."""
    return not (row.get("pinned") or row.get("cached") or row.get("action") == "clarify")


def _reward(row: Mapping[str, Any], utility: bool) -> float:
    reward = row.get("reward")
    if reward is None or not utility:
        return float("nan") if reward is None else float(reward)
    own = row.get("policy_parameters") or {}
    value = float(own.get("success_weight", 1.0)) * reward
    return float(value - sum(float(own.get(name, usual)) * (row.get(key) or 0.0) for name, key, usual in _WEIGHTS))


def _features(rows: list[Mapping[str, Any]]) -> Matrix:
    """Return what is known of each query (n, 7): label probabilities, novelty, length, and its place in time."""
    probabilities = [row.get("complexity_probabilities") or {} for row in rows]
    times = np.array([float(row.get("at_s") or 0.0) for row in rows])
    return np.column_stack(
        (
            [[float(found.get(label, 0.0)) for label in LABELS] for found in probabilities],
            [float(row.get("novelty") or 0.0) for row in rows],
            np.log1p([float(row.get("prompt_tokens") or 0.0) for row in rows]),
            times.argsort(kind="stable").argsort(kind="stable") / len(rows),
        )
    )


def _checked(row: Mapping[str, Any], source: str, line: int) -> Mapping[str, Any]:
    def fail(key: str, wanted: str) -> RowError:
        found = "nothing" if row.get(key) is None else short_repr(row[key])
        return RowError(source, line, key, f"must be {wanted}, found {found}; export with --what bandit")

    if not isinstance(row.get("decision_id"), str):
        raise fail("decision_id", "a string")
    propensity, reward = row.get("propensity"), row.get("reward")
    if not is_number(propensity) or not 0 < float(propensity or 0) <= 1:
        raise fail("propensity", "a number above 0 and at most 1")
    if reward is not None and (not is_number(reward) or not 0 <= reward <= 1):
        raise fail("reward", "null or a number between 0 and 1")
    if not isinstance(row.get("candidates"), list) or not all(map(_is_candidate, row["candidates"])):
        raise fail("candidates", "a list of objects with model, p_success and utility")
    return row


def _is_candidate(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("model"), str)
        and all(is_number(value.get(key)) for key in ("p_success", "utility"))
    )
