"""Sticky assignment by salted hashes.

Two independent hashes, one for taking part and one for the arm, so that raising the coverage moves nobody between
arms and the split inside the coverage stays one half. SHA-256 because weaker hashes (FNV) fail uniformity on short
keys; see Kohavi, Tang and Xu, Trustworthy Online Controlled Experiments, chapter 14.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from router_ml.experiments.experiment import Arm, Experiment, Variant

_SPACE = float(1 << 64)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The assignment of one unit in one experiment."""

    experiment: str
    arm: Arm
    variant: Variant  # what is served
    unit: str
    shadow: Variant | None = None  # decides in shadow


def fraction(salt: str, unit: str) -> float:
    """Return a number in [0, 1) that is uniform over units and always the same for one."""
    digest = hashlib.sha256(f"{salt}\x00{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / _SPACE


def held_out(unit: str, share: float) -> bool:
    """Return whether a unit belongs to the holdout, which is the same for every experiment."""
    return share > 0 and fraction("holdout", unit) < share


def arm_of(experiment: Experiment, unit: str) -> Arm:
    """Return the arm a unit would be in if it takes part."""
    return "challenger" if fraction(f"{experiment.seed}:arm", unit) < 0.5 else "control"


def assign(experiment: Experiment, unit: str, now_s: float) -> Assignment | None:
    """Return what a unit gets at a Unix time, or None if it does not take part.

    In shadow mode every unit is served the control, and the challenger decides as well."""
    if held_out(unit, experiment.holdout):
        return None
    coverage = experiment.coverage(now_s)
    if coverage <= 0 or fraction(f"{experiment.seed}:enrol", unit) >= coverage:
        return None
    if experiment.mode == "shadow":
        return Assignment(experiment.id, "control", experiment.control, unit, shadow=experiment.challenger)
    arm = arm_of(experiment, unit)
    return Assignment(experiment.id, arm, experiment.variant(arm), unit)
