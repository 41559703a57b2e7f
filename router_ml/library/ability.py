"""How able a model is in each task family, before anyone measured it here."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from router_ml.library.entry import Entry, Library, library, quantisation_in
from router_ml.library.names import read_name
from router_ml.library.quantisation import quantisation_of
from router_ml.library.rule import FEATURES, KNOT, REFERENCE_YEAR, Mode, Profile, features_of, mode_of, on_scale
from router_ml.types import TASK_FAMILIES, TaskFamily, Think

_UNKNOWN_B, _UNKNOWN_SIZE_SD = 7.0, 1.5  # where neither name nor server gives a size
_UNKNOWN_YEAR_SD = 0.7  # years
_SMALL, _YEAR = FEATURES.index("small"), FEATURES.index("year")
_LEAST_SD = 0.3  # two measurements of one model differ by so much
_QUANTISATION_DOUBT = 0.5  # share of its loss; newer models lose more than those it was measured on


class Ability(NamedTuple):
    """An ability in doublings of parameters: log2 of the billions of parameters of a typical dense instruct model of
    2024/25 that is as able."""

    mean: float
    sd: float


@functools.lru_cache(maxsize=4096)
def abilities(
    name: str,
    parameters_b: float | None = None,
    quantisation: str | None = None,
    family: str | None = None,
    think: Think | None = None,
) -> Mapping[TaskFamily, Ability]:
    """Return a model's ability in every task family: from published figures for a model of the library, else by the
    rule.

    `name` is what a server calls it; `parameters_b` (billions), `quantisation` (such as `q4_K_M`) and `family` are what
    the server says of it, where it does. `think` is how it is asked; None is the model's own default, which is to think
    if it can."""
    return abilities_of(library(), name, parameters_b, quantisation, family, think)


def abilities_of(
    found: Library,
    name: str,
    parameters_b: float | None = None,
    quantisation: str | None = None,
    family: str | None = None,
    think: Think | None = None,
) -> Mapping[TaskFamily, Ability]:
    """Return `abilities` by a library."""
    entry = found.find(name)
    lost = quantisation_of(quantisation or quantisation_in(name, entry)).loss
    means, sds = _fitted(entry, think) or _by_rule(found, name, entry, parameters_b, family, think)
    doubt = _QUANTISATION_DOUBT * lost
    return MappingProxyType(
        {
            task: Ability(mean - lost, math.hypot(max(sd, _LEAST_SD), doubt))
            for task, mean, sd in zip(TASK_FAMILIES, means, sds, strict=True)
        }
    )


def slopes() -> Mapping[TaskFamily, float]:
    """Return the log-odds of success that one doubling of parameters adds, by task family: the `a` of
    P(success) = sigmoid(a (ability - difficulty)), averaged over the published benchmarks of the family."""
    return slopes_of(library())


def slopes_of(found: Library) -> Mapping[TaskFamily, float]:
    """Return `slopes` by a library."""
    return dict(zip(TASK_FAMILIES, found.fit["slopes"], strict=True))


Found = tuple[tuple[float, ...], tuple[float, ...]]


def _fitted(entry: Entry | None, think: Think | None) -> Found | None:
    return None if entry is None else entry.fitted.get(mode_of(entry.thinking, think))


def _by_rule(
    found: Library, name: str, entry: Entry | None, parameters_b: float | None, family: str | None, think: Think | None
) -> Found:
    profile, sized = _profile(found, name, entry, parameters_b, family, think)
    smaller = found.fit["weights"][_SMALL]
    means = [on_scale(value, small) for value, small in zip(_latent(found, profile), smaller, strict=True)]
    spread = found.fit["spread"]
    if profile.family not in found.fit["families"]:  # nor is its age known
        years = [_UNKNOWN_YEAR_SD * year for year in found.fit["weights"][_YEAR]]
        spread = [math.hypot(*sds) for sds in zip(spread, found.fit["family_sd"], years, strict=True)]
    doubt = 0.0 if sized else _UNKNOWN_SIZE_SD
    sds = [
        math.hypot(sd / (1.0 if mean >= KNOT else 1.0 + small), doubt)
        for sd, mean, small in zip(spread, means, smaller, strict=True)
    ]
    return tuple(means), tuple(sds)


def _latent(found: Library, profile: Profile) -> list[float]:
    effects = found.fit["families"].get(profile.family) or [0.0] * len(TASK_FAMILIES)
    columns = zip(*found.fit["weights"], strict=True)
    values = features_of(profile)
    return [
        effect + sum(weight * value for weight, value in zip(column, values, strict=True))
        for column, effect in zip(columns, effects, strict=True)
    ]


def _profile(
    found: Library, name: str, entry: Entry | None, parameters_b: float | None, family: str | None, think: Think | None
) -> tuple[Profile, bool]:
    """Return what the rule reads of a model, and whether its size is known."""
    thinks: Mode = "on" if think not in (None, False) else "off" if think is False else "plain"
    if entry is not None:
        return replace(entry.profile(), mode=mode_of(entry.thinking, think)), True
    read = read_name(name)
    size = parameters_b or read.parameters_b
    kin = found.kin(name, family)
    if kin is None:
        return Profile("", size or _UNKNOWN_B, None, REFERENCE_YEAR, _role(read.head), mode=thinks), bool(size)
    mode = mode_of(kin.thinking, think) if kin.thinking else thinks
    total_b = size or kin.parameters_b
    active_b = total_b * kin.active_b / kin.parameters_b
    return replace(kin.profile(), parameters_b=total_b, active_b=active_b, mode=mode), bool(size)


def _role(head: str) -> str:
    return "code" if "code" in head else "maths" if "math" in head else ""
