"""What is known of models before anyone measured them: published figures, a rule for other models, and their priors.

`models.toml` holds the figures with their sources; `python -m benchmarks.library_fit` makes `fit.json` from it, which
is all that is read here."""

from router_ml.library.ability import Ability, abilities, slopes
from router_ml.library.entry import Entry, known, models
from router_ml.library.prior import expected_rates, expected_tokens, prior_of, success_at
from router_ml.library.speed import Rates

__all__ = [
    "Ability", "Entry", "Rates", "abilities", "expected_rates", "expected_tokens", "known", "models", "prior_of",
    "slopes", "success_at",
]  # fmt: skip
