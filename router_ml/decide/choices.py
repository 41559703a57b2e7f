"""Answer a question whose options are models, tiers or complexity labels with a probability for each option."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router_ml.catalogue import Catalogue
from router_ml.decide.selection.policy import Policy
from router_ml.errors import QueryError
from router_ml.types import ROLES, Decision, Label

LABEL_OPTIONS: Mapping[str, Label] = {
    "simple": "simple", "moderate": "moderate", "medium": "moderate", "complex": "complex", "reasoning": "complex",
    "ambiguous": "ambiguous", "non_reasoning": "simple",
}  # fmt: skip
_TEMPERATURE = 0.1  # utility by which a model must lead to be e times as likely

Decide = Callable[[Policy], Decision]  # decides the query at hand under a policy


@dataclass(frozen=True, slots=True)
class OptionShares:
    """The probability of each option of a question, in the order of the options."""

    choice: int
    probabilities: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """Return 0 if all options are equally likely, 1 if one is certain."""
        n = len(self.probabilities)
        return max(0.0, (n * max(self.probabilities) - 1) / (n - 1))

    @property
    def expected(self) -> float:
        """Return the mean position of the options: the score of ordered options."""
        return sum(index * share for index, share in enumerate(self.probabilities))


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """Options that this router can choose between: complexity labels, or models."""

    labels: tuple[Label, ...] = ()
    models: tuple[str, ...] = ()

    def answer(self, decide: Decide, policy: Policy) -> OptionShares:
        """Return the probability of each option. `decide` is called once, with the models limited to the options."""
        if self.labels:
            return _label_shares(self.labels, decide(policy))
        offered = tuple(dict.fromkeys(self.models))
        return _model_shares(self.models, decide(dataclasses.replace(policy, models=offered)))


def choice_question(
    name: str, options: Sequence[str], catalogue: Catalogue, *, ordered: bool = False
) -> ChoiceQuestion:
    """Return what a question's options mean. Options of an `ordered` question can be complexity labels only.

    Raises `QueryError` for a question this router does not answer."""
    labels = [LABEL_OPTIONS.get(option.strip().lower()) for option in options]
    models = [_model(option, catalogue) for option in options]
    if len(options) > 1 and all(labels):
        return ChoiceQuestion(labels=tuple(label for label in labels if label))
    if len(options) > 1 and all(models) and not ordered:
        return ChoiceQuestion(models=tuple(model for model in models if model))
    raise QueryError(
        f"question {name!r:.60}: its options must all be models of the catalogue, tiers ({', '.join(ROLES)}) or "
        f"complexity labels ({', '.join(LABEL_OPTIONS)}); this router answers no other question"
    )


def _model(option: str, catalogue: Catalogue) -> str | None:
    role = option.strip().lower()
    entry = catalogue.find(option) or next((model for model in catalogue.models if model.role == role), None)
    return entry.name if entry else None


def _label_shares(labels: Sequence[Label], decision: Decision) -> OptionShares:
    """Divide the probability of a label among its options; that of labels which are not offered is spread."""
    return _normalised([decision.complexity_probabilities[label] / labels.count(label) for label in labels])


def _model_shares(models: Sequence[str], decision: Decision) -> OptionShares:
    """Take a softmax over the utilities of the models within every limit; over all models where none is."""
    ranked = [candidate for candidate in decision.ranked if candidate.model in models]
    fit = [candidate for candidate in ranked if candidate.admissible] or ranked
    utilities = {c.model: c.utility for c in sorted(fit, key=lambda c: c.utility)}  # of each model its best arm
    best = max(utilities.values(), default=0.0)
    raw = [math.exp((utilities[m] - best) / _TEMPERATURE) / models.count(m) if m in utilities else 0.0 for m in models]
    shares = _normalised(raw)
    return dataclasses.replace(shares, choice=models.index(decision.model)) if decision.model in models else shares


def _normalised(raw: Sequence[float]) -> OptionShares:
    total = sum(raw)
    probabilities = tuple(value / total for value in raw) if total > 0 else (1.0 / len(raw),) * len(raw)
    return OptionShares(probabilities.index(max(probabilities)), probabilities)
