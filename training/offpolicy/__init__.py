"""Off-policy evaluation: what another router would have been worth on the decisions that were logged."""
