"""Learn success, latency, tokens and cost per model from measured outcomes."""

from training.outcomes.table import OutcomeTable, derived_profiles, outcome_table

__all__ = ["OutcomeTable", "derived_profiles", "outcome_table"]
