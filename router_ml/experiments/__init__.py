"""A/B experiments: assignment, evidence, verdicts, rollout and their MLflow runs."""
