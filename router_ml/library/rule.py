"""What the fitted rule reads of a model: size, age, family, specialisation and the way it is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from router_ml.types import Think

Mode: TypeAlias = Literal["plain", "off", "on", "low", "medium", "high"]  # how a model is asked; plain: it cannot think
FEATURES = ("one", "size", "small", "sparse", "year", "past", "code", "maths", "tools", "no_tools", "think", "effort")
REFERENCE_YEAR = 2024.8  # ability is counted in parameters of models of this time
KNOT = 2.0  # log2 of 4 billion: below it benchmarks punish every halving more
_LEAST_B, _MOST_B = 0.05, 2000.0
_EFFORT = {"low": -1.0, "high": 1.0}


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a model without any figure."""

    family: str  # as in models.toml; "" where it is not known
    parameters_b: float  # billions
    active_b: float | None = None  # of one token, where fewer
    year: float = REFERENCE_YEAR  # of its release
    specialisation: str = ""  # "code", "maths", "tools" or ""
    calls_tools: bool = True  # its template offers tools
    mode: Mode = "plain"


def features_of(profile: Profile) -> tuple[float, ...]:
    """Return the values of `FEATURES`.

    A dense general model of `REFERENCE_YEAR` that calls tools and does not think has 0 everywhere but in "one", "size",
    which is log2 of its billions of parameters, and "small"."""
    total_b = min(max(profile.parameters_b, _LEAST_B), _MOST_B)
    size = math.log2(total_b)
    active = min(max(profile.active_b or total_b, _LEAST_B), total_b)
    year = profile.year - REFERENCE_YEAR
    role = profile.specialisation
    return (
        1.0,
        size,
        min(size - KNOT, 0.0),
        math.log2(active / total_b),
        max(year, 0.0),
        min(year, 0.0),
        float(role == "code"),
        float(role == "maths"),
        float(role == "tools"),
        float(not profile.calls_tools),
        float(profile.mode not in ("plain", "off")),
        _EFFORT.get(profile.mode, 0.0),
    )


def modes_of(thinking: str) -> tuple[Mode, ...]:
    """Return the ways a model can be asked, by its `thinking` in models.toml."""
    known: dict[str, tuple[Mode, ...]] = {
        "switch": ("off", "on"), "effort": ("low", "medium", "high"), "always": ("on",)
    }  # fmt: skip
    return known.get(thinking, ("plain",))


def mode_of(thinking: str, think: Think | None) -> Mode:
    """Return the way a model answers when it is asked with `think`; None is the model's own default."""
    modes = modes_of(thinking)
    if len(modes) == 1:
        return modes[0]
    if thinking == "effort":
        return think if think in ("low", "medium", "high") else "low" if think is False else "medium"
    return "off" if think is False else "on"


def on_scale(latent: float, small: float) -> float:
    """Return the log2 of the billions of parameters at which a reference model has a latent ability.

    Latent ability grows by 1 with each doubling above `KNOT` and by 1 + `small` below it."""
    return latent if latent >= KNOT else KNOT + (latent - KNOT) / (1.0 + small)
