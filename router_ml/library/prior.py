"""Priors of a model for a catalogue that gives none: success, length and time of an answer for each label."""

from __future__ import annotations

import math
from collections.abc import Mapping

from router_ml.library.ability import Ability, abilities, slopes_of
from router_ml.library.entry import Entry, Library, known, library, quantisation_in
from router_ml.library.names import read_name
from router_ml.library.rule import mode_of
from router_ml.library.speed import Rates, reference_rates
from router_ml.types import LABELS, Label, Prior, TaskFamily, Think

# What an assistant's queries ask for, in shares: most are calls of tools.
MIX: Mapping[TaskFamily, float] = {"tools": 0.6, "instructions": 0.2, "knowledge": 0.2}
# Tokens of an answer: as in the packaged catalogue; with thinking qwen3:8b spent 147 to 585 on one call of a tool.
TOKENS: Mapping[Label, float] = {"simple": 40.0, "moderate": 70.0, "complex": 120.0, "ambiguous": 60.0}
THINKING_TOKENS: Mapping[Label, float] = {"simple": 200.0, "moderate": 300.0, "complex": 480.0, "ambiguous": 340.0}
EFFORT_TOKENS = {"low": 0.4, "high": 2.5}  # of the tokens at medium effort
LOG_SD, THINKING_LOG_SD = 0.25, 0.4  # of latency; how long a model thinks is hard to foresee
TRANSFER_SD = 1.5  # doublings: how far success at one user's queries is from what benchmarks say
MOST_STRENGTH = 20.0
LEAST_SUCCESS, MOST_SUCCESS = 0.02, 0.985
_UNKNOWN_B, _LEAST_FACTOR = 7.0, 0.4


def prior_of(
    name: str,
    parameters_b: float | None = None,
    quantisation: str | None = None,
    family: str | None = None,
    think: Think | None = None,
    rates: Rates | None = None,
    output_tokens: Mapping[Label, float] | None = None,
) -> Prior:
    """Return what is expected of a model before it has outcomes. The arguments are those of `abilities`; `rates` are
    those measured on this machine, else those of the reference machine are taken."""
    able = abilities(name, parameters_b, quantisation, family, think)
    tokens = output_tokens or expected_tokens(name, think)
    thinks = _thinks(known(name), think)
    speed = rates or expected_rates(name, parameters_b, quantisation)
    success = {label: success_of(able, label) for label in LABELS}
    return Prior(
        latency_s={label: round(speed.answer_s(tokens[label]), 3) for label in LABELS},
        success=success,
        output_tokens=dict(tokens),
        latency_log_sd=THINKING_LOG_SD if thinks else LOG_SD,
        strength=_strength(able),
        latency_source="prior" if rates is None else "measured",
    )


def success_of(able: Mapping[TaskFamily, Ability], label: Label) -> float:
    """Return the probability that a typical query of a label is answered right."""
    labels = library().fit["labels"]
    return round(success_at(able, labels["difficulty"][label], steepness=labels["steepness"]), 3)


def success_at(
    able: Mapping[TaskFamily, Ability],
    difficulty: float,
    found: Library | None = None,
    steepness: float | None = None,
) -> float:
    """Return the probability of a right answer to an assistant's query of a difficulty, in doublings of parameters: the
    mean of sigmoid(a (ability - difficulty)) over the task families such queries fall into. `steepness` scales a, for
    queries that differ less from model to model than benchmarks do."""
    slope, steepness = slopes_of(found or library()), 1.0 if steepness is None else steepness
    share = sum(
        weight / (1.0 + math.exp(steepness * slope[task] * (difficulty - able[task].mean)))
        for task, weight in MIX.items()
    )
    return min(max(share, LEAST_SUCCESS), MOST_SUCCESS)


def expected_tokens(name: str, think: Think | None = None) -> Mapping[Label, float]:
    """Return the expected tokens of an answer for each label, thinking included."""
    entry = known(name)
    if not _thinks(entry, think):
        return TOKENS
    effort = mode_of(entry.thinking, think) if entry is not None else think
    factor = EFFORT_TOKENS.get(str(effort), 1.0)
    return {label: round(TOKENS[label] + factor * THINKING_TOKENS[label], 1) for label in LABELS}


def measured_tokens(
    name: str, think: Think | None, output_tokens: float | None, thinking_tokens: float | None
) -> Mapping[Label, float]:
    """Return the expected tokens, corrected by those of one short answer that was measured with and without thinking.

    One answer says little of the next, so that half of its deviation counts (in the log)."""
    expected = expected_tokens(name, think)
    seen = thinking_tokens if _thinks(known(name), think) else output_tokens
    if not seen:
        return expected
    factor = min(max(math.sqrt(seen / expected["simple"]), _LEAST_FACTOR), 1.0 / _LEAST_FACTOR)
    return {label: round(tokens * factor, 1) for label, tokens in expected.items()}


def expected_rates(name: str, parameters_b: float | None = None, quantisation: str | None = None) -> Rates:
    """Return the rates of a model on the reference machine."""
    entry = known(name) or library().kin(name)
    exact = known(name)
    total_b = (exact.parameters_b if exact else None) or parameters_b or read_name(name).parameters_b or _UNKNOWN_B
    share = entry.active_b / entry.parameters_b if entry is not None else 1.0
    return reference_rates(total_b, total_b * share, quantisation or quantisation_in(name, exact))


def _thinks(entry: Entry | None, think: Think | None) -> bool:
    if entry is None:
        return think not in (None, False)
    return mode_of(entry.thinking, think) not in ("plain", "off")


def _strength(able: Mapping[TaskFamily, Ability]) -> float:
    """Return in how many outcomes the prior counts: those whose rate would be as uncertain as the ability (Beta)."""
    p, slope = success_of(able, "moderate"), slopes_of(library())
    variance = sum((MIX[task] * slope[task] * math.hypot(able[task].sd, TRANSFER_SD)) ** 2 for task in MIX)
    return round(min(1.0 / (p * (1.0 - p) * variance) - 1.0, MOST_STRENGTH), 1)
